#include "graph/block_writer.h"

#include <algorithm>

#include "base/math.h"

namespace tessera::graph {

namespace {
constexpr std::int64_t kElement = 2;   // bytes of an activation
constexpr std::int64_t kGradient = 4;  // bytes of an accumulated weight gradient
// Host work of a grouped operator: a call a group inside of it, an eighth of an operator each.
constexpr std::int64_t kCallsPerOperator = 8;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
}  // namespace

BlockWriter::BlockWriter(BlockWork& out, const spec::ModelSpec& model, const Cut& cut,
                         const Practice& practice)
    : out_(out), practice_(practice), norm_(model.norm), precision_(cut.precision), s_() {
  const std::int64_t queries = ceil_div(cut.sequence_length, cut.cp);
  const std::int64_t tokens = cut.micro_batch_size * queries;
  const bool sp = cut.sequence_parallel && cut.tp > 1;
  s_ = {.batch = cut.micro_batch_size,
        .seq = cut.sequence_length,
        .queries = queries,
        .tokens = tokens,
        .local_tokens = sp ? ceil_div(tokens, cut.tp) : tokens,
        .hidden = model.hidden_size,
        .tp = cut.tp,
        .cp = cut.cp,
        .ep = cut.ep,
        .etp = cut.etp,
        .sequence_parallel = sp};
}

Op& BlockWriter::add(OpList& list, const char* name, OpKind kind, std::uint32_t modules) {
  Op& op = list.emplace_back();
  op.name = name;
  op.kind = kind;
  op.modules = modules;
  return op;
}

bool BlockWriter::quantizes() const {
  return spec::is_narrow(precision_);
}

// Read twice (largest value, then cast), written as rows and as columns.
void BlockWriter::quantize(OpList& list, std::int64_t elements, std::int64_t groups, std::uint32_t modules) {
  Op& op = add(list, "quantize", OpKind::memory, modules);
  op.bytes_moved = Bytes(elements * (2 * kElement + 2));
  constexpr std::int64_t kKernels = 2;
  op.kernels = static_cast<std::int32_t>(kKernels * (1 + groups / kCallsPerOperator));
}

void BlockWriter::linear(const char* name, std::int64_t rows, std::int64_t out, std::int64_t in,
                         std::uint32_t modules, bool low_precision, std::int64_t groups) {
  const auto product = [&](OpList& list, GemmShape shape, std::int64_t bytes, std::uint32_t bits) {
    Op& op = add(list, name, OpKind::gemm, bits);
    op.gemm = shape;
    op.flops = Flops(2 * shape.m * shape.n * shape.k * shape.groups);
    op.bytes_moved = Bytes(bytes);
    op.low_precision = low_precision;
    if (groups > 1)
      op.kernels =
          static_cast<std::int32_t>(practice_.grouped_gemm ? 1 + groups / kCallsPerOperator : groups);
  };
  const std::int64_t m = ceil_div(rows, groups);
  const std::int64_t rest = kElement * (rows * (in + out) + groups * in * out);
  if (low_precision && quantizes()) quantize(forward(), rows * in, groups, modules);
  product(forward(), {.m = m, .n = out, .k = in, .groups = groups}, rest, modules);
  if (low_precision && quantizes()) quantize(backward_input(), rows * out, groups, 0);
  product(backward_input(), {.m = m, .n = in, .k = out, .groups = groups}, rest, 0);
  const std::int64_t weights = groups * in * out;
  if (practice_.fused_accumulation) {
    product(backward_weight(), {.m = out, .n = in, .k = m, .groups = groups},
            kElement * rows * (in + out) + 2 * kGradient * weights, 0);
    return;
  }
  // The list is reversed in the end: the sum comes after the product.
  add(backward_weight(), "accumulate", OpKind::memory, 0).bytes_moved =
      Bytes(weights * (kElement + 2 * practice_.gradient_bytes));
  product(backward_weight(), {.m = out, .n = in, .k = m, .groups = groups}, rest, 0);
}

void BlockWriter::elementwise(const char* name, std::int64_t forward_elements, std::int64_t backward_elements,
                              bool fused, std::int32_t eager, std::uint32_t modules) {
  const std::int32_t kernels = fused || practice_.compiled ? 1 : eager;
  const auto write = [&](OpList& list, std::int64_t elements, std::uint32_t bits) {
    if (elements == 0) return;
    Op& op = add(list, name, OpKind::memory, bits);
    // An unfused chain passes its values through memory between kernels.
    op.bytes_moved = Bytes(kElement * elements * (kernels == 1 ? 2 : kernels + 1) / 2);
    op.kernels = kernels;
  };
  write(forward(), forward_elements, modules);
  write(backward_input(), backward_elements, 0);
}

// Fused: read, written; backward reads input and gradient, writes one. A chain of elementwise kernels works
// in f32: cast, square, mean, scale by the root, cast back, times the weight; bytes an element of each.
void BlockWriter::norm(const char* name, std::int64_t rows, std::int64_t width, std::uint32_t modules) {
  const std::int64_t n = rows * width;
  if (practice_.fused_norm || practice_.compiled) {
    elementwise(name, 2 * n, 4 * n, true, 1, modules);
    return;
  }
  constexpr std::int64_t kForwardBytes = 6 + 8 + 4 + 8 + 6 + 4;
  constexpr std::int64_t kBackwardBytes = 2 * kForwardBytes;
  constexpr std::int32_t kKernels = 6;
  Op& forward_op = add(forward(), name, OpKind::memory, modules);
  forward_op.bytes_moved = Bytes(n * kForwardBytes);
  forward_op.kernels = kKernels;
  Op& backward_op = add(backward_input(), name, OpKind::memory, 0);
  backward_op.bytes_moved = Bytes(n * kBackwardBytes);
  backward_op.kernels = 2 * kKernels;
}

void BlockWriter::attention(const AttentionShape& shape, double full_keys) {
  constexpr auto kCore = static_cast<std::uint32_t>(Module::core_attn);
  const double pairs = static_cast<double>(shape.batch * shape.heads * shape.queries);
  if (practice_.flash_attention) {
    const double products = 2.0 * pairs * shape.keys * static_cast<double>(shape.qk_dim + shape.v_dim);
    const auto write = [&](OpList& list, double times, std::uint32_t bits) {
      Op& op = add(list, times > 1.0 ? "attention backward" : "attention", OpKind::attention, bits);
      op.attention = shape;
      op.flops = Flops(static_cast<std::int64_t>(times * products));
      op.bytes_moved = Bytes(static_cast<std::int64_t>(
          (times > 1.0 ? 2.0 : 1.0) * kElement *
          static_cast<double>(shape.batch * shape.queries * (shape.heads + shape.kv_heads) *
                              (shape.qk_dim + shape.v_dim))));
    };
    write(forward(), 1.0, kCore);
    write(backward_input(), 2.5, 0);
    return;
  }
  // Two batched products over the whole square, and a softmax whose scores stand in memory: read and written
  // by scale, mask and softmax (one fused kernel) and by dropout.
  const auto square = [&](OpList& list, const char* name, std::int64_t n, std::int64_t k,
                          std::uint32_t bits) {
    Op& op = add(list, name, OpKind::gemm, bits);
    op.gemm = {.m = shape.queries, .n = n, .k = k, .groups = shape.batch * shape.heads, .batched = true};
    op.flops = Flops(2 * op.gemm.m * n * k * op.gemm.groups);
    op.bytes_moved = Bytes(kElement * op.gemm.groups * (op.gemm.m * n + op.gemm.m * k + n * k));
  };
  const auto keys = static_cast<std::int64_t>(full_keys);
  const auto scores = static_cast<std::int64_t>(pairs * full_keys);
  square(forward(), "scores", keys, shape.qk_dim, kCore);
  // One kernel reads and writes; a chain works in f32: scale, mask, cast, softmax, cast back.
  const bool fused = practice_.fused_softmax;
  elementwise("softmax", (fused ? 2 : 16) * scores, (fused ? 3 : 14) * scores, true, 1, kCore);
  if (practice_.dropout) elementwise("attention dropout", scores * 5 / 2, scores * 5 / 2, true, 1, kCore);
  square(forward(), "context", shape.v_dim, keys, kCore);
  square(backward_input(), "context dgrad", keys, shape.v_dim, 0);
  square(backward_input(), "context wgrad", shape.v_dim, keys, 0);
  square(backward_input(), "scores dgrad", shape.qk_dim, keys, 0);
  square(backward_input(), "scores wgrad", shape.qk_dim, keys, 0);
}

void BlockWriter::collective(OpList& list, const char* name, Axis axis, Call call, std::int64_t sent,
                             Beside beside, std::uint32_t modules) {
  Op& op = add(list, name, OpKind::collective, modules);
  op.axis = axis;
  op.call = call;
  op.bytes_sent = Bytes(sent);
  op.calls = 1;
  op.beside = beside;
}

void BlockWriter::enter_tp(std::int64_t width) {
  if (s_.tp == 1) return;
  const std::int64_t part = (s_.tp - 1) * s_.tokens / s_.tp * width * kElement;
  const Beside overlap = practice_.tp_overlap ? Beside::gemm : Beside::nothing;
  const Beside backward = practice_.tp_backward_overlap ? Beside::gemm : Beside::nothing;
  if (s_.sequence_parallel) {
    collective(forward(), "tp gather", Axis::tp, Call::all_gather, part, overlap);
    // The stored input is a part of the sequence: it is gathered again for the weight gradient, beside the
    // input gradient's product; the input gradient is scattered beside the weight gradient's.
    collective(backward_input(), "tp gather input", Axis::tp, Call::all_gather, part, backward);
    collective(backward_input(), "tp scatter gradient", Axis::tp, Call::reduce_scatter, part, backward);
  } else {
    collective(backward_input(), "tp sum gradient", Axis::tp, Call::all_reduce, 2 * part, backward);
  }
}

void BlockWriter::leave_tp(std::int64_t width) {
  if (s_.tp == 1) return;
  const std::int64_t part = (s_.tp - 1) * s_.tokens / s_.tp * width * kElement;
  const Beside overlap = practice_.tp_overlap ? Beside::gemm : Beside::nothing;
  if (s_.sequence_parallel) {
    collective(forward(), "tp scatter", Axis::tp, Call::reduce_scatter, part, overlap);
    collective(backward_input(), "tp gather gradient", Axis::tp, Call::all_gather, part, overlap);
  } else {
    collective(forward(), "tp sum", Axis::tp, Call::all_reduce, 2 * part, Beside::nothing);
  }
}

void BlockWriter::all_to_all(const char* name, std::int64_t rows, std::int64_t forward_width, Beside beside,
                             std::uint32_t modules) {
  if (s_.ep == 1) return;
  const std::int64_t sent = rows * (s_.ep - 1) / s_.ep * forward_width;
  collective(forward(), name, Axis::ep, Call::all_to_all_v, sent, beside, modules);
  collective(backward_input(), name, Axis::ep, Call::all_to_all_v,
             sent / forward_width * s_.hidden * kElement, beside);
}

}  // namespace tessera::graph
