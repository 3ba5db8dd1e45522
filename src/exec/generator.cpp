#include "exec/generator.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "base/math.h"
#include "comm/thread_world.h"
#include "exec/generation_queue.h"
#include "tensor/bf16.h"

namespace tessera::exec {

using layout::Axis;
using tensor::DType;

std::string_view name(Finish finish) {
  switch (finish) {
    case Finish::stop_id:
      return "stop_id";
    case Finish::told_to_stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::context:
      return "context";
  }
  return "";
}

struct Generator::World {
  spec::ModelSpec model;
  GeneratorOptions options;  // with context and batch resolved
  comm::ThreadWorld threads;
  std::vector<std::unique_ptr<Decoder>> ranks;
  GenerationSpeed speed;

  World(const spec::ModelSpec& m, const ckpt::WeightSource& source, const GeneratorOptions& o);
  void check(std::span<const Request> requests) const;
};

namespace {

constexpr std::int32_t kGoOn = -1;

GeneratorOptions resolved(const spec::ModelSpec& m, GeneratorOptions o) {
  if (o.context == 0) o.context = m.max_position_embeddings;
  Problems problems;
  const auto at_least_one = [&](std::int64_t value, const char* what, const char* where) {
    if (value < 1) problems.add(fmt::format("{}={} is below 1", what, value), where, "use 1 or more");
  };
  at_least_one(o.batch, "batch", "generation: batch");
  at_least_one(o.chunk, "chunk", "generation: chunk");
  if (o.parallel.pp > 1 || o.parallel.vpp > 1) {
    problems.add(fmt::format("pp={} with generation, which has no pipeline stages", o.parallel.pp),
                 "parallel.pp", "use tp and ep ranks; any checkpoint can be read by them");
  }
  if (m.rope_scaling.kind == spec::RopeKind::dynamic && o.context > m.max_position_embeddings) {
    problems.add(
        fmt::format("a context of {} tokens: beyond {} positions dynamic rotary scaling turns every earlier "
                    "key again, and the cache keeps them as they were",
                    o.context, m.max_position_embeddings),
        "train.sequence_length", fmt::format("use up to {}", m.max_position_embeddings));
  }
  check_forward({.model = m,
                 .parallel = o.parallel,
                 .dtype = o.dtype,
                 .context = o.context,
                 .expert_of_slot = o.expert_of_slot,
                 .compute = o.compute},
                problems);
  problems.throw_if_any();
  o.batch = static_cast<std::int32_t>(round_up(o.batch, o.parallel.dp));
  return o;
}

// What all ranks of one run share: rank 0 writes.
struct Outcome {
  std::span<const Request> requests;
  const OnToken& on_token;
  std::vector<Completion> completions;
  GenerationSpeed speed;
};

// Logits where the host reads them.
class LogitsReader {
 public:
  explicit LogitsReader(const std::shared_ptr<tensor::Memory>& memory) : memory_(memory) {}
  [[nodiscard]] Tensor read(const Tensor& logits) {
    if (logits.device() == tensor::Device::cpu) return logits;
    if (buffer_.size() < logits.bytes())
      buffer_ = tensor::Buffer(memory_, logits.bytes(), tensor::Reach::shared);
    const Tensor here(buffer_.data(), logits.dtype(), logits.shape());
    memory_->copy(here, logits);
    memory_->synchronise();
    return here;
  }

 private:
  std::shared_ptr<tensor::Memory> memory_;
  tensor::Buffer buffer_;
};

template <class T>
std::vector<double> doubles_of(const Tensor& x) {
  const std::span<T> all = x.span<T>();
  return {all.begin(), all.end()};
}
std::vector<double> to_doubles(const Tensor& x) {
  if (x.dtype() == DType::f64) return doubles_of<double>(x);
  return x.dtype() == DType::bf16 ? doubles_of<tensor::Bf16>(x) : doubles_of<float>(x);
}

// One rank's walk through the queue.
class RankLoop {
 public:
  RankLoop(Decoder& decoder, const GeneratorOptions& options,
           const std::function<double(std::int64_t)>& bytes, Outcome& outcome)
      : decoder_(decoder),
        options_(options),
        bytes_(bytes),
        outcome_(outcome),
        comms_(decoder.model().comms()),
        queue_(outcome.requests, options.batch, options.parallel.dp),
        replica_(comms_.dp->rank()),
        own_(static_cast<std::size_t>(options.batch / options.parallel.dp), 0),
        next_(static_cast<std::size_t>(options.batch), 0),
        verdicts_(static_cast<std::size_t>(options.batch), kGoOn),
        logits_(decoder.model().kernels().memory()) {}

