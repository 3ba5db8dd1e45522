#include "nn/layer.h"

namespace tessera::nn {

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
    ctx.kernels.memory()->copy(full_TH, part_tH);  // all here, at most in another place
  } else {
    ctx.tp.all_gather(full_TH, part_tH);
  }
}

void scatter_sum(Context& ctx, Tensor part_tH, Tensor partial_TH) {
  if (ctx.tp.size() == 1) {
    ctx.kernels.memory()->copy(part_tH, partial_TH);
  } else {
    ctx.tp.reduce_scatter(part_tH, partial_TH);
  }
}

}  // namespace tessera::nn
