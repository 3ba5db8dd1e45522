#include "schedule/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace tessera::schedule {

namespace {

constexpr std::string_view kMagic = "tessera-schedule";
constexpr std::int32_t kVersion = 1;
constexpr std::size_t kMaxProblems = 20;

// Digits only, no sign, no overflow; the rest stays in `text`.
std::optional<std::int32_t> take_number(std::string_view& text) {
  if (text.empty() || text.front() < '0' || text.front() > '9') return std::nullopt;
  std::int32_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

std::optional<std::int32_t> whole_number(std::string_view text) {
  const auto value = take_number(text);
  return text.empty() ? value : std::nullopt;
}

constexpr std::array kActionKinds = {
    ActionKind::forward,       ActionKind::backward_input, ActionKind::backward_weight,
    ActionKind::backward,      ActionKind::send_forward,   ActionKind::recv_forward,
    ActionKind::send_backward, ActionKind::recv_backward,  ActionKind::reduce_grad};

struct Word {
  std::string_view text;
  std::size_t column;  // from 1
};

std::vector<Word> words_of(std::string_view line) {
  std::vector<Word> words;
  std::size_t at = 0;
  while (at < line.size()) {
    const auto blank = [&](std::size_t i) { return line[i] == ' ' || line[i] == '\t' || line[i] == '\r'; };
    while (at < line.size() && blank(at)) ++at;
    const std::size_t begin = at;
    while (at < line.size() && !blank(at)) ++at;
    if (at > begin) words.push_back({line.substr(begin, at - begin), begin + 1});
  }
  return words;
}

class Reader {
 public:
  explicit Reader(std::string_view source) : source_(source) {}

  Schedule read(std::string_view text) {
    std::size_t at = 0;
    while (at < text.size()) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      ++line_;
      std::string_view line = text.substr(at, end - at);
      line = line.substr(0, line.find('#'));
      const std::vector<Word> words = words_of(line);
      if (!words.empty()) {
        if (!has_header_) {
          header(words);
          problems_.throw_if_any();  // nothing after a wrong header can be judged
        } else {
          rank_line(words);
        }
      }
      if (problems_.list().size() >= kMaxProblems) problems_.throw_if_any();
      at = end + 1;
    }
    if (!has_header_) {
      add("the text is empty", 1, fmt::format("start with '{} {}: kind=1f1b pp=2 ...'", kMagic, kVersion));
    } else if (static_cast<std::int32_t>(schedule_.ranks.size()) != schedule_.pp) {
      add(fmt::format("{} rank lines for pp={}", schedule_.ranks.size(), schedule_.pp), 1,
          "give one line 'rank R: ...' for each pipeline rank");
    }
    problems_.throw_if_any();
    return std::move(schedule_);
  }

 private:
  void add(std::string what, std::size_t column, std::string mend) {
    problems_.add(std::move(what), fmt::format("{}:{}:{}", source_, std::max(line_, 1), column),
                  std::move(mend));
  }

  void version(const Word& word) {
    std::string_view text = word.text;
    const auto number = take_number(text);
    if (!number || text != ":") {
      add(fmt::format("'{}' is not a version", word.text), word.column, fmt::format("write '{}:'", kVersion));
    } else if (*number != kVersion) {
      throw Error(ErrorKind::unsupported,
                  fmt::format("schedule text of version {}; this reader knows {}", *number, kVersion),
                  fmt::format("{}:{}:{}", source_, line_, word.column),
                  "write the schedule again with this version of Tessera, or use a newer one to read it");
    }
  }

  void header(const std::vector<Word>& words) {
    has_header_ = true;
    if (words[0].text != kMagic || words.size() < 2) {
      add(fmt::format("'{}' does not start a schedule", words[0].text), words[0].column,
          fmt::format("start with '{} {}: kind=1f1b pp=2 vpp=1 m=4 placement=loop'", kMagic, kVersion));
      return;
    }
    version(words[1]);
    for (std::size_t i = 2; i < words.size(); ++i) field(words[i]);
    const std::array<std::string_view, 5> names = {"kind", "pp", "vpp", "m", "placement"};
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!seen_[i]) {
        add(fmt::format("'{}' is missing", names[i]), words[0].column,
            fmt::format("add {}=... to the first line", names[i]));
      }
    }
    if (!problems_.empty()) return;
    const std::int64_t stages = std::int64_t{schedule_.pp} * schedule_.vpp;
    if (stages > kMaxCells || stages * schedule_.num_microbatches > kMaxCells) {
      add(fmt::format("pp={} x vpp={} x m={} is more than {} cells", schedule_.pp, schedule_.vpp,
                      schedule_.num_microbatches, kMaxCells),
          words[0].column, "use fewer micro-batches or stages");
    }
    if (schedule_.placement == Placement::vee && schedule_.vpp != 2) {
      add(fmt::format("placement=vee with vpp={}", schedule_.vpp), words[0].column,
          "use vpp=2, or placement=loop");
    }
  }

  void field(const Word& word) {
    const std::size_t equals = word.text.find('=');
    const std::string_view key = word.text.substr(0, equals);
    const std::string_view value = equals == std::string_view::npos ? "" : word.text.substr(equals + 1);
    const auto where = fmt::format("{}:{}:{}", source_, line_, word.column);
    const std::vector<std::string> keys = {"kind", "pp", "vpp", "m", "placement"};
    const auto found = std::find(keys.begin(), keys.end(), key);
    if (equals == std::string_view::npos || found == keys.end()) {
      const std::string near = nearest(key, keys);
      add(fmt::format("unknown field '{}'", word.text), word.column,
          near.empty() ? "use kind=, pp=, vpp=, m=, placement=" : fmt::format("did you mean '{}='?", near));
      return;
    }
    const auto index = static_cast<std::size_t>(found - keys.begin());
    if (seen_[index]) add(fmt::format("'{}' is given twice", key), word.column, "keep one of them");
    seen_[index] = true;
    if (key == "kind") {
      try {
        schedule_.kind = parse_kind(value, where);
      } catch (const Error& e) {
        problems_.add(e.problems()[0].what, e.problems()[0].where, e.problems()[0].mend);
      }
    } else if (key == "placement") {
      if (value == "vee") schedule_.placement = Placement::vee;
      if (value != "vee" && value != "loop") {
        add(fmt::format("unknown placement '{}'", value), word.column, "use loop or vee");
      }
    } else {
      const auto number = whole_number(value);
      if (!number || *number < 1) {
        add(fmt::format("{}='{}' is not a number of 1 or more", key, value), word.column,
            fmt::format("write {}=4, for example", key));
        return;
      }
      (key == "pp" ? schedule_.pp : key == "vpp" ? schedule_.vpp : schedule_.num_microbatches) = *number;
    }
  }

  void rank_line(const std::vector<Word>& words) {
    const auto expected = static_cast<std::int32_t>(schedule_.ranks.size());
    const std::string want = fmt::format("{}:", expected);
    if (words[0].text != "rank" || words.size() < 2 || words[1].text != want) {
      add(fmt::format("expected 'rank {}', got '{}{}{}'", want, words[0].text, words.size() > 1 ? " " : "",
                      words.size() > 1 ? words[1].text : ""),
          words[0].column, fmt::format("start the line with 'rank {}', ranks in ascending order", want));
    }
    if (expected >= schedule_.pp) {
      add(fmt::format("a line for rank {} with pp={}", expected, schedule_.pp), words[0].column,
          "remove the line or raise pp");
    }
    ActionList list;
    for (std::size_t i = 2; i < words.size() && problems_.list().size() < kMaxProblems; ++i) {
      list.push_back(action(words[i]));
    }
    schedule_.ranks.push_back(std::move(list));
  }

  Action action(const Word& word) {
    Action a;
    if (!parse_action(word.text, a)) {
      add(fmt::format("'{}' is not an action", word.text), word.column,
          "write <stage><kind><micro-batch> such as 0F3, 2SEND_B1, or 1REDUCE_GRAD");
      return a;
    }
    if (a.stage.value >= schedule_.num_stages()) {
      add(fmt::format("stage {} of '{}' with {} stages", a.stage.value, word.text, schedule_.num_stages()),
          word.column, fmt::format("use stages 0 to {}", schedule_.num_stages() - 1));
    }
    if (a.microbatch.value >= schedule_.num_microbatches) {
      add(fmt::format("micro-batch {} of '{}' with m={}", a.microbatch.value, word.text,
                      schedule_.num_microbatches),
          word.column, fmt::format("use micro-batches 0 to {}", schedule_.num_microbatches - 1));
    }
    return a;
  }

  std::string source_;
  Problems problems_;
  Schedule schedule_;
  std::int32_t line_ = 0;
  bool has_header_ = false;
  std::array<bool, 5> seen_{};
};

}  // namespace

