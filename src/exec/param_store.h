// ParamStore: the parameters of one rank in flat memory. Parameters of one stage and gradient group lie in
// buckets, last layer first (the order in which backward completes them); q, k, v and gate, up are adjacent,
// so that a layer sees them as one weight. Values, gradients, optimizer state and packed copies come from one
// arena.
//
// ZeRO-2: whole gradients live in two buffers for each gradient group, which its buckets use in turn; ZeRO-3:
// values too, a bucket a unit, none packed. A tied embedding and its copy have buffers of their own.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "exec/communicators.h"
#include "kernels/kernels.h"
#include "layout/layout.h"
#include "nn/layer.h"
#include "optim/bucket.h"
#include "tensor/arena.h"

namespace tessera::exec {

using tensor::Arena;
using tensor::ArenaSize;
using tensor::DType;
using tensor::Tensor;

// Where one parameter of the rank lives.
struct StoredParam {
  layout::ParamSpec spec;
  Tensor value, grad;  // [rows, columns] of the slice
  std::int32_t bucket =
      -1;  // index into buckets(); -1: a buffer, which has a value of its own and no gradient
  std::int64_t offset = 0;  // in elements of the bucket
  // A tied copy on the rank of the embedding shares its value (own gradient, no state); else -1.
  std::int32_t shares_value_of = -1;
};

struct StoreOptions {
  DType dtype = DType::f32;  // of activations; values, gradients and state have tensor::stats_of it
  std::int64_t bucket_bytes = std::int64_t{4} << 20;
  std::int32_t zero_stage = 0;
  std::int32_t num_layers = 0;  // of the main model; MTP layers stand behind it, in the unit of the head
  bool training = true;         // false: values only, no gradients and no optimizer state
  bool tied = false;            // the model ties embedding and head: each of the two gets a bucket of its own
};

// Position of a parameter in forward order: -1 embedding, l transformer layer, kHeadPosition final norm and
// head.
inline constexpr std::int32_t kEmbeddingPosition = -1;
inline constexpr std::int32_t kHeadPosition = 1 << 30;
[[nodiscard]] std::int32_t position_of(const layout::ParamSpec& spec);

enum class Packing : std::uint8_t { none, packed };

struct StoreBytes {  // what the store took from the arena
  Bytes values, gradients, optimizer, packed;
};

class ParamStore {
 public:
  // `kernels` says how large packed copies are. With a counting arena all tensors are null and only bytes()
  // means anything. comms, kernels and arena outlive the store.
  ParamStore(std::vector<layout::ParamSpec> specs, const StoreOptions& options, const Communicators& comms,
             const kernels::Kernels& kernels, Arena& arena);

  [[nodiscard]] const std::vector<StoredParam>& params() const { return params_; }
  [[nodiscard]] std::vector<optim::Bucket>& buckets() { return buckets_; }
  // The unit of a stage that uses a parameter: its position, but of MTP layers the head's.
  [[nodiscard]] std::int32_t unit_of(const layout::ParamSpec& spec) const;
  [[nodiscard]] std::int32_t num_layers() const { return options_.num_layers; }
  [[nodiscard]] const StoreBytes& bytes() const { return bytes_; }

  // The layer's view of adjacent parameters [first, first + count) of params() as one weight (rows
  // concatenated), with its packed copy if asked for; who asks again gets the same copy.
  [[nodiscard]] nn::Param view(std::size_t first, std::size_t count, Packing packing);

  // The positions of a bucket, in backward order: W at `first` is the first to write into it, W at `last`
  // completes it. With ZeRO-3 they are equal.
  struct Span {
    StageId stage;
    std::int32_t first, last;
    std::int32_t grad_buffer = -1;      // ZeRO-2: buckets with the same number share their whole gradient
    std::int32_t value_buffer = -1;     // ZeRO-3: likewise
    std::int32_t shares_value_of = -1;  // the bucket that has the values of a tied copy
  };
  [[nodiscard]] const std::vector<Span>& spans() const { return spans_; }  // parallel to buckets()

  // Calls visit(index) for each bucket that is complete when the last weight gradient at `position` of
  // `stage` is done.
  template <class Visit>
  void visit_completed(StageId stage, std::int32_t position, Visit visit) {
    for (std::size_t b = 0; b < spans_.size(); ++b) {
      if (spans_[b].stage == stage && spans_[b].last == position) visit(b);
    }
  }

  void initialise(std::uint64_t seed, double range);  // normal(0, range) or ones, by (name, global element)
  // write(p) puts the value of each parameter into p.value, which the host addresses (not of tied copies,
  // which share another's).
  void write_values(const std::function<void(const StoredParam&)>& write);
  // The same memory under other names: between slots experts changed places. REQUIRES equal shapes in the
  // same order.
  void rename(std::vector<layout::ParamSpec> specs);
  void zero_grads(kernels::Kernels& kernels);
  void pack(kernels::Kernels& kernels);  // after every change of values
  void pack_bucket(kernels::Kernels& kernels, std::size_t bucket);
  // Adds the gradients of a tied embedding's two uses; both ranks of the tie must call it. After reduce,
  // before the norm.
  void sum_tied(kernels::Kernels& kernels, Communicator& tie);

 private:
  [[nodiscard]] DType value_dtype() const { return tensor::stats_of(options_.dtype); }
  using Members = std::vector<std::size_t>;  // indices into params_
  void make_buckets(StageId stage, layout::GradGroup group);
  void close_bucket(Members& members);
  void share_buffers();
  void take_memory(std::size_t bucket);

  StoreOptions options_;
  const Communicators& comms_;
  const kernels::Kernels& kernels_;
  Arena& arena_;
  std::vector<StoredParam> params_;
  std::vector<optim::Bucket> buckets_;
  std::vector<Span> spans_;
  std::vector<Members> members_;  // of each bucket
  std::vector<Tensor> grad_buffers_, value_buffers_;
  struct PackedView {
    std::size_t first, count;
    kernels::Weight weight;
  };
  std::vector<PackedView> packed_;
  StoreBytes bytes_;
};

}  // namespace tessera::exec
