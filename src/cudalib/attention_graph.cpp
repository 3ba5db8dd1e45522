// Dims: B sequences of a run, H query heads, G heads of k and v, S rows, D and V columns of a head. S0, P ...
// are
// {B, H, S, S} in the kernel's registers.
#include "cudalib/attention_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/math.h"

namespace tessera::cudalib {
namespace {

using kernels::AttentionShape;
constexpr std::int64_t kBf16 = 2;
constexpr std::int64_t kF32 = 4;
constexpr std::int64_t kGrain = 256;

// {B, heads, S, width} in rows of `row` elements; transposed: {B, heads, width, S} of the same memory.
struct RowsView {
  Dims4 dims;
  Dims4 strides;
};
RowsView rows_view(const AttentionShape& s, std::int64_t heads, std::int64_t width, std::int64_t row) {
  return {{s.batch, heads, s.seq, width}, {s.seq * row, width, row, 1}};
}
RowsView transposed(RowsView v) {
  std::swap(v.dims[2], v.dims[3]);
  std::swap(v.strides[2], v.strides[3]);
  return v;
}

void check_shape(const AttentionShape& s) {
  Problems problems;
  const char* where = "attention by cuDNN";
  for (const auto& [what, value] :
       {std::pair{"batch", s.batch}, {"seq", s.seq}, {"heads", s.heads}, {"kv_heads", s.kv_heads}})
    if (value < 1) problems.add(fmt::format("{}={}", what, value), where, "use at least 1");
  if (s.kv_heads > 0 && s.heads % s.kv_heads != 0)
    problems.add(fmt::format("kv_heads={} does not divide heads={}", s.kv_heads, s.heads), where,
                 "use kv_heads that divide the heads of a rank");
  for (const auto& [what, value] : {std::pair{"head_dim", s.head_dim}, {"v_head_dim", s.v_dim()}})
    if (value < 8 || value % 8 != 0)
      problems.add(fmt::format("{}={} is not a multiple of 8", what, value), where,
                   "use a multiple of 8: rows are read 16 bytes at a time");
  if (s.window < 0) problems.add(fmt::format("window={}", s.window), where, "use 0 for no window");
  problems.throw_if_any();
}

// The parts of the batch that keep dS (2 * H * S^2 bytes a sequence) below the limit.
std::int64_t runs_for(const AttentionShape& s, const AttentionPlanOptions& options) {
  if (options.pass != AttentionPass::backward || options.dq_sum != DqSum::fixed_order ||
      options.workspace_limit.value <= 0)
    return 1;
  const std::int64_t one = kBf16 * s.heads * s.seq * s.seq;
  std::int64_t runs = 1;
  while (runs < s.batch && (s.batch % runs != 0 || s.batch / runs * one > options.workspace_limit.value))
    ++runs;
  return runs;
}

}  // namespace

struct AttentionPlan::Graph {
  CudnnGraph graph;
  AttentionShape shape;
  std::int64_t runs = 1;
  bool sums_dq = false;
  bool has_delta = false;
  std::vector<RoleUid> roles;

  [[nodiscard]] Dims4 scores() const { return {shape.batch, shape.heads, shape.seq, shape.seq}; }
  [[nodiscard]] Dims4 rows() const { return {shape.batch, shape.heads, shape.seq, 1}; }

  GraphTensor real(Role role, Element element, const RowsView& v) {
    const GraphTensor t = graph.tensor(element, v.dims, v.strides);
    roles.push_back({role, t.uid});
    return t;
  }
  GraphTensor row_values(Role role) { return real(role, Element::f32, {rows(), packed_strides(rows())}); }
  GraphTensor score() { return graph.inner(Element::f32, scores()); }

