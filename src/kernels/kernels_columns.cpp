// The public function of moves of columns: checks, then the backend.
#include "kernels/checks.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

namespace {

void check_place(const Call& call, std::string_view name, const Tensor& x, const ColumnPlace& place,
                 const ColumnMove& m) {
  const std::int64_t end = place.first + (m.blocks - 1) * place.stride + m.width;
  if (place.first < 0 || place.stride < 0 || end > x.dim(1)) {
    call.fail(fmt::format("{} blocks of {} columns, from {} every {}, are not inside {} {}", m.blocks,
                          m.width, place.first, place.stride, name, shape_text(x)));
  }
}

}  // namespace

void Kernels::move_columns(Tensor dst_TC, Tensor src_TD, const ColumnMove& move) {
  Call call("move_columns", takes_bf16());
  call.leads("dst_TC", dst_TC, 2);
  call.num_dims("src_TD", src_TD, 2);
  call.is("src_TD", src_TD, {dst_TC.rows(), src_TD.dim(1)});
  call.require(move.blocks >= 1 && move.width >= 0, "a move has at least one block");
  call.require(move.blocks == 1 || move.to.stride == 0 || move.to.stride >= move.width,
               "blocks do not overlap where they go");
  check_place(call, "dst_TC", dst_TC, move.to, move);
  check_place(call, "src_TD", src_TD, move.from, move);
  do_move_columns(dst_TC, src_TD, move);
}

}  // namespace tessera::kernels
