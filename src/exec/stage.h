// Stage: the layers of one pipeline stage on one rank, with their slots. It knows nothing of schedules and
// messages: the rank engine names the slots. Units are what recomputation and bucket readiness count: the
// embedding, a transformer layer (attention and feed-forward), the head.
//
// Slots: `live` holds what a micro-batch keeps from F to the end of W; `deferred` what I hands to W (with
// full recomputation also the recomputed values); `gradient` is the buffer that I transforms in place from d
// loss / d output to d loss / d input.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "exec/communicators.h"
#include "exec/mtp.h"
#include "exec/param_store.h"
#include "layout/layout.h"
#include "moe/moe_layer.h"
#include "nn/latent_attention.h"
#include "nn/layers.h"
#include "spec/job.h"

namespace tessera::exec {

struct SlotCounts {
  std::int32_t live = 1;
  std::int32_t deferred = 1;
  std::int32_t gradient = 1;
  // Only fused backward (B) runs: W of a unit follows its I at once, so all units share the deferred memory.
  bool fused = true;
};

struct StageSlot {
  std::int32_t live, deferred, gradient;
};

// Called after the weight gradients of a unit, with its ParamStore position. Capture at most two pointers:
// then it holds them without allocating.
using UnitDone = std::function<void(std::int32_t position)>;

struct Mixture {
  std::int32_t layer;  // of the model
  moe::MoeLayer* moe;
};

// Told of each MoE layer's forward pass (not of recomputation) with the slot that holds its choices, on the
// rank's thread.
class RoutingListener {
 public:
  virtual ~RoutingListener() = default;
  virtual void on_routed(const Mixture& mixture, const nn::Microbatch& mb, std::int32_t saved_slot) = 0;
};

enum class UnitPass : std::uint8_t { forward, backward_input, backward_weight, backward };
inline constexpr std::int32_t kNoUnit = -2;

// Told before each pass of a unit, on the thread that runs it: what the unit needs must be there when it
// returns. next: the position of the unit that the same pass takes after it, kNoUnit: none.
class UnitGuard {
 public:
  virtual ~UnitGuard() = default;
  virtual void before_unit(StageId stage, UnitPass pass, std::int32_t position, std::int32_t next) = 0;
};

class Stage {
 public:
  using Mixture = exec::Mixture;
  struct Options {
    spec::ModelSpec model;
    spec::Recipe recipe;
    layout::StageCut cut;
    StageId id;
    nn::Dims dims;
    std::int32_t etp = 1;
    std::int64_t units_in_group = 1;  // see moe::Options
    double aux_loss_scale = 1.0;      // of the coefficient, by its normalisation
    bool cached = false;              // rows are single tokens with a cache (nn::Microbatch::cache)
    moe::DispatchForm dispatch = moe::DispatchForm::all_to_all;
    std::vector<std::vector<std::int32_t>> expert_of_slot = {};  // layout::Layout
  };
  // cos, sin: rotary tables; they and comms outlive the stage.
  Stage(const Options& options, ParamStore& store, const Communicators& comms, Tensor cos_SP, Tensor sin_SP);

  // Set-up, in this order: the slots of live micro-batches and gradients, then those from I to W.
  void reserve_live(const SlotCounts& counts, Arena& arena);
  void reserve_deferred(Arena& arena);
  [[nodiscard]] ArenaSize scratch_size() const;