  GraphTensor unary(Pointwise mode, const GraphTensor& x) {
    const GraphTensor y = graph.inner(Element::f32, x.dims);
    graph.pointwise(mode, x, y);
    return y;
  }
  GraphTensor binary(Pointwise mode, const GraphTensor& x, const GraphTensor& b) {
    const GraphTensor y = graph.inner(Element::f32, x.dims);
    graph.pointwise(mode, x, b, y);
    return y;
  }
  GraphTensor reduced(Reduction mode, const GraphTensor& x) {
    const GraphTensor y = graph.inner(Element::f32, rows());
    graph.reduce(mode, x, y);
    return y;
  }

  // scale q k^T, -inf where the mask hides the key. Keeps row >= column, and column + window > row.
  GraphTensor masked_scores(const GraphTensor& q, const GraphTensor& kt, const GraphTensor& scale) {
    const GraphTensor s0 = score();
    graph.matmul(q, kt, s0);
    const GraphTensor s1 = binary(Pointwise::mul, s0, scale);
    const GraphTensor hidden = graph.scalar("mask value", -std::numeric_limits<float>::infinity());
    const GraphTensor causal = masked(s1, hidden, false);
    return shape.window > 0 && shape.window < shape.seq ? masked(causal, hidden, true) : causal;
  }
  GraphTensor masked(const GraphTensor& s, const GraphTensor& hidden, bool by_window) {
    const GraphTensor row = graph.inner(Element::i32, scores());
    const GraphTensor col = graph.inner(Element::i32, scores());
    const GraphTensor keep = graph.inner(Element::boolean, scores());
    graph.index(s, 2, row);
    graph.index(s, 3, col);
    if (by_window) {
      const GraphTensor last =
          binary(Pointwise::add, col, graph.scalar("window", static_cast<float>(shape.window)));
      graph.pointwise(Pointwise::greater, last, row, keep);
    } else {
      graph.pointwise(Pointwise::greater_or_equal, row, col, keep);
    }
    const GraphTensor y = score();
    graph.select(s, hidden, keep, y);
    return y;
  }

  void build_forward(bool keeps_lse) {
    const std::int64_t row = shape.qkv_dim();
    const auto q = real(Role::q, Element::bf16, rows_view(shape, shape.heads, shape.head_dim, row));
    const auto kt =
        real(Role::k, Element::bf16, transposed(rows_view(shape, shape.kv_heads, shape.head_dim, row)));
    const auto v = real(Role::v, Element::bf16, rows_view(shape, shape.kv_heads, shape.v_dim(), row));
    const auto out =
        real(Role::out, Element::bf16, rows_view(shape, shape.heads, shape.v_dim(), shape.out_dim()));
    const auto scale = graph.scalar("scale", static_cast<float>(shape.scale));
    const auto s = masked_scores(q, kt, scale);
    const auto largest = reduced(Reduction::max, s);
    const auto e = unary(Pointwise::exp, binary(Pointwise::sub, s, largest));
    const auto sum = reduced(Reduction::add, e);
    // The pattern wants the logarithm even where nobody reads it.
    const auto lse = keeps_lse ? row_values(Role::lse) : graph.inner(Element::f32, rows());
    graph.pointwise(Pointwise::add, largest, unary(Pointwise::log, sum), lse);
    const auto p = graph.inner(Element::bf16, scores());
    graph.pointwise(Pointwise::div, e, sum, p);
    graph.matmul(p, v, out);
  }

  // {B, H, S, S} as bf16 with rows and columns exchanged.
  GraphTensor turned(const GraphTensor& x) {
    const Dims4 d = scores();
    const GraphTensor y = graph.inner(Element::bf16, d, {d[1] * d[2] * d[3], d[2] * d[3], 1, d[3]});
    graph.view(x, y);
    return y;
  }
  // y = a b, summed over the query heads of each kv head.
  void product_by_groups(const GraphTensor& a, const GraphTensor& b, const GraphTensor& y) {
    if (shape.heads == shape.kv_heads) return graph.matmul(a, b, y);
    const GraphTensor full = graph.inner(Element::bf16, {shape.batch, shape.heads, shape.seq, b.dims[3]});
    graph.matmul(a, b, full);
    graph.reduce(Reduction::add, full, y);
  }

