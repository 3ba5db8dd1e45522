#include "nn/layer.h"

#include <cstring>

namespace tessera::nn {

namespace {

// A group of one: the rows are all here, at most in another place.
void copy_rows(Tensor to, Tensor from) {
  TESSERA_CHECK_EQ(to.bytes().value, from.bytes().value, "rows gathered or scattered in a group of one rank");
  if (to.raw() == from.raw() || to.empty()) return;
  std::memcpy(to.raw(), from.raw(), static_cast<std::size_t>(to.bytes().value));
}

}  // namespace

comm::Communicator& context_group(const Context& ctx, std::int32_t cp) {
  TESSERA_CHECK(ctx.cp != nullptr, "a layer with cut sequences has the group that shares them");
  TESSERA_CHECK_EQ(ctx.cp->size(), cp, "the layer was built for another cp group");
  return *ctx.cp;
}

SequenceCut sequence_cut(const Context& ctx, const Dims& dims) {
  return {.length = dims.seq * dims.cp,
          .cp = dims.cp,
          .rank = dims.cp == 1 ? 0 : context_group(ctx, dims.cp).rank()};
}

Tensor local_rows(const Context& ctx, Tensor full_TH) {
  const std::int64_t t = full_TH.rows() / ctx.tp.size();
  return full_TH.narrow_rows(ctx.tp.rank() * t, t);
}

void gather_rows(Context& ctx, Tensor full_TH, Tensor part_tH) {
  if (ctx.tp.size() == 1) {
    copy_rows(full_TH, part_tH);
  } else {
    ctx.tp.all_gather(full_TH, part_tH);
  }
}

void scatter_sum(Context& ctx, Tensor part_tH, Tensor partial_TH) {
  if (ctx.tp.size() == 1) {
    copy_rows(part_tH, partial_TH);
  } else {
    ctx.tp.reduce_scatter(part_tH, partial_TH);
  }
}

}  // namespace tessera::nn
