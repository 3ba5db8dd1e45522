// How context parallelism cuts a sequence: into 2 cp chunks, of which rank r holds chunks r and 2 cp - 1 - r
// (zig-zag: an early and a late one, so that causal attention is equal work for all ranks). On the rank the
// two stand behind each other as the rows of the sequence.
//
//   SequenceCut{.length = 16, .cp = 2, .rank = 0}: rows 0..7 are positions 0 1 2 3 12 13 14 15
//   SequenceCut{.length = 16, .cp = 2, .rank = 1}: rows 0..7 are positions 4 5 6 7 8 9 10 11
//
// REQUIRES that 2 cp divides length where cp is above 1. Pure.
#pragma once
#include <cstdint>

namespace tessera {

struct SequenceCut {
  std::int64_t length = 0;
  std::int32_t cp = 1, rank = 0;

  [[nodiscard]] std::int64_t rows() const { return length / cp; }      // of a sequence on this rank
  [[nodiscard]] std::int64_t chunk() const { return rows() / 2; }      // positions; cp above 1
  [[nodiscard]] std::int32_t chunk_of_half(std::int32_t half) const {  // 0: the first rows, 1: the others
    return half == 0 ? rank : 2 * cp - 1 - rank;
  }
  [[nodiscard]] std::int64_t position(std::int64_t row) const {
    if (cp == 1) return row;
    const std::int64_t c = chunk();
    return row < c ? rank * c + row : chunk_of_half(1) * c + row - c;
  }
  // Rows from this one on whose positions follow each other.
  [[nodiscard]] std::int64_t run(std::int64_t row) const {
    if (cp == 1) return length - row;
    return row < chunk() ? chunk() - row : rows() - row;
  }
  // Of whole sequences behind each other: token t of this rank among the tokens of all ranks.
  [[nodiscard]] std::int64_t token(std::int64_t t) const {
    return t / rows() * length + position(t % rows());
  }
};

}  // namespace tessera
