#include "ckpt/weight_table.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "ckpt/rectangle.h"

namespace tessera::ckpt {

void WeightTable::add(const std::string& name, StoredWeight weight) {
  TESSERA_CHECK(weights_.emplace(name, std::move(weight)).second, "a weight is added once");
}

std::vector<std::string> WeightTable::names() const {
  std::vector<std::string> list;
  for (const auto& [name, weight] : weights_) list.push_back(name);
  return list;
}

const StoredWeight& WeightTable::at(const std::string& name) const {
  const auto found = weights_.find(name);
  if (found != weights_.end()) return found->second;
  std::string mend = "use the config.json that belongs to these weights";
  if (name.starts_with("optimizer.")) {
    mend = "start with a fresh optimizer state: imported weights have none";
  } else if (const std::string near = nearest(name, names()); !near.empty()) {
    mend = fmt::format("the nearest name there is \"{}\"; {}", near, mend);
  }
  throw Error(ErrorKind::io, fmt::format("no tensor \"{}\" among {}", name, weights_.size()), where_,
              std::move(mend));
}

std::vector<std::int64_t> WeightTable::shape(const std::string& name) const {
  const StoredWeight& weight = at(name);
  return {weight.global.begin(), weight.global.begin() + weight.num_dims};
}

void WeightTable::read(const Piece& piece) const {
  const StoredWeight& weight = at(piece.name);
  if (weight.num_dims != piece.num_dims || weight.global != piece.global) {
    throw Error(ErrorKind::io,
                fmt::format("tensor \"{}\" has shape [{}], [{}] is wanted", piece.name,
                            fmt::join(weight.global.begin(), weight.global.begin() + weight.num_dims, ", "),
                            fmt::join(piece.global.begin(), piece.global.begin() + piece.num_dims, ", ")),
                where_, "use the config.json that belongs to these weights");
  }
  TESSERA_CHECK_EQ(piece.data.num_elements(), area(piece.slice), piece.name);
  std::int64_t done = 0;
  for (const StoredRectangle& stored : weight.pieces)
    done += copy_common(stored.slice, weight.type, stored.data, piece.slice, piece.data);
  if (done != area(piece.slice)) {
    throw Error(ErrorKind::io,
                fmt::format("tensor \"{}\" is there for {} of the {} elements of {}", piece.name, done,
                            area(piece.slice), text(piece.slice)),
                where_, "ask for a part of the tensor that it has");
  }
}

}  // namespace tessera::ckpt
