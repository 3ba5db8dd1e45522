#include "exec/run_state.h"

#include <algorithm>
#include <string>

namespace tessera::exec {

namespace {

ckpt::Piece piece_of(const StoredParam& p, std::string_view prefix, Tensor data) {
  return {.name = std::string(prefix) + p.spec.name,
          .num_dims = p.spec.num_dims,
          .global = p.spec.global,
          .slice = p.spec.slice,
          .data = data};
}

// The part of a parameter inside the owned range of its bucket, out of `owned` (flat, the owned range).
std::vector<ckpt::Piece> owned_part(const StoredParam& p, const optim::Bucket& bucket,
                                    std::string_view prefix, Tensor owned) {
  const std::int64_t begin = std::max(p.offset, bucket.owned_begin());
  const std::int64_t end =
      std::min(p.offset + p.spec.num_elements(), bucket.owned_begin() + bucket.owned_size());
  if (begin >= end) return {};
  return ckpt::flat_pieces(piece_of(p, prefix, {}), begin - p.offset,
                           owned.narrow_rows(begin - bucket.owned_begin(), end - begin));
}

constexpr std::string_view kFrequency = "moe.previous_frequency";

}  // namespace

std::vector<ckpt::Piece> owned_pieces(RankEngine& engine) {
  std::vector<ckpt::Piece> out;
  const auto append = [&](std::vector<ckpt::Piece> pieces) {
    for (ckpt::Piece& p : pieces) out.push_back(std::move(p));
  };
  for (const StoredParam& p : engine.store().params()) {
    if (p.spec.buffer) {
      if (p.spec.owner) out.push_back(piece_of(p, "", p.value));
      continue;
    }
    const optim::Bucket& b = engine.store().buckets()[static_cast<std::size_t>(p.bucket)];
    if (p.spec.tied_copy || p.spec.duplicate || (!b.sharded && b.group->rank() != 0)) continue;
    append(owned_part(p, b, "", b.owned_value()));
    append(owned_part(p, b, "optimizer.m.", b.m));
    append(owned_part(p, b, "optimizer.v.", b.v));
  }
  const Tensor frequencies = engine.routing_frequencies();
  if (engine.rank().value == 0 && !frequencies.empty()) {
    out.push_back({.name = std::string(kFrequency),
                   .num_dims = 2,
                   .global = {frequencies.dim(0), frequencies.dim(1)},
                   .slice = {.begin = {0, 0}, .size = {frequencies.dim(0), frequencies.dim(1)}},
                   .data = frequencies});
  }
  return out;
}

void load_state(RankEngine& engine, const ckpt::WeightSource& source, StateParts parts) {
  const auto read = [&](const ckpt::Piece& piece) {
    on_host(*engine.kernels().memory(), piece.data, tensor::Access::write, [&](const Tensor& here) {
      ckpt::Piece copy = piece;
      copy.data = here;
      source.read(copy);
    });
  };
  engine.store().write_values([&](const StoredParam& p) { source.read(piece_of(p, "", p.value)); });
  for (const StoredParam& p : engine.store().params()) {
    if (parts == StateParts::weights || p.spec.buffer) continue;
    const optim::Bucket& b = engine.store().buckets()[static_cast<std::size_t>(p.bucket)];
    if (!b.updated) continue;
    for (const ckpt::Piece& m : owned_part(p, b, "optimizer.m.", b.m)) read(m);
    for (const ckpt::Piece& v : owned_part(p, b, "optimizer.v.", b.v)) read(v);
  }
  const Tensor frequencies = engine.routing_frequencies();
  // A run whose balancing did not look back has written none: then the first step goes on from uniform ones.
  const std::vector<std::string> names = frequencies.empty() ? std::vector<std::string>() : source.names();
  const bool stored = std::ranges::find(names, kFrequency) != names.end();
  if (parts == StateParts::weights_and_optimizer && stored) {
    source.read({.name = std::string(kFrequency),
                 .num_dims = 2,
                 .global = {frequencies.dim(0), frequencies.dim(1)},
                 .slice = {.begin = {0, 0}, .size = {frequencies.dim(0), frequencies.dim(1)}},
                 .data = frequencies});
    engine.use_routing_frequencies();
  }
  engine.weights_changed();
}

ckpt::Piece numbers_piece(std::string_view name, std::vector<double>& values) {
  const std::int64_t n = std::ssize(values);
  return {.name = std::string(name),
          .num_dims = 1,
          .global = {n, 1},
          .slice = {.begin = {0, 0}, .size = {n, 1}},
          .data = Tensor(values.data(), tensor::DType::f64, {n})};
}

std::vector<double> load_numbers(const ckpt::WeightSource& source, std::string_view name) {
  const std::vector<std::string> names = source.names();
  if (std::ranges::find(names, name) == names.end()) return {};
  std::vector<double> values(static_cast<std::size_t>(source.shape(std::string(name)).at(0)));
  source.read(numbers_piece(name, values));
  return values;
}

}  // namespace tessera::exec
