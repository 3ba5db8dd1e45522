#include "exec/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "exec/rope.h"
#include "exec/stage.h"

namespace tessera::exec {

struct Generator::Model {
  spec::ModelSpec spec;
  std::int64_t context;
  layout::Layout layout;
  std::unique_ptr<kernels::Kernels> kernels = kernels::make_cpu();
  Communicators comms;
  Arena arena, scratch;
  std::unique_ptr<ParamStore> store;
  std::unique_ptr<Stage> stage;
  Tensor cos, sin, ids, targets;

  Model(const spec::ModelSpec& m, std::int64_t c)
      : spec(m), context(c), layout(layout::make_layout(m, {}, layout::Placement::loop)) {
    const CommFactory none = [](std::span<const Rank>, std::string_view label) {
      return comm::make_self(label);
    };
    comms = make_communicators(layout, Rank(0), m.tie_word_embeddings, none);
    Arena counting;
    build(counting);
    const Bytes scratch_bytes = stage->scratch_bytes();
    arena = Arena(counting.used());
    scratch = Arena(scratch_bytes);
    build(arena);
    fill_rope_tables(spec, cos, sin);
    std::ranges::fill(targets.span<std::int32_t>(), -1);
  }

  void build(Arena& a) {
    store = std::make_unique<ParamStore>(
        layout::parameters(spec, layout, Rank(0)),
        StoreOptions{.dtype = DType::f32, .training = false, .tied = spec.tie_word_embeddings}, comms,
        *kernels, a);
    cos = a.take(DType::f32, {context, spec.rotated_dim() / 2});
    sin = a.take(DType::f32, {context, spec.rotated_dim() / 2});
    ids = a.take(DType::i32, {context});
    targets = a.take(DType::i32, {context});
    stage = std::make_unique<Stage>(
        Stage::Options{
            .model = spec,
            .recipe = {},
            .cut = layout.stages.at(0),
            .id = StageId(0),
            .dims = {.dtype = DType::f32, .batch = 1, .seq = context, .hidden = spec.hidden_size, .tp = 1}},
        *store, comms, cos, sin);
    stage->reserve_live({}, a);
    stage->reserve_deferred(a);
  }
};

Generator::Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source, std::int64_t context)
    : model_(std::make_unique<Model>(spec::require_trainable(model, "model"), context)) {
  for (const StoredParam& p : model_->store->params()) {
    if (p.shares_value_of >= 0) continue;
    source.read({.name = p.spec.name,
                 .num_dims = p.spec.num_dims,
                 .global = p.spec.global,
                 .slice = p.spec.slice,
                 .data = p.value});
  }
  model_->store->pack(*model_->kernels);
}

Generator::~Generator() = default;

std::vector<float> Generator::next_logits(std::span<const std::int32_t> tokens) {
  Model& m = *model_;
  TESSERA_CHECK(!tokens.empty(), "generation needs a prompt");
  const auto seen = std::min<std::int64_t>(std::ssize(tokens), m.context);
  std::span<std::int32_t> ids = m.ids.span<std::int32_t>();
  std::ranges::fill(ids, 0);  // attention is causal: what follows the last token changes nothing
  std::ranges::copy(tokens.last(static_cast<std::size_t>(seen)), ids.begin());
  nn::Context ctx{.kernels = *m.kernels, .tp = *m.comms.tp, .scratch = m.scratch, .weights = {}};
  m.stage->forward(ctx, {.live = 0, .deferred = 0, .gradient = 0}, {m.ids, m.targets});
  const Tensor row = m.stage->head().logits(0).narrow_rows(seen - 1, 1);
  const std::span<float> logits = row.span<float>();
  return {logits.begin(), logits.end()};
}

namespace {

std::int32_t sample(const std::vector<float>& logits, const SampleOptions& o, std::uint64_t counter) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](std::int32_t i) { return logits[static_cast<std::size_t>(i)]; };
  const auto better = [&](std::int32_t a, std::int32_t b) { return at(a) != at(b) ? at(a) > at(b) : a < b; };
  if (o.temperature <= 0.0) return *std::ranges::min_element(order, better);
  const auto all = static_cast<std::int32_t>(order.size());
  const auto kept = o.top_k > 0 ? std::min(o.top_k, all) : all;
  std::ranges::partial_sort(order, order.begin() + kept, better);
  order.resize(static_cast<std::size_t>(kept));
  std::vector<double> weights;
  double sum = 0.0;
  for (const std::int32_t i : order) {
    weights.push_back(
        std::exp((static_cast<double>(at(i)) - static_cast<double>(at(order[0]))) / o.temperature));
    sum += weights.back();
  }
  double u = uniform(o.seed, stream_of("sample"), counter) * sum;
  for (std::size_t i = 0; i < order.size(); ++i) {
    u -= weights[i];
    if (u < 0.0) return order[i];
  }
  return order.back();
}

}  // namespace

std::vector<std::int32_t> Generator::generate(std::span<const std::int32_t> prompt,
                                              const SampleOptions& options, std::int32_t stop) {
  std::vector<std::int32_t> tokens(prompt.begin(), prompt.end());
  for (std::int64_t i = 0; i < options.max_new_tokens; ++i) {
    const std::int32_t next = sample(next_logits(tokens), options, static_cast<std::uint64_t>(i));
    if (next == stop) break;
    tokens.push_back(next);
  }
  tokens.erase(tokens.begin(), tokens.begin() + std::ssize(prompt));
  return tokens;
}

}  // namespace tessera::exec