  void run() {
    for (queue_.admit(); !queue_.done(); queue_.admit()) {
      const Start start;
      if (const std::int64_t waiting = queue_.most_waiting_rows(); waiting > 0) {
        const std::int64_t rows = decoder_.prefill_rows(waiting);
        decoder_.prefill(queue_.rows_of(replica_, rows), rows);
        count_prefill(rows, start);
        queue_.mark_cached(rows);
      } else {
        decode(start);
      }
    }
  }

 private:
  [[nodiscard]] bool leads() const { return comms_.world->rank() == 0; }
  struct Start {
    std::int64_t wall = wall_ns(), cpu = thread_cpu_ns();
  };
  [[nodiscard]] static Seconds since(std::int64_t start, std::int64_t now) {
    return Seconds(static_cast<double>(now - start) * 1e-9);
  }

  void count_prefill(std::int64_t rows, const Start& start) {
    if (!leads()) return;
    for (std::int32_t r = 0; r < options_.parallel.dp; ++r)
      outcome_.speed.prefill_tokens += std::min(rows, queue_.waiting_rows(r));
    outcome_.speed.prefill = outcome_.speed.prefill + since(start.wall, wall_ns());
    outcome_.speed.prefill_cpu = outcome_.speed.prefill_cpu + since(start.cpu, thread_cpu_ns());
  }

  void decode(const Start& start) {
    const std::vector<DecodeRow> rows = queue_.last_rows(replica_);
    const Tensor logits = logits_.read(decoder_.decode(rows, queue_.most_active()));
    for (std::int64_t i = 0; i < std::ssize(rows); ++i) {
      const std::int32_t local = rows[static_cast<std::size_t>(i)].slot;
      own_[static_cast<std::size_t>(local)] =
          pick(logits.narrow_rows(i, 1), queue_.at(queue_.slot_of(replica_, local)));
    }
    exchange();
    if (leads()) count_decode(start);
    for (std::int32_t s = 0; s < queue_.num_slots(); ++s) {
      if (queue_.at(s).active) advance(s);
    }
  }

  std::int32_t pick(const Tensor& logits, const GenerationQueue::Sequence& q) {
    wide_ = to_doubles(logits);
    const SampleOptions& o = outcome_.requests[q.request].sampling;
    return sampler_.sample(wide_, o, draw_of(o.seed, q.stream, q.made));
  }

  // Everybody learns every sequence's token and whether rank 0 ends it.
  void exchange() {
    const auto view = [](std::vector<std::int32_t>& v) {
      return Tensor(v.data(), DType::i32, {std::ssize(v)});
    };
    if (options_.parallel.dp > 1) {
      comms_.dp->all_gather(view(next_), view(own_));
    } else {
      next_ = own_;
    }
    if (leads()) {
      for (std::int32_t s = 0; s < queue_.num_slots(); ++s)
        verdicts_[static_cast<std::size_t>(s)] = queue_.at(s).active ? judge(s) : kGoOn;
    }
    if (comms_.world->size() > 1) comms_.world->broadcast(view(verdicts_), 0);
  }

  // all_gather puts the slots of one replica one after another.
  [[nodiscard]] std::int32_t token_of(std::int32_t slot) const {
    const std::int32_t dp = options_.parallel.dp, per_replica = options_.batch / dp;
    return next_[static_cast<std::size_t>(slot % dp * per_replica + slot / dp)];
  }

