// Named weights in mapped memory, each as rectangles: what both sources of weights read from. Constant once
// filled; then any number of threads may read.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/safetensors.h"

namespace tessera::ckpt {

struct StoredRectangle {
  layout::Slice slice;
  const std::byte* data = nullptr;  // row-major, not aligned
};

struct StoredWeight {
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};
  StoredType type = StoredType::f32;
  std::vector<StoredRectangle> pieces;  // disjoint
};

class WeightTable {
 public:
  void set_where(std::string where) { where_ = std::move(where); }  // for messages
  void add(const std::string& name, StoredWeight weight);           // the name is new
  void read(const Piece& piece) const;                              // as WeightSource::read
  [[nodiscard]] std::vector<std::string> names() const;             // ascending
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const;

 private:
  [[nodiscard]] const StoredWeight& at(const std::string& name) const;
  std::string where_;
  std::map<std::string, StoredWeight> weights_;
};

}  // namespace tessera::ckpt