  void build_backward() {
    const std::int64_t row = shape.qkv_dim();
    const RowsView q_rows = rows_view(shape, shape.heads, shape.head_dim, row);
    const RowsView k_rows = rows_view(shape, shape.kv_heads, shape.head_dim, row);
    const RowsView v_rows = rows_view(shape, shape.kv_heads, shape.v_dim(), row);
    const RowsView out_rows = rows_view(shape, shape.heads, shape.v_dim(), shape.out_dim());
    const auto q = real(Role::q, Element::bf16, q_rows);
    const auto kt = real(Role::k, Element::bf16, transposed(k_rows));
    const auto vt = real(Role::v, Element::bf16, transposed(v_rows));
    const auto out = real(Role::out, Element::bf16, out_rows);
    const auto dout = real(Role::dout, Element::bf16, out_rows);
    const auto lse = row_values(Role::lse);
    const auto dq = real(Role::dq, Element::bf16, q_rows);
    const auto dk = real(Role::dk, Element::bf16, k_rows);
    const auto dv = real(Role::dv, Element::bf16, v_rows);

    // The product with one looks idle; without it the library takes 4 B H S^2 more bytes.
    has_delta = true;
    const auto delta = row_values(Role::delta);
    graph.pointwise(Pointwise::mul, reduced(Reduction::add, binary(Pointwise::mul, dout, out)),
                    graph.scalar("one", 1.0F), delta);
    const auto scale = graph.scalar("scale", static_cast<float>(shape.scale));
    const auto p = unary(Pointwise::exp, binary(Pointwise::sub, masked_scores(q, kt, scale), lse));
    product_by_groups(turned(p), dout, dv);
    const auto dp = score();
    graph.matmul(dout, vt, dp);
    const auto ds =
        binary(Pointwise::mul, binary(Pointwise::mul, binary(Pointwise::sub, dp, delta), p), scale);
    product_by_groups(turned(ds), q, dk);
    const auto k = graph.inner(Element::bf16, k_rows.dims, k_rows.strides);
    graph.view(kt, k);
    if (!sums_dq) return graph.matmul(ds, k, dq);
    const auto sum = real(Role::dq_sum, Element::f32, {q_rows.dims, packed_strides(q_rows.dims)});
    graph.matmul(ds, k, sum);
    graph.pointwise(Pointwise::identity, sum, dq);
  }
};

AttentionPlan::Graph AttentionPlan::graph_of(const AttentionShape& shape,
                                             const AttentionPlanOptions& options) {
  check_shape(shape);
  Graph g;
  g.shape = shape;
  g.runs = runs_for(shape, options);
  g.shape.batch = div_exact(shape.batch, g.runs);
  switch (options.pass) {
    case AttentionPass::inference:
      g.build_forward(false);
      break;
    case AttentionPass::forward:
      g.build_forward(true);
      break;
    case AttentionPass::backward:
      g.sums_dq = options.dq_sum == DqSum::atomic;
      g.build_backward();
      break;
  }
  return g;
}

AttentionPlan::AttentionPlan(CudnnPlan plan, const Graph& graph)
    : plan_(std::move(plan)),
      shape_(graph.shape),
      runs_(graph.runs),
      roles_(graph.roles),
      scalars_(graph.graph.scalars()),
      kernels_(kernels_of_plan(plan_.json())),
      workspace_(plan_.workspace()) {
  const std::int64_t rows = shape_.batch * shape_.heads * shape_.seq;
  scratch_ = Bytes(round_up(workspace_.value, kGrain));
  if (graph.has_delta) scratch_ += Bytes(round_up(rows * kF32, kGrain));
  if (graph.sums_dq) scratch_ += Bytes(round_up(rows * shape_.head_dim * kF32, kGrain));
  for (const GraphScalar& scalar : scalars_) {
    if (scalar.name == "one") continue;  // of a helper kernel, which the text leaves out
    const bool taken = std::ranges::any_of(
        kernels_, [&](const PlanKernel& k) { return std::ranges::find(k.uids, scalar.uid) != k.uids.end(); });
    if (!taken)
      throw Error(ErrorKind::unsupported,
                  fmt::format("cuDNN's kernel {} ignores the {} {}",
                              kernels_.empty() ? "" : kernels_.front().name, scalar.name, scalar.value),
                  "attention by cuDNN", "use another version of cuDNN; 9.19 is the one that is checked");
  }
}

AttentionPlan AttentionPlan::build(const AttentionShape& shape, const AttentionPlanOptions& options,
                                   const DeviceProperties& device) {
  const Graph g = graph_of(shape, options);
  return AttentionPlan(g.graph.plan(device), g);
}

AttentionPlan AttentionPlan::restore(const AttentionShape& shape, const AttentionPlanOptions& options,
                                     const DeviceProperties& device, std::string json) {
  const Graph g = graph_of(shape, options);
  return AttentionPlan(CudnnPlan::restore(std::move(json), device), g);
}

void* AttentionPlan::pointer_of(Role role, const AttentionPointers& pointers, std::int64_t run,
                                void* scratch) const {
  const std::int64_t first_row = run * shape_.batch * shape_.seq;
  const auto at = [](void* base, std::int64_t bytes) -> void* {
    TESSERA_CHECK(base != nullptr, "a tensor of the pass has no memory");
    return static_cast<std::byte*>(base) + bytes;
  };
  const auto in_rows = [&](void* base, std::int64_t column) {
    return at(base, (first_row * shape_.qkv_dim() + column) * kBf16);
  };
  const std::int64_t delta_at = round_up(workspace_.value, kGrain);
  const std::int64_t v_at = shape_.q_dim() + shape_.k_dim();
  switch (role) {
    case Role::q:
      return in_rows(pointers.qkv, 0);
    case Role::k:
      return in_rows(pointers.qkv, shape_.q_dim());
    case Role::v:
      return in_rows(pointers.qkv, v_at);
    case Role::dq:
      return in_rows(pointers.dqkv, 0);
    case Role::dk:
      return in_rows(pointers.dqkv, shape_.q_dim());
    case Role::dv:
      return in_rows(pointers.dqkv, v_at);
    case Role::out:
      return at(pointers.out, first_row * shape_.out_dim() * kBf16);
    case Role::dout:
      return at(pointers.dout, first_row * shape_.out_dim() * kBf16);
    case Role::lse:
      return at(pointers.lse, first_row * shape_.heads * kF32);
    case Role::delta:
      return at(scratch, delta_at);
    case Role::dq_sum:
      return at(scratch, delta_at + round_up(shape_.batch * shape_.heads * shape_.seq * kF32, kGrain));
  }
  TESSERA_CHECK(false, "a role of a tensor");
  return nullptr;
}

void AttentionPlan::run(CudnnHandle& handle, const AttentionPointers& pointers, void* scratch) const {
  std::vector<GraphScalar> values = scalars_;  // read by the library during the call
  for (std::int64_t run = 0; run < runs_; ++run) {
    std::vector<Binding> bindings;
    for (const RoleUid& r : roles_) bindings.push_back({r.uid, pointer_of(r.role, pointers, run, scratch)});
    for (GraphScalar& s : values) bindings.push_back({s.uid, &s.value});
    plan_.run(handle, bindings, scratch);
  }
}

std::string attention_plan_key(const AttentionShape& s, const AttentionPlanOptions& options,
                               const DeviceProperties& device) {
  return fmt::format(
      "cudnn={} gpu=\"{}\" sms={} pass={} dq_sum={} limit={} batch={} seq={} heads={} kv_heads={} "
      "head_dim={} "
      "v_head_dim={} window={} scale={}",
      cudnn_version(), device.name, device.sm_count, static_cast<int>(options.pass),
      static_cast<int>(options.dq_sum), options.workspace_limit.value, s.batch, s.seq, s.heads, s.kv_heads,
      s.head_dim, s.v_dim(), s.window, s.scale);
}

}  // namespace tessera::cudalib
