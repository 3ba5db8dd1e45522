// tessera eval: how well a model predicts a text.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/inference_flags.h"
#include "exec/scorer.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

// The ids of a text as training saw them: documents end with a form feed, each gets the end token.
std::vector<std::int32_t> ids_of(const EvaluateFlags& f, const std::string& text,
                                 const data::Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  std::int64_t number = 0;
  for (const std::string& document : split(text, '\f')) {
    ++number;
    if (document.empty()) continue;
    std::vector<std::int32_t> part;
    try {
      part = tokenizer.encode(document);
    } catch (const Error& e) {  // it knows the text, not where that came from
      const Problem& p = e.problems().front();
      throw Error(e.kind(), p.what, fmt::format("{}, document {}: {}", f.text, number, p.where), p.mend);
    }
    if (f.begin) ids.push_back(*tokenizer.bos_id());
    ids.insert(ids.end(), part.begin(), part.end());
    if (const auto eos = tokenizer.eos_id()) ids.push_back(*eos);
  }
  return ids;
}

void check_flags(const EvaluateFlags& f, Problems& problems) {
  if (f.context < 0) {
    problems.add(fmt::format("windows of {} tokens", f.context), "--context",
                 "use 0 for what it was trained with");
  }
  if (f.stride < 0)
    problems.add(fmt::format("a stride of {} tokens", f.stride), "--stride", "use 0 for the context");
  if (f.batch < 1 || f.batch > 4096)
    problems.add(fmt::format("{} windows at once", f.batch), "--batch", "use 1 to 4096");
  if (!fs::is_regular_file(f.text))
    problems.add("there is no such text file", f.text, "give the path of a UTF-8 text file");
}

void print(const exec::Score& s, double bits_per_byte, std::int64_t context, std::int64_t stride, bool json) {
  const double nats = s.nats / static_cast<double>(s.scored);
  const double speed = static_cast<double>(s.run) / s.seconds.value;
  if (json) {
    const nlohmann::ordered_json j = {
        {"nats_per_token", nats}, {"perplexity", std::exp(nats)}, {"bits_per_byte", bits_per_byte},
        {"tokens", s.scored},     {"context", context},           {"stride", stride},
        {"tokens_per_s", speed}};
    std::printf("%s\n", j.dump().c_str());
    return;
  }
  const std::string past =
      stride == context
          ? "each begins without a past"
          : fmt::format("{} apart: but for the first, {} tokens of past or more", stride, context - stride);
  std::printf(
      "loss            %.4f  nats per token\n"
      "perplexity      %.2f\n"
      "bits per byte   %.4f  of the text, whatever the tokenizer\n"
      "scored          %lld tokens in windows of %lld; %s\n"
      "speed           %.1f tokens/s\n",
      nats, std::exp(nats), bits_per_byte, static_cast<long long>(s.scored), static_cast<long long>(context),
      past.c_str(), speed);
}

}  // namespace

int evaluate(const EvaluateFlags& f, const Terminal& terminal) {
  require_one_process("eval");
  Problems problems;
  check_folder(f.checkpoint, problems);
  check_flags(f, problems);
  const spec::ParallelSpec parallel = parallel_of(f.ranks, problems);
  problems.throw_if_any();
  const InferenceDevice device = device_of(f.ranks);
  const Weights w = open_weights(f.checkpoint);
  const data::Tokenizer tokenizer = tokenizer_of(f.tokenizer, f.checkpoint, w);
  const std::int64_t context = f.context > 0 ? f.context : w.context;
  if (context > w.model.max_position_embeddings) {
    problems.add(fmt::format("a context of {} tokens is longer than the model's {} positions", context,
                             w.model.max_position_embeddings),
                 "--context", fmt::format("use up to {}, or 0", w.model.max_position_embeddings));
  }
  if (f.begin && !tokenizer.bos_id())
    problems.add("the tokenizer has no begin-of-text token", "--begin", "leave the flag out");
  problems.throw_if_any();
  const std::string text = read_text(f.text);
  const std::vector<std::int32_t> ids = ids_of(f, text, tokenizer);
  exec::Score score;
  in_terms_of_flags([&] {
    const bool watched = terminal.interactive && !f.json;
    const auto progress = [&](std::int64_t done, std::int64_t all) {
      if (!watched) return;
      std::fprintf(stderr, "\r%lld of %lld windows%s", static_cast<long long>(done),
                   static_cast<long long>(all), done == all ? "\n" : "");
    };
    score = exec::score_tokens(w.model, *w.source, ids,
                               {.parallel = parallel,
                                .dtype = device.dtype,
                                .context = context,
                                .stride = f.stride,
                                .batch = f.batch,
                                .compute = device.compute},
                               progress);
  });
  // All tokens, the first one too, at the price of those that were scored.
  const double all = static_cast<double>(ids.size()) / static_cast<double>(score.scored);
  const double bits_per_byte = score.nats * all / std::numbers::ln2 / static_cast<double>(text.size());
  print(score, bits_per_byte, context, f.stride > 0 ? f.stride : context, f.json);
  return 0;
}

}  // namespace tessera::cli
