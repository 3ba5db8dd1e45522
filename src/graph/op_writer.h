// Writes operators of one layer and phase with common fields filled in. Inside of this room.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/math.h"
#include "graph/layers.h"

namespace tessera::graph {

// Of an attention kernel on this rank.
struct HeadSizes {
  std::int64_t heads = 0, kv_heads = 0, qk_dim = 0, v_dim = 0;
  std::int64_t window = 0;  // 0: none
};

// (query, key) pairs of one sequence that mask and window keep, of the queries of one cp rank.
[[nodiscard]] inline std::int64_t kept_pairs(const SequenceCut& cut, std::int64_t window) {
  const std::int64_t widest = window > 0 ? window : cut.length;
  const auto below = [&](std::int64_t n) {  // of the queries before position n
    const std::int64_t w = widest < n ? widest : n;
    return w * (w + 1) / 2 + (n - w) * w;
  };
  std::int64_t pairs = 0;
  for (std::int64_t row = 0; row < cut.rows(); row += cut.run(row)) {
    pairs += below(cut.position(row) + cut.run(row)) - below(cut.position(row));
  }
  return pairs;
}

class OpWriter {
 public:
  // `count`: how often the numbers occur in a step.
  OpWriter(OpList& out, const Sizes& s, std::string prefix)
      : out_(out), s_(s), prefix_(std::move(prefix)), count_(s.num_microbatches) {}

  // The numbers that follow are sums over `n` micro-batches.
  void per_microbatches(std::int64_t n) { count_ = div_exact(s_.num_microbatches, n); }

  // y[m, n] (+)= a[m, k] b[k, n]
  void gemm(std::string_view name, std::int64_t m, std::int64_t n, std::int64_t k) {
    Op& op = add(name, OpKind::gemm);
    op.flops = Flops(2 * m * n * k);
    op.gemm = {.m = m, .n = n, .k = k, .groups = 1};
    op.bytes_moved = Bytes((m * n + m * k + n * k) * s_.element);
  }
  // One product an expert; `rows` in all of them, which is m (forward, input gradient) or k (weight gradient)
  // of a group on average.
  enum class RowsAre : std::uint8_t { m, k };
  void grouped_gemm(std::string_view name, std::int64_t groups, RowsAre rows_are, std::int64_t rows,
                    std::int64_t a, std::int64_t b) {
    Op& op = add(name, OpKind::gemm);
    op.flops = Flops(2 * rows * a * b);
    const std::int64_t each = (rows + groups - 1) / groups;
    op.gemm = rows_are == RowsAre::m ? GemmShape{.m = each, .n = a, .k = b, .groups = groups}
                                     : GemmShape{.m = a, .n = b, .k = each, .groups = groups};
    op.bytes_moved = Bytes((rows * (a + b) + groups * a * b) * s_.element);
  }
  void memory(std::string_view name, std::int64_t elements_moved) {
    add(name, OpKind::memory).bytes_moved = Bytes(elements_moved * s_.element);
  }
  // `times`: 1 forward, 2 backward. Reads q k v (backward: out and dout too), writes out (backward: dqkv).
  void attention(std::string_view name, std::int64_t times, const HeadSizes& h) {
    Op& op = add(name, OpKind::attention);
    const std::int64_t pairs = kept_pairs(s_.cut(), h.window);
    op.flops = Flops(times * 2 * s_.batch * h.heads * (h.qk_dim + h.v_dim) * pairs);
    op.attention = {.batch = s_.batch,
                    .heads = h.heads,
                    .kv_heads = h.kv_heads,
                    .queries = s_.seq,
                    .keys = static_cast<double>(pairs) / static_cast<double>(s_.seq),
                    .qk_dim = h.qk_dim,
                    .v_dim = h.v_dim};
    const std::int64_t out = h.heads * h.v_dim;
    const std::int64_t qkv = h.heads * h.qk_dim + h.kv_heads * (h.qk_dim + h.v_dim);
    op.bytes_moved = Bytes(s_.tokens() * (times == 1 ? qkv + out : 2 * qkv + 2 * out) * s_.element);
  }
  // k and v of the other cp ranks go round the ring; `times`: 1 forward, 2 backward, with their gradients.
  void ring(std::int64_t times, const HeadSizes& h) {
    if (s_.cp == 1) return;
    const std::int64_t messages = times * (s_.cp - 1);
    const std::int64_t width = h.kv_heads * (h.qk_dim + h.v_dim);
    collective("ring", Axis::cp, Call::send, messages * s_.tokens() * width * s_.element);
    out_.back().calls = messages * s_.num_microbatches;
    out_.back().beside = Beside::attention;
  }
  // The last operator makes again what forward had: not model FLOPs.
  void recomputed() { out_.back().recomputed = true; }
  void collective(std::string_view name, Axis axis, Call call, std::int64_t bytes) {
    Op& op = add(name, OpKind::collective);
    op.axis = axis;
    op.call = call;
    op.bytes_sent = Bytes(bytes);
    op.calls = s_.num_microbatches;
  }
  // Norm of this rank's rows, and the statistics it keeps.
  void norm(std::string_view name) {
    memory(name, 2 * s_.local_tokens() * s_.hidden);
    keep(s_.local_tokens());
    if (s_.layer_norm) keep(s_.local_tokens());
  }
  // all_gather / reduce_scatter of the rows of the tp group; part: elements of this rank.
  void tp_gather(std::string_view name, std::int64_t part) { tp_call(name, Call::all_gather, part); }
  void tp_scatter(std::string_view name, std::int64_t part) { tp_call(name, Call::reduce_scatter, part); }
  // The same beside the GEMM that it feeds or that makes it: with tp_comm_overlap a message for each part.
  void tp_gather_beside(std::string_view name, std::int64_t part) { by_parts(name, Call::all_gather, part); }
  void tp_scatter_beside(std::string_view name, std::int64_t part) {
    by_parts(name, Call::reduce_scatter, part);
  }

  // The last operator keeps a tensor of so many elements (of `element` bytes).
  void keep(std::int64_t elements) { keep(elements, s_.element); }
  void keep(std::int64_t elements, std::int64_t element) {
    constexpr std::int64_t kAlignment = 64;
    out_.back().bytes_kept += Bytes(round_up(elements * element, kAlignment));
  }

 private:
  void tp_call(std::string_view name, Call call, std::int64_t part) {
    if (s_.tp > 1) collective(name, Axis::tp, call, (s_.tp - 1) * part * s_.element);
  }
  void by_parts(std::string_view name, Call call, std::int64_t part) {
    tp_call(name, s_.tp_comm_overlap ? Call::send : call, part);
    if (s_.tp > 1 && s_.tp_comm_overlap) out_.back().calls *= s_.tp - 1;
  }
  Op& add(std::string_view name, OpKind kind) {
    Op op;
    op.name = prefix_ + std::string(name);
    op.kind = kind;
    op.count = count_;
    out_.push_back(std::move(op));
    return out_.back();
  }

  OpList& out_;
  const Sizes& s_;
  std::string prefix_;
  std::int64_t count_;
};

}  // namespace tessera::graph
