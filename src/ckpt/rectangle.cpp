#include "ckpt/rectangle.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "ckpt/checkpoint.h"

namespace tessera::ckpt {

std::int64_t area(const Slice& slice) {
  return slice.size[0] * slice.size[1];
}

std::optional<Slice> intersection(const Slice& a, const Slice& b) {
  Slice common;
  for (std::size_t d = 0; d < 2; ++d) {
    common.begin[d] = std::max(a.begin[d], b.begin[d]);
    common.size[d] = std::min(a.begin[d] + a.size[d], b.begin[d] + b.size[d]) - common.begin[d];
    if (common.size[d] <= 0) return std::nullopt;
  }
  return common;
}

std::string text(const Slice& s) {
  return fmt::format("[{}:{}, {}:{}]", s.begin[0], s.begin[0] + s.size[0], s.begin[1],
                     s.begin[1] + s.size[1]);
}

namespace {

// Inside the tensor, without computing begin + size of numbers that nobody checked.
bool inside(const Slice& piece, const std::array<std::int64_t, 2>& global) {
  for (std::size_t d = 0; d < 2; ++d) {
    if (piece.begin[d] < 0 || piece.size[d] < 1 || piece.size[d] > global[d] ||
        piece.begin[d] > global[d] - piece.size[d])
      return false;
  }
  return true;
}

// Sweeps over the rows with the column intervals of the pieces that the current row meets: disjoint, so each
// newcomer has only two neighbours to hit.
std::string overlap_fault(std::span<const Slice> pieces) {
  std::vector<const Slice*> by_begin, by_end;
  for (const Slice& piece : pieces) {
    by_begin.push_back(&piece);
    by_end.push_back(&piece);
  }
  const auto end_row = [](const Slice* s) { return s->begin[0] + s->size[0]; };
  std::sort(by_begin.begin(), by_begin.end(),
            [](const Slice* a, const Slice* b) { return a->begin[0] < b->begin[0]; });
  std::sort(by_end.begin(), by_end.end(),
            [&](const Slice* a, const Slice* b) { return end_row(a) < end_row(b); });
  std::map<std::int64_t, const Slice*> active;  // by first column
  std::size_t ended = 0;
  for (const Slice* piece : by_begin) {
    for (; ended < by_end.size() && end_row(by_end[ended]) <= piece->begin[0]; ++ended)
      active.erase(by_end[ended]->begin[1]);
    const auto next = active.lower_bound(piece->begin[1]);
    const Slice* hit = nullptr;
    if (next != active.end() && next->first < piece->begin[1] + piece->size[1]) hit = next->second;
    if (next != active.begin()) {
      const Slice* before = std::prev(next)->second;
      if (before->begin[1] + before->size[1] > piece->begin[1]) hit = before;
    }
    if (hit != nullptr) return fmt::format("pieces {} and {} overlap", text(*hit), text(*piece));
    active.emplace(piece->begin[1], piece);
  }
  return "";
}

}  // namespace

std::string cover_fault(std::array<std::int64_t, 2> global, std::span<const Slice> pieces) {
  std::int64_t elements = 0;
  constexpr std::int64_t kMaxElements = std::int64_t{1} << 58;  // bytes of f64 still fit 63 bits
  if (global[0] < 1 || global[1] < 1 || __builtin_mul_overflow(global[0], global[1], &elements) ||
      elements > kMaxElements)
    return fmt::format("global shape [{}, {}] is empty or too large", global[0], global[1]);
  for (const Slice& piece : pieces) {
    if (!inside(piece, global)) {
      return fmt::format("piece at [{}, {}] of size [{}, {}] is outside global shape [{}, {}]",
                         piece.begin[0], piece.begin[1], piece.size[0], piece.size[1], global[0], global[1]);
    }
  }
  if (std::string fault = overlap_fault(pieces); !fault.empty()) return fault;
  std::int64_t covered = 0;  // at most `elements` now that nothing overlaps
  for (const Slice& piece : pieces) covered += area(piece);
  if (covered == elements) return "";
  return fmt::format("the pieces hold {} of {} elements of global shape [{}, {}]", covered, elements,
                     global[0], global[1]);
}

std::int64_t copy_common(const Slice& stored, StoredType type, const std::byte* from, const Slice& wanted,
                         const Tensor& to) {
  const std::optional<Slice> common = intersection(stored, wanted);
  if (!common) return 0;
  // Rows that are contiguous on both sides go as one run.
  const bool whole_rows = common->size[1] == stored.size[1] && common->size[1] == wanted.size[1];
  const std::int64_t runs = whole_rows ? 1 : common->size[0];
  const std::int64_t run = whole_rows ? area(*common) : common->size[1];
  const auto offset = [&](const Slice& in, std::int64_t row) {
    return (row - in.begin[0]) * in.size[1] + common->begin[1] - in.begin[1];
  };
  auto* const out = static_cast<std::byte*>(to.raw());
  for (std::int64_t r = 0; r < runs; ++r) {
    const std::int64_t row = common->begin[0] + r;
    convert(type, from + offset(stored, row) * size_of(type), to.dtype(),
            out + offset(wanted, row) * tensor::size_of(to.dtype()), run);
  }
  return area(*common);
}

std::vector<Piece> flat_pieces(const Piece& whole, std::int64_t begin, Tensor flat) {
  const std::int64_t columns = whole.slice.size[1];
  const std::int64_t end = begin + flat.num_elements();
  TESSERA_CHECK(begin >= 0 && end <= area(whole.slice), "a flat shard lies inside its tensor");
  std::vector<Piece> pieces;
  const auto add = [&](std::int64_t from, std::int64_t rows, std::int64_t width) {
    Piece piece{.name = whole.name, .num_dims = whole.num_dims, .global = whole.global};
    piece.slice.begin = {whole.slice.begin[0] + from / columns, whole.slice.begin[1] + from % columns};
    piece.slice.size = {rows, width};
    const Tensor part = flat.flat().narrow_rows(from - begin, rows * width);
    piece.data = whole.num_dims == 1 ? part : part.reshaped({rows, width});
    pieces.push_back(std::move(piece));
  };
  std::int64_t at = begin;
  while (at < end) {
    const std::int64_t column = at % columns;
    const bool whole_rows = column == 0 && end - at >= columns;
    const std::int64_t rows = whole_rows ? (end - at) / columns : 1;
    const std::int64_t width = whole_rows ? columns : std::min(columns - column, end - at);
    add(at, rows, width);
    at += rows * width;
  }
  return pieces;
}

}  // namespace tessera::ckpt
