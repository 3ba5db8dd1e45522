// How many layers stand on which stage, from the arguments that say so.
#include "frameworks/megatron_stages.h"

#include <fmt/format.h>

#include <charconv>
#include <numeric>

#include "base/text.h"

namespace tessera::frameworks {

namespace {

constexpr std::size_t kLongest = 1 << 16;  // characters of a layout written out

// "Et*3|(tt|)*2,L" written out: "Ettt|tt|tt|L". Empty: it cannot be read.
class LayoutText {
 public:
  explicit LayoutText(std::string_view text) : text_(text) {}
  std::string expanded() {
    std::string out;
    return sequence(out, 0) && at_ == text_.size() ? out : std::string();
  }

 private:
  bool sequence(std::string& out, std::int32_t depth) {
    while (at_ < text_.size() && text_[at_] != ')') {
      std::string item;
      if (!one(item, depth)) return false;
      std::int64_t times = 1;
      if (at_ < text_.size() && text_[at_] == '*' && !count(times)) return false;
      if (out.size() + item.size() * static_cast<std::size_t>(times) > kLongest) return false;
      for (std::int64_t i = 0; i < times; ++i) out += item;
    }
    return true;
  }
  bool one(std::string& item, std::int32_t depth) {
    const char c = text_[at_++];
    if (c == ',' || c == ' ') return true;
    if (c == '(') {
      if (depth > 8 || !sequence(item, depth + 1) || at_ >= text_.size()) return false;
      ++at_;
      return true;
    }
    item = c;
    return c == 'E' || c == 'L' || c == 't' || c == 'm' || c == '|';
  }
  bool count(std::int64_t& times) {
    const char* begin = text_.data() + at_ + 1;
    const auto [end, code] = std::from_chars(begin, text_.data() + text_.size(), times);
    at_ = static_cast<std::size_t>(end - text_.data());
    return code == std::errc() && times >= 0 && times <= static_cast<std::int64_t>(kLongest);
  }
  std::string_view text_;
  std::size_t at_ = 0;
};

void from_layout(Arguments& args, const std::string& text, Interpretation& in) {
  constexpr const char* kName = "pipeline-model-parallel-layout";
  spec::ParallelSpec& p = in.launch.job.parallel;
  const std::string all = LayoutText(text).expanded();
  if (all.empty()) {
    in.problems.add(fmt::format("the layout \"{}\" cannot be read", text), args.where(kName),
                    "write stages as \"Et*3|(tt|)*29,L\": E, L, t and m for embedding, loss, layers and MTP");
    return;
  }
  std::vector<std::int32_t> layers;
  for (const std::string& stage : split(all, '|'))
    layers.push_back(static_cast<std::int32_t>(std::count(stage.begin(), stage.end(), 't')));
  const auto n = static_cast<std::int32_t>(layers.size());
  const std::int32_t sum = std::accumulate(layers.begin(), layers.end(), 0);
  if (p.pp < 1 || n % p.pp != 0) {
    in.problems.add(fmt::format("the layout has {} stages, and pp is {}", n, p.pp), args.where(kName),
                    fmt::format("write a multiple of {} stages", p.pp));
  } else if (sum != in.launch.job.model.num_hidden_layers) {
    in.problems.add(
        fmt::format("the layout has {} layers, the model {}", sum, in.launch.job.model.num_hidden_layers),
        args.where(kName), "write one t for each layer");
  } else {
    p.vpp = n / p.pp;
    p.stage_layers = layers;
  }
}

struct Ends {
  std::int32_t first = 0, last = 0;  // layers of the first and last rank; 0: as the others
  std::int32_t less_first = 0, less_last = 0;
};

std::int32_t small(std::optional<std::int64_t> v) {
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(v.value_or(0), 0, 1 << 20));
}

// Layers when embedding and loss count as one, or the ends have counts of their own.
void uneven(Arguments& args, const Ends& e, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  const std::int32_t n = p.pp * p.vpp, layers = in.launch.job.model.num_hidden_layers;
  if (n < 2) return;
  std::vector<std::int32_t> out(static_cast<std::size_t>(n), 0);
  if (e.first > 0 || e.last > 0) {
    const std::int32_t ends = (e.first > 0 ? 1 : 0) + (e.last > 0 ? 1 : 0);
    const std::int32_t rest = layers - e.first - e.last, ranks = p.pp - ends;
    const std::int32_t a = e.first > 0 ? e.first : 0, b = e.last > 0 ? e.last : 0;
    if (rest < 0 || (ranks == 0 && rest != 0) || (ranks > 0 && rest % (ranks * p.vpp) != 0) ||
        a % p.vpp != 0 || b % p.vpp != 0) {
      const char* name =
          e.first > 0 ? "decoder-first-pipeline-num-layers" : "decoder-last-pipeline-num-layers";
      in.problems.add(fmt::format("{} layers without the {} of the ends do not divide over {} x {} stages",
                                  layers, e.first + e.last, ranks, p.vpp),
                      args.where(name), "choose ends that leave a multiple");
      return;
    }
    for (std::int32_t s = 0; s < n; ++s) {
      const std::int32_t rank = s % p.pp;
      const std::int32_t own = rank == 0 && a > 0          ? a
                               : rank == p.pp - 1 && b > 0 ? b
                                                           : rest / std::max(ranks, 1);
      out[static_cast<std::size_t>(s)] = own / p.vpp;
    }
  } else {
    const std::int32_t counted = layers + e.less_first + e.less_last;
    if (counted % n != 0) {
      in.problems.add(
          fmt::format("{} layers, embedding and loss counted, do not divide over {} stages", counted, n),
          args.where("account-for-embedding-in-pipeline-split"), "choose another pp or vpp");
      return;
    }
    for (std::int32_t& s : out) s = counted / n;
    out.front() -= e.less_first;
    out.back() -= e.less_last;
  }
  p.stage_layers = std::move(out);
}

void virtual_stages(Arguments& args, const Ends& ends, Interpretation& in) {
  constexpr const char* kPer = "num-layers-per-virtual-pipeline-stage";
  spec::ParallelSpec& p = in.launch.job.parallel;
  const std::int32_t per = small(args.integer(kPer, in.problems));
  const std::int32_t count = small(args.integer("num-virtual-stages-per-pipeline-rank", in.problems));
  if (count > 0) p.vpp = count;
  if (per <= 0 || p.pp < 1) return;
  const std::int32_t layers = in.launch.job.model.num_hidden_layers + ends.less_first + ends.less_last;
  if (layers % (p.pp * per) != 0) {
    in.problems.add(fmt::format("--{} {} x pp {} does not divide {} layers", kPer, per, p.pp, layers),
                    args.where(kPer), fmt::format("use a divisor of {}", layers / std::max(1, p.pp)));
    return;
  }
  p.vpp = layers / (p.pp * per);
}

}  // namespace