  std::int32_t judge(std::int32_t slot) {
    const GenerationQueue::Sequence& q = queue_.at(slot);
    const Request& r = outcome_.requests[q.request];
    Completion& c = outcome_.completions[q.request];
    const std::int32_t token = token_of(slot);
    const auto end = [&](Finish f) {
      c.finish = f;
      return static_cast<std::int32_t>(f);
    };
    if (std::ranges::find(r.stop_ids, token) != r.stop_ids.end()) return end(Finish::stop_id);
    c.tokens.push_back(token);
    if (outcome_.on_token && !outcome_.on_token(q.request, token)) return end(Finish::told_to_stop);
    if (q.made + 1 >= r.sampling.max_new_tokens) return end(Finish::length);
    if (options_.when_full == WhenFull::stop && std::ssize(q.tokens) + 1 >= options_.context)
      return end(Finish::context);
    return kGoOn;
  }

  void advance(std::int32_t slot) {
    queue_.append(slot, token_of(slot));
    if (verdicts_[static_cast<std::size_t>(slot)] != kGoOn) {
      queue_.finish(slot);
    } else if (std::ssize(queue_.at(slot).tokens) > options_.context) {
      queue_.slide(slot, std::max<std::int64_t>(1, options_.context / 2));
    }
  }

  void count_decode(const Start& start) {
    GenerationSpeed& speed = outcome_.speed;
    const Seconds time = since(start.wall, wall_ns());
    speed.decode = speed.decode + time;
    speed.decode_tokens += queue_.num_active();
    ++speed.decode_steps;
    if (queue_.num_active() != 1) return;
    for (std::int32_t s = 0; s < queue_.num_slots(); ++s) {
      if (queue_.at(s).active) speed.single_bytes += bytes_(std::ssize(queue_.at(s).tokens) - 1);
    }
    speed.single = speed.single + time;
    speed.single_cpu = speed.single_cpu + since(start.cpu, thread_cpu_ns());
  }

  Decoder& decoder_;
  const GeneratorOptions& options_;
  const std::function<double(std::int64_t)>& bytes_;
  Outcome& outcome_;
  const Communicators& comms_;
  GenerationQueue queue_;
  std::int32_t replica_;
  std::vector<std::int32_t> own_, next_, verdicts_;
  LogitsReader logits_;
  std::vector<double> wide_;
  Sampler sampler_;
};

CommFactory thread_factory(comm::ThreadWorld& threads, Rank rank) {
  return [&threads, rank](std::span<const Rank> members, std::string_view label) {
    return threads.communicator(rank, members, label);
  };
}

}  // namespace

Generator::World::World(const spec::ModelSpec& m, const ckpt::WeightSource& source, const GeneratorOptions& o)
    : model(m),
      options(resolved(m, o)),
      threads({.size = options.parallel.world_size(), .cores = options.cores}),
      ranks(static_cast<std::size_t>(options.parallel.world_size())) {
  const DecoderOptions decoder{.forward = {.model = m,
                                           .parallel = options.parallel,
                                           .dtype = options.dtype,
                                           .context = options.context,
                                           .expert_of_slot = options.expert_of_slot,
                                           .compute = options.compute},
                               .slots = options.batch / options.parallel.dp,
                               .chunk = std::min(options.chunk, options.context)};
  threads.run([&](Rank rank) {
    ranks[static_cast<std::size_t>(rank.value)] =
        std::make_unique<Decoder>(decoder, rank, thread_factory(threads, rank), source);
  });
}

void Generator::World::check(std::span<const Request> requests) const {
  Problems problems;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Request& r = requests[i];
    const std::string where = fmt::format("prompt {}", i + 1);
    if (r.prompt.empty()) problems.add("the prompt holds no token", where, "give some text to continue");
    if (std::ssize(r.prompt) >= options.context && options.when_full == WhenFull::stop) {
      problems.add(fmt::format("the prompt has {} tokens, and prompt and text together may have {}",
                               r.prompt.size(), options.context),
                   where, "shorten it, or let the oldest tokens be forgotten (slide)");
    }
    for (const std::int32_t id : r.prompt) {
      if (id >= 0 && id < model.vocab_size) continue;
      problems.add(fmt::format("token id {} is outside of the vocabulary of {}", id, model.vocab_size), where,
                   "use the tokenizer that belongs to the model");
      break;
    }
    const SampleOptions& s = r.sampling;
    if (!(s.temperature >= 0.0)) {
      problems.add(fmt::format("temperature {} is not a number of 0 or more", s.temperature), where,
                   "use 0 for the likeliest token, about 0.8 for variety");
    }
    if (!(s.top_p > 0.0 && s.top_p <= 1.0)) {
      problems.add(fmt::format("top_p {} is not in (0, 1]", s.top_p), where,
                   "use 1 for all tokens, or about 0.9");
    }
    if (s.top_k < 0) problems.add(fmt::format("top_k {} is below 0", s.top_k), where, "use 0 for all tokens");
  }
  problems.throw_if_any();
}