  [[nodiscard]] const layout::StageCut& cut() const { return options_.cut; }
  [[nodiscard]] StageId id() const { return options_.id; }
  [[nodiscard]] Tensor input(std::int32_t live) const;         // [t, H]; empty with the embedding
  [[nodiscard]] Tensor output(std::int32_t live) const;        // [t, H]; empty with the head
  [[nodiscard]] Tensor gradient(std::int32_t gradient) const;  // [t, H]
  // Both REQUIRE the head, and that what is queued is done.
  [[nodiscard]] double loss(std::int32_t live) const;
  [[nodiscard]] double mtp_loss(std::int32_t live) const;  // weighted terms of the MTP layers; 0 without any
  // Queues losses_2 (f64) += these two.
  void add_losses(nn::Kernels& kernels, Tensor losses_2, std::int32_t live) const;
  [[nodiscard]] const nn::Head& head() const;
  // The residual stream of this rank's rows before unit u, u = 0 .. num_units(); empty where there is none.
  [[nodiscard]] std::size_t num_units() const { return units_.size(); }
  [[nodiscard]] std::int32_t first_position() const { return units_.front().position; }
  [[nodiscard]] std::int32_t last_position() const { return units_.back().position; }
  [[nodiscard]] Tensor boundary(std::int32_t live, std::size_t unit) const;
  [[nodiscard]] std::span<const Mixture> mixtures() const { return mixtures_; }
  void set_routing_listener(RoutingListener* listener) { listener_ = listener; }  // null: nobody listens
  void set_unit_guard(UnitGuard* guard) { guard_ = guard; }                       // null: all is there

  void forward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb);
  void backward_input(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb);
  void backward_weight(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb, const UnitDone& done);
  void backward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb, const UnitDone& done);

 private:
  struct Unit {
    std::int32_t position;
    bool recomputed;
    std::vector<std::unique_ptr<nn::Layer>> layers;  // one, or attention and feed-forward
    std::vector<Tensor> mid;                         // between two layers, per saved slot
  };
  class Taker;
  void add_embedding(Taker& params);
  void add_transformer_layer(std::int32_t layer, Taker& params, const Communicators& comms, Tensor cos,
                             Tensor sin);
  std::unique_ptr<nn::Layer> make_attention(std::int32_t layer, Taker& params, Tensor cos, Tensor sin);
  std::unique_ptr<nn::Layer> make_latent_attention(std::int32_t layer, Taker& params, Tensor cos, Tensor sin);
  std::unique_ptr<nn::Layer> make_mlp(Taker& params);
  static moe::Params take_moe(std::int32_t layer, Taker& params);
  std::unique_ptr<nn::Layer> make_moe(std::int32_t layer, Taker& params, const Communicators& comms);
  void add_head(Taker& params, const Communicators& comms, Tensor cos, Tensor sin);
  std::unique_ptr<nn::Layer> make_mtp(std::unique_ptr<nn::Head> head, const nn::Head::Options& options,
                                      const nn::Param& head_VH, Taker& params, const Communicators& comms,
                                      Tensor cos, Tensor sin);
  void tell_listener(const nn::Context& ctx, const Unit& unit, const nn::Microbatch& mb, std::int32_t saved);
  void prepare(std::size_t unit, UnitPass pass);
  void unit_done(const Unit& unit, const UnitDone& done) const;
  void reserve_unit_saved(Unit& unit, Arena& arena);
  void reserve_overlaid(Arena& arena, const std::function<void(Unit&)>& reserve);
  [[nodiscard]] nn::Slots slots_of(const Unit& unit, StageSlot slot) const;
  void run_forward(nn::Context& ctx, Unit& unit, nn::Slots slots, const nn::Microbatch& mb, Tensor x,
                   Tensor y, nn::Pass pass);
  void unit_backward_input(nn::Context& ctx, std::size_t u, StageSlot slot, const nn::Microbatch& mb);
  void unit_backward_weight(nn::Context& ctx, Unit& unit, StageSlot slot, const nn::Microbatch& mb);

  Options options_;
  SlotCounts counts_;
  std::vector<Unit> units_;
  nn::Head* head_ = nullptr;                        // owned by its unit
  HeadWithMtp* mtp_ = nullptr;                      // likewise; null: no MTP layers
  std::vector<Mixture> mixtures_;                   // owned by their units
  std::unique_ptr<moe::LayerCounts> layer_counts_;  // a balancing loss over all layers together
  RoutingListener* listener_ = nullptr;
  UnitGuard* guard_ = nullptr;
  std::vector<std::vector<Tensor>> boundaries_;  // [live][unit]: input of unit u; the last is the output
  std::vector<Tensor> gradients_;
};

}  // namespace tessera::exec
