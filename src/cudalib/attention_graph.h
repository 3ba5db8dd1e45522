// Attention of the training engine as cuDNN plans: bf16, causal, grouped query heads, sliding window, heads
// of v that differ from those of q and k, on packed rows q | k | v (kernels::AttentionShape).
//
//   const AttentionPlan forward = AttentionPlan::build(shape, {.pass = AttentionPass::forward}, device);
//   forward.scratch();  // bytes to keep for it in the arena
//   forward.run(handle, {.qkv = qkv, .out = out, .lse = lse}, scratch);
//
// Built, compiled by the library and checked for an H100 without one. NOT EXECUTED YET: neither the numbers
// nor the speed have been seen, no figure is known. Attention sinks are not in these graphs.
//
// A plan whose kernels do not take the graph's scalars (scale, mask value, window) would compute something
// else without a word; build() looks for them in the plan's text and throws Error{unsupported}.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/quantity.h"
#include "cudalib/cudnn_graph.h"
#include "kernels/kernels.h"

namespace tessera::cudalib {

enum class AttentionPass : std::uint8_t {
  inference,  // out
  forward,    // out and lse
  backward,   // dqkv
};
enum class DqSum : std::uint8_t {
  atomic,       // f32 sums by atomic additions: fast, the last bits differ from run to run
  fixed_order,  // the same bits each run; 2 * heads * seq^2 bytes of workspace a sequence
};

struct AttentionPlanOptions {
  AttentionPass pass = AttentionPass::forward;
  DqSum dq_sum = DqSum::atomic;  // of the backward pass
  // Backward by fixed_order goes over the batch in equal parts so that the workspace stays below this; one
  // sequence is the least. 0: the whole batch at once.
  Bytes workspace_limit{0};
};

// Device memory, 16-byte aligned; what the pass does not name is not read. lse is [batch, heads, seq] f32,
// natural logarithm (the CPU kernels' is [T, heads]).
struct AttentionPointers {
  void* qkv = nullptr;   // [T, q | k | v] bf16
  void* out = nullptr;   // [T, heads * v_dim] bf16; read by backward
  void* lse = nullptr;   // written by forward, read by backward
  void* dout = nullptr;  // as out
  void* dqkv = nullptr;  // as qkv; overwritten
};

class AttentionPlan {
 public:
  // Throws Error{config} when a row is not a multiple of 8 elements or the heads do not divide, and
  // Error{unsupported} when cuDNN has no kernel.
  [[nodiscard]] static AttentionPlan build(const kernels::AttentionShape& shape,
                                           const AttentionPlanOptions& options,
                                           const DeviceProperties& device);
  // With the plan's text of a build() for the same arguments (CudnnPlan::json).
  [[nodiscard]] static AttentionPlan restore(const kernels::AttentionShape& shape,
                                             const AttentionPlanOptions& options,
                                             const DeviceProperties& device, std::string json);

  [[nodiscard]] Bytes workspace() const { return workspace_; }  // cuDNN's part of the scratch
  [[nodiscard]] Bytes scratch() const { return scratch_; }      // with delta and the f32 sums of dq
  [[nodiscard]] std::int64_t sequences_per_run() const { return shape_.batch; }
  [[nodiscard]] std::int64_t runs() const { return runs_; }
  [[nodiscard]] const std::string& kernel_name() const { return kernels_.front().name; }
  [[nodiscard]] const std::vector<PlanKernel>& kernels() const { return kernels_; }
  [[nodiscard]] const std::vector<GraphScalar>& scalars() const { return scalars_; }
  [[nodiscard]] std::string json() const { return plan_.json(); }

  // Queues the pass on the handle's stream. scratch: 256-byte aligned. Not executed yet.
  void run(CudnnHandle& handle, const AttentionPointers& pointers, void* scratch) const;

 private:
  enum class Role : std::uint8_t { q, k, v, out, lse, dout, dq, dk, dv, delta, dq_sum };
  struct RoleUid {
    Role role;
    std::int64_t uid;
  };
  struct Graph;
  AttentionPlan(CudnnPlan plan, const Graph& graph);
  [[nodiscard]] static Graph graph_of(const kernels::AttentionShape& shape,
                                      const AttentionPlanOptions& options);
  [[nodiscard]] void* pointer_of(Role role, const AttentionPointers& pointers, std::int64_t run,
                                 void* scratch) const;

  CudnnPlan plan_;
  kernels::AttentionShape shape_{};  // of one run
  std::int64_t runs_ = 1;
  std::vector<RoleUid> roles_;
  std::vector<GraphScalar> scalars_;
  std::vector<PlanKernel> kernels_;
  Bytes workspace_{0};
  Bytes scratch_{0};
};

// Equal for equal plans: cuDNN's version, the GPU's name and SM count, shape and options, as one line of
// text.
// What a stored plan is filed under.
[[nodiscard]] std::string attention_plan_key(const kernels::AttentionShape& shape,
                                             const AttentionPlanOptions& options,
                                             const DeviceProperties& device);

}  // namespace tessera::cudalib
