#include "data/pretokenizer.h"

#include <utility>

namespace tessera::data {

namespace {
using Range = SplitPattern::Range;

struct Part {
  Range range;
  bool is_match = false;
};

// The whole text as matches and the stretches between them.
std::vector<Part> parts_of(std::size_t size, const std::vector<Range>& matches, bool invert) {
  std::vector<Part> parts;
  std::size_t at = 0;
  for (const Range& m : matches) {
    if (m.begin > at) parts.push_back({{at, m.begin}, invert});
    parts.push_back({m, !invert});
    at = m.end;
  }
  if (at < size) parts.push_back({{at, size}, invert});
  return parts;
}

// A match that follows a stretch grows it; a match after a match stands alone.
std::vector<Range> merged_with_previous(const std::vector<Part>& parts) {
  std::vector<Range> out;
  bool after_match = false;
  for (const Part& p : parts) {
    if (p.is_match && !after_match && !out.empty()) {
      out.back().end = p.range.end;
    } else {
      out.push_back(p.range);
    }
    after_match = p.is_match;
  }
  return out;
}

std::vector<Range> merged_with_next(const std::vector<Part>& parts) {
  std::vector<Range> backwards;
  bool before_match = false;
  for (auto p = parts.rbegin(); p != parts.rend(); ++p) {
    if (p->is_match && !before_match && !backwards.empty()) {
      backwards.back().begin = p->range.begin;
    } else {
      backwards.push_back(p->range);
    }
    before_match = p->is_match;
  }
  return {backwards.rbegin(), backwards.rend()};
}

std::vector<Range> contiguous(const std::vector<Part>& parts) {
  std::vector<Range> out;
  bool last = false;
  for (const Part& p : parts) {
    if (!out.empty() && p.is_match == last) {
      out.back().end = p.range.end;
    } else {
      out.push_back(p.range);
    }
    last = p.is_match;
  }
  return out;
}

std::vector<Range> ranges_of(const std::vector<Part>& parts, SplitBehavior behavior) {
  std::vector<Range> out;
  switch (behavior) {
    case SplitBehavior::isolated:
      for (const Part& p : parts) out.push_back(p.range);
      break;
    case SplitBehavior::removed:
      for (const Part& p : parts) {
        if (!p.is_match) out.push_back(p.range);
      }
      break;
    case SplitBehavior::merged_with_previous:
      return merged_with_previous(parts);
    case SplitBehavior::merged_with_next:
      return merged_with_next(parts);
    case SplitBehavior::contiguous:
      return contiguous(parts);
  }
  return out;
}
}  // namespace

std::vector<std::string_view> cut(std::string_view text, const std::vector<Range>& matches,
                                  SplitBehavior behavior, bool invert) {
  std::vector<std::string_view> out;
  for (const Range& r : ranges_of(parts_of(text.size(), matches, invert), behavior)) {
    out.push_back(text.substr(r.begin, r.end - r.begin));
  }
  return out;
}

Pretokenizer::Pretokenizer(const std::vector<PreStep>& steps) {
  for (const PreStep& s : steps) {
    Step step{.kind = s.kind, .behavior = s.behavior, .invert = s.invert, .pattern = std::nullopt};
    if (s.kind == PreStep::Kind::regex) step.pattern = SplitPattern::regex(s.pattern, s.where);
    if (s.kind == PreStep::Kind::literal) step.pattern = SplitPattern::literal(s.pattern, s.where);
    steps_.push_back(std::move(step));
  }
}

void Pretokenizer::run(std::string_view piece, std::size_t step_index, Scratch& scratch,
                       const Sink& sink) const {
  if (piece.empty()) return;
  if (step_index == steps_.size()) return sink(piece);
  const Step& step = steps_[step_index];
  if (step.kind == PreStep::Kind::prefix_space) {
    if (!piece.starts_with(' ')) piece = scratch.made.emplace_back(" ").append(piece);
    return run(piece, step_index + 1, scratch, sink);
  }
  if (step.behavior == SplitBehavior::isolated) return run_isolated(piece, step_index, scratch, sink);
  std::vector<Range> matches;
  std::size_t at = 0;
  while (const auto match = step.pattern->find(piece, at, scratch.pattern)) {
    matches.push_back(*match);
    at = match->end;
  }
  for (const std::string_view part : cut(piece, matches, step.behavior, step.invert)) {
    run(part, step_index + 1, scratch, sink);
  }
}

// The same as through cut(), without lists: all published tokenizers split so.
void Pretokenizer::run_isolated(std::string_view piece, std::size_t step_index, Scratch& scratch,
                                const Sink& sink) const {
  const SplitPattern& pattern = *steps_[step_index].pattern;
  std::size_t at = 0;
  while (at < piece.size()) {
    const auto match = pattern.find(piece, at, scratch.pattern);
    if (!match) break;
    run(piece.substr(at, match->begin - at), step_index + 1, scratch, sink);
    run(piece.substr(match->begin, match->end - match->begin), step_index + 1, scratch, sink);
    at = match->end;
  }
  run(piece.substr(at), step_index + 1, scratch, sink);
}

}  // namespace tessera::data