bool parse_action(std::string_view word, Action& action) {
  const auto stage = take_number(word);
  if (!stage) return false;
  const std::size_t digits = std::min(word.find_first_of("0123456789"), word.size());
  const std::string_view kind = word.substr(0, digits);
  const std::string_view rest = word.substr(digits);
  for (const ActionKind k : kActionKinds) {
    if (name(k) != kind) continue;
    if (k == ActionKind::reduce_grad) {
      action = {k, StageId(*stage), MicrobatchId(0)};
      return rest.empty();
    }
    const auto microbatch = whole_number(rest);
    if (!microbatch) return false;
    action = {k, StageId(*stage), MicrobatchId(*microbatch)};
    return true;
  }
  return false;
}

std::string to_text(const Schedule& s) {
  std::string out = fmt::format("{} {}: kind={} pp={} vpp={} m={} placement={}\n", kMagic, kVersion,
                                name(s.kind), s.pp, s.vpp, s.num_microbatches, name(s.placement));
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    out += fmt::format("rank {}:", r);
    for (const Action& a : s.ranks[r]) {
      out += ' ';
      out += to_text(a);
    }
    out += '\n';
  }
  return out;
}

Schedule from_text(std::string_view text, std::string_view source) {
  return Reader(source).read(text);
}

}  // namespace tessera::schedule
