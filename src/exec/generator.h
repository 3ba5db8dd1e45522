// Generator: text out of a checkpoint. Sequences run side by side in the slots of a Decoder; one that ends
// leaves its slot to the next prompt that waits. Ranks are threads: tp cuts the model, ep and etp its
// experts, dp copies take turns with the prompts. Experts lie
// where a placement says, several times if it does.
//
//   Generator generator(model, weights, {.parallel = {.tp = 2}, .context = 2048, .batch = 4});
//   generator.run(requests, [](std::size_t request, std::int32_t token) { ...; return true; });
//
// Every rank walks the same loop and samples its own sequences with random numbers that only the prompt, the
// seed and the place in the text decide, so neither the batch nor the ranks change the text (ranks add in
// another order: where two logits agree to rounding, a text may part ways there).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "exec/decoder.h"
#include "exec/sampler.h"

namespace tessera::exec {

struct Request {
  std::vector<std::int32_t> prompt;  // not empty
  SampleOptions sampling;
  std::vector<std::int32_t> stop_ids;  // they end the text and are no part of it
};

enum class Finish : std::uint8_t {
  stop_id,       // a stop id came
  told_to_stop,  // the listener said so
  length,        // max_new_tokens
  context,       // the context is full
};
[[nodiscard]] std::string_view name(Finish finish);

struct Completion {
  std::vector<std::int32_t> tokens;  // new ones
  Finish finish = Finish::length;
};

struct GenerationSpeed {
  std::int64_t prefill_tokens = 0, decode_tokens = 0;  // decode: rows that gave a token
  std::int64_t decode_steps = 0;
  Seconds prefill, decode;  // wall clock
  // Of the decode steps with one active sequence: bytes they must read at least, over all ranks, and their
  // time.
  double single_bytes = 0.0;
  Seconds single;
  // CPU time of rank 0's thread, which other work on the machine does not lengthen; with several ranks it
  // holds the waiting for the others too.
  Seconds prefill_cpu, single_cpu;
};

// Called on rank 0's thread for each new token but a stop id. False ends this request; the token stays.
using OnToken = std::function<bool(std::size_t request, std::int32_t token)>;

enum class WhenFull : std::uint8_t {
  stop,
  slide,  // forget the older half and go on
};

struct GeneratorOptions {
  spec::ParallelSpec parallel;  // tp, dp, ep, etp
  tensor::DType dtype = tensor::DType::f32;
  std::int64_t context = 0;  // most tokens of prompt and text; 0: the model's positions
  std::int32_t batch = 1;    // sequences at once over all replicas, rounded up to a multiple of dp
  std::int64_t chunk = 256;  // rows of a call of prefill
  WhenFull when_full = WhenFull::stop;
  std::vector<std::vector<std::int32_t>> expert_of_slot = {};  // ForwardOptions: replicas too
  std::int32_t cores = 0;  // that the ranks share; 0: those this process may use
  Compute compute = {};
};

class Generator {
 public:
  // Error{config} with every reason why these options cannot run.
  Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source, const GeneratorOptions& options);
  // One sequence on one rank, sliding: samples of small models.
  Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source, std::int64_t context);
  ~Generator();

  // Completions in the order of the requests. Error{config} for an empty prompt, one that leaves no room in
  // the context, or ids outside of the vocabulary: all at once, before anything runs. After another error the
  // generator is of no more use.
  [[nodiscard]] std::vector<Completion> run(std::span<const Request> requests,
                                            const OnToken& on_token = nullptr);
  // One prompt; ends early at `stop` (negative: never). The new tokens only.
  [[nodiscard]] std::vector<std::int32_t> generate(std::span<const std::int32_t> prompt,
                                                   const SampleOptions& options, std::int32_t stop = -1);
  // Logits of the token after `tokens` [vocabulary], at most the context's last ones seen.
  [[nodiscard]] std::vector<float> next_logits(std::span<const std::int32_t> tokens);

  [[nodiscard]] const GenerationSpeed& speed() const;  // of all runs so far
  [[nodiscard]] std::int64_t context() const;
  [[nodiscard]] std::int32_t num_ranks() const;
  // Read at least for one token at `position` at batch 1, over all ranks: active weights and cache.
  [[nodiscard]] double bytes_per_token(std::int64_t position) const;

 private:
  struct World;
  std::unique_ptr<World> world_;
};

}  // namespace tessera::exec
