#include "frameworks/torchtitan_stages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <functional>
#include <numeric>

#include "base/math.h"
#include "base/text.h"

namespace tessera::frameworks {

namespace {

constexpr const char* kSchedule = "parallelism.pipeline_parallel_schedule";
constexpr const char* kParts = "parallelism.module_fqns_per_model_part";
constexpr const char* kPerStage = "parallelism.pipeline_parallel_layers_per_stage";
constexpr const char* kFirstLess = "parallelism.pipeline_parallel_first_stage_less_layers";
constexpr const char* kLastLess = "parallelism.pipeline_parallel_last_stage_less_layers";

struct Name {
  std::string_view ours, theirs;
  std::string_view note;  // of those that are priced as another
};
// Of torch.distributed.pipelining.
constexpr std::array<Name, 6> kNames = {
    {{"1f1b", "1F1B", ""},
     {"interleaved", "Interleaved1F1B", ""},
     {"gpipe", "GPipe", ""},
     {"zb-v", "ZBVZeroBubble", ""},
     {"interleaved", "InterleavedZeroBubble", "InterleavedZeroBubble is priced as Interleaved1F1B"},
     {"zb-v", "DualPipeV", "DualPipeV is priced as ZBVZeroBubble"}}};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

bool many_stages(std::string_view schedule) {
  return schedule == "interleaved" || schedule == "zb-v";
}

// As torchtitan deals layers: the ends count as so many layers more, the first stages take the remainder.
std::vector<std::int32_t> dealt(std::int32_t layers, std::int32_t stages, std::int32_t first_less,
                                std::int32_t last_less) {
  const std::int32_t all = layers + first_less + last_less;
  std::vector<std::int32_t> out(static_cast<std::size_t>(stages), all / stages);
  for (std::int32_t s = 0; s < all % stages; ++s) ++out[static_cast<std::size_t>(s)];
  out.front() -= first_less;
  out.back() -= last_less;
  return out;
}

void read_parts(Arguments& args, const Argument& parts, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  std::vector<std::int32_t> layers;
  for (const std::string& part : parts.values) {
    std::int32_t n = 0;
    for (const std::string& word : split(part, ',')) n += word.starts_with("layers.") ? 1 : 0;
    layers.push_back(n);
  }
  const auto stages = static_cast<std::int32_t>(layers.size());
  const std::int32_t sum = std::accumulate(layers.begin(), layers.end(), 0);
  if (stages == 0 || stages % p.pp != 0) {
    in.problems.add(fmt::format("{} model parts, and pp is {}", stages, p.pp), args.where(kParts),
                    fmt::format("write a multiple of {} parts", p.pp));
  } else if (sum != in.launch.job.model.num_hidden_layers) {
    in.problems.add(fmt::format("the model parts name {} layers, the model has {}", sum,
                                in.launch.job.model.num_hidden_layers),
                    args.where(kParts), "name each layer once");
  } else {
    p.vpp = stages / p.pp;
    p.stage_layers = layers;
  }
}

}  // namespace

void write_torchtitan_stages(const Launch& l, Settings& out) {
  const spec::ParallelSpec& p = l.job.parallel;
  if (p.pp == 1) return;
  const auto name = std::ranges::find(kNames, p.schedule, &Name::ours);
  const std::string_view word = name != kNames.end() ? name->theirs : p.vpp > 1 ? "Interleaved1F1B" : "1F1B";
  out.text("", kSchedule, std::string(word));
  out.number("", "parallelism.pipeline_parallel_microbatch_size", l.job.train.micro_batch_size);
  const std::int32_t stages = p.pp * p.vpp, layers = l.job.model.num_hidden_layers;
  if (p.stage_layers.empty()) {
    out.number("", kPerStage, div_ceil(layers, stages));
    out.number("", kFirstLess, 0);
    out.number("", kLastLess, 0);
    return;
  }
  std::vector<std::string> parts;
  std::int32_t next = 0;
  for (std::size_t s = 0; s < p.stage_layers.size(); ++s) {
    std::vector<std::string> words;
    if (s == 0) words.emplace_back("tok_embeddings");
    for (std::int32_t i = 0; i < p.stage_layers[s]; ++i) words.push_back(fmt::format("layers.{}", next++));
    if (s + 1 == p.stage_layers.size()) {
      words.emplace_back("norm");
      words.emplace_back("output");
    }
    parts.push_back(join(words, ","));
  }
  out.list.push_back({"", kParts, ValueKind::lists, std::move(parts)});
}

void read_torchtitan_stages(Arguments& args, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  const std::string given = args.word(kSchedule, in.problems).value_or("1F1B");
  const auto name =
      std::ranges::find_if(kNames, [&](const Name& n) { return lower(n.theirs) == lower(given); });
  const auto first = args.integer(kFirstLess, in.problems), last = args.integer(kLastLess, in.problems);
  const auto per = args.integer(kPerStage, in.problems);
  const Argument* parts = args.find(kParts);
  if (p.pp == 1) return;
  if (name == kNames.end()) {
    std::vector<std::string> known;
    for (const Name& n : kNames) known.emplace_back(n.theirs);
    const std::string near = nearest(given, known);
    in.problems.add(fmt::format("the schedule {} is not one that can be priced", given),
                    args.where(kSchedule),
                    (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(known, ", "));
    return;
  }
  p.schedule = name->ours;
  if (!name->note.empty()) in.notes.emplace_back(name->note);
  p.vpp = many_stages(p.schedule) ? 2 : 1;
  if (parts != nullptr && parts->text() != "null") {
    read_parts(args, *parts, in);
  } else {
    const std::int32_t layers = in.launch.job.model.num_hidden_layers;
    const auto less = [](const std::optional<std::int64_t>& v) {
      return static_cast<std::int32_t>(std::clamp<std::int64_t>(v.value_or(1), 0, 1000));
    };
    if (per && *per > 0) {
      const std::int64_t stages = div_ceil(std::int64_t{layers} + less(first) + less(last), *per);
      if (stages % p.pp != 0) {
        in.problems.add(
            fmt::format("{} layers a stage make {} stages, which pp {} does not divide", *per, stages, p.pp),
            args.where(kPerStage), "choose layers a stage that make a multiple of pp");
        return;
      }
      p.vpp = static_cast<std::int32_t>(stages / p.pp);
    }
    if (layers + less(first) + less(last) >= p.pp * p.vpp)
      p.stage_layers = dealt(layers, p.pp * p.vpp, less(first), less(last));
  }
  if (std::ranges::adjacent_find(p.stage_layers, std::not_equal_to<>()) == p.stage_layers.end())
    p.stage_layers.clear();
  if (many_stages(p.schedule) != (p.vpp > 1)) {
    in.problems.add(
        fmt::format("{} stages a rank with schedule {}", p.vpp, given), args.where(kSchedule),
        p.vpp > 1 ? "use Interleaved1F1B, or one stage a rank" : "use 1F1B, or two stages a rank");
  }
}

}  // namespace tessera::frameworks