void read_megatron_stages(Arguments& args, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  std::vector<std::string> ways;
  for (const char* name : {"num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank",
                           "pipeline-model-parallel-layout"}) {
    if (args.has(name)) ways.push_back(args.spelt(name));
  }
  if (ways.size() > 1) {
    in.problems.add(join(ways, " and ") + " contradict each other", args.where(ways.back().substr(2)),
                    "keep one of them");
    return;
  }
  const Ends ends{.first = small(args.integer("decoder-first-pipeline-num-layers", in.problems)),
                  .last = small(args.integer("decoder-last-pipeline-num-layers", in.problems)),
                  .less_first = args.on("account-for-embedding-in-pipeline-split", in.problems) ? 1 : 0,
                  .less_last = args.on("account-for-loss-in-pipeline-split", in.problems) ? 1 : 0};
  if (const auto text = args.word("pipeline-model-parallel-layout", in.problems)) {
    from_layout(args, *text, in);
  } else {
    virtual_stages(args, ends, in);
    if (ends.first > 0 || ends.last > 0 || ends.less_first > 0 || ends.less_last > 0) uneven(args, ends, in);
  }
  const bool even = std::ranges::adjacent_find(p.stage_layers, std::not_equal_to<>()) == p.stage_layers.end();
  if (even) p.stage_layers.clear();
  if (p.vpp > 1 && p.pp == 1) {
    in.problems.add(fmt::format("{} virtual stages without a pipeline (pp 1)", p.vpp),
                    args.where(ways.empty() ? "pipeline-model-parallel-size" : ways.front().substr(2)),
                    "use --pipeline-model-parallel-size of 2 or more, or remove the virtual stages");
  }
  p.schedule = p.vpp > 1 ? "interleaved" : "1f1b";
}

}  // namespace tessera::frameworks