Generator::Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source,
                     const GeneratorOptions& options)
    : world_(std::make_unique<World>(spec::require_trainable(model, "model"), source, options)) {}

Generator::Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source, std::int64_t context)
    : Generator(model, source, {.context = context, .when_full = WhenFull::slide}) {}

Generator::~Generator() = default;

std::vector<Completion> Generator::run(std::span<const Request> requests, const OnToken& on_token) {
  World& w = *world_;
  w.check(requests);
  std::vector<Request> trimmed(requests.begin(), requests.end());
  for (Request& r : trimmed) {  // sliding: the oldest tokens of a long prompt are forgotten at once
    if (std::ssize(r.prompt) > w.options.context)
      r.prompt.erase(r.prompt.begin(), r.prompt.end() - w.options.context);
  }
  Outcome outcome{.requests = trimmed, .on_token = on_token, .completions = {}, .speed = w.speed};
  outcome.completions.resize(requests.size());
  const std::function<double(std::int64_t)> bytes = [&](std::int64_t p) { return bytes_per_token(p); };
  w.threads.run([&](Rank rank) {
    RankLoop(*w.ranks[static_cast<std::size_t>(rank.value)], w.options, bytes, outcome).run();
  });
  w.speed = outcome.speed;
  return std::move(outcome.completions);
}

std::vector<std::int32_t> Generator::generate(std::span<const std::int32_t> prompt,
                                              const SampleOptions& options, std::int32_t stop) {
  Request request{.prompt = {prompt.begin(), prompt.end()}, .sampling = options, .stop_ids = {}};
  if (stop >= 0) request.stop_ids.push_back(stop);
  return run({&request, 1}).front().tokens;
}

std::vector<float> Generator::next_logits(std::span<const std::int32_t> tokens) {
  World& w = *world_;
  Request request{.prompt = {tokens.begin(), tokens.end()}, .sampling = {}, .stop_ids = {}};
  TESSERA_CHECK(!tokens.empty(), "generation needs a prompt");
  if (std::ssize(tokens) > w.options.context)
    request.prompt.erase(request.prompt.begin(), request.prompt.end() - w.options.context);
  std::vector<float> out;
  w.threads.run([&](Rank rank) {
    Decoder& decoder = *w.ranks[static_cast<std::size_t>(rank.value)];
    GenerationQueue queue({&request, 1}, w.options.batch, w.options.parallel.dp);
    const std::int32_t replica = decoder.model().comms().dp->rank();
    for (queue.admit(); queue.most_waiting_rows() > 0;) {
      const std::int64_t rows = decoder.prefill_rows(queue.most_waiting_rows());
      decoder.prefill(queue.rows_of(replica, rows), rows);
      queue.mark_cached(rows);
    }
    LogitsReader reader(decoder.model().kernels().memory());
    const Tensor logits = reader.read(decoder.decode(queue.last_rows(replica), queue.most_active()));
    if (rank.value != 0) return;
    for (const double z : to_doubles(logits.narrow_rows(0, 1))) out.push_back(static_cast<float>(z));
  });
  return out;
}

const GenerationSpeed& Generator::speed() const {
  return world_->speed;
}
std::int64_t Generator::context() const {
  return world_->options.context;
}
std::int32_t Generator::num_ranks() const {
  return world_->options.parallel.world_size();
}

double Generator::bytes_per_token(std::int64_t position) const {
  const World& w = *world_;
  double bytes = 0.0;
  for (const auto& decoder : w.ranks) {
    const ForwardModel::ActiveBytes active = decoder->model().active_bytes();
    const auto cache = static_cast<double>(decoder->cache().bytes_read(position).value);
    bytes += (active.dense + cache) / w.options.parallel.dp + active.experts / w.options.parallel.edp();
  }
  return bytes;
}

}  // namespace tessera::exec
