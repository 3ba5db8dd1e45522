// HeadWithMtp: the main model's head and, behind it, the layers of multi-token prediction (DeepSeek-V3, arXiv
// 2412.19437 section 2.2). Position i of depth k = 1..D joins what the depth before says of i with the
// embedding of token i + k and predicts token i + k + 1:
//   u^k = M_k [RMSNorm(Emb(t_{i+k})); RMSNorm(h^{k-1}_i)]   h^0: the stream before the main final norm
//   h^k = layer_k(u^k)                                      attention and feed-forward of its own
//   L_k = sum_i CE(head(RMSNorm(h^k_i)), t_{i+k+1}) / N     N: targets of the main model, as in the paper
//   loss += coef / D * sum_k L_k
// Embedding and head are the main model's. A target that is ignored, or lies behind the sequence, is ignored;
// behind the sequence the last token stands in for the embedding, which no counted position sees.
//
// Legend as in nn/layer.h; C = 2 H, the embedding first, as in the published weights. M_k and the norms work
// on this rank's own rows: their gradients are summed over tp with those of norms. With full recomputation
// the values of MTP layers are kept all the same. Outside of training (Context::training) only the main head
// runs.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "nn/layers.h"
#include "nn/norm.h"

namespace tessera::exec {

struct MtpDepth {
  nn::Norm embedding_norm, stream_norm;
  nn::Param proj_HC;
  std::unique_ptr<nn::Embedding> embedding;
  std::unique_ptr<nn::Layer> attention, feed_forward;
  std::unique_ptr<nn::Head> head;
};

class HeadWithMtp : public nn::Layer {
 public:
  HeadWithMtp(const nn::Dims& dims, double coef, std::unique_ptr<nn::Head> main,
              std::vector<MtpDepth> depths);
  void reserve_saved(nn::Arena& arena) override;
  void reserve_deferred(nn::Arena& arena) override;
  void measure_scratch(nn::Arena& counting) const override;
  void forward(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, nn::Tensor x_tH, nn::Tensor y_tH,
               nn::Pass pass) override;
  void backward_input(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, nn::Tensor g_tH) override;
  void backward_weight(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb) override;

  [[nodiscard]] const nn::Head& main() const { return *main_; }
  // Its weighted terms of this micro-batch, the same on every tp rank.
  [[nodiscard]] double loss(std::int32_t saved_slot) const;
  void add_loss(nn::Kernels& kernels, nn::Tensor sum_1, std::int32_t saved_slot) const;

 private:
  struct Saved {
    nn::Tensor ids_T, targets_T;  // of the depth
    nn::Tensor e_tH, cat_tC, u_tH, mid_tH, h_tH;
    nn::Tensor before_tH;  // h of the depth before
    nn::Norm::Saved embedding_norm, stream_norm;
  };
  struct Deferred {
    nn::Tensor g_tH;          // of h, then of u
    nn::Tensor de_tH, dh_tH;  // of the normed embedding and stream
  };
  void join(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, MtpDepth& depth, Saved& s);
  void part(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, MtpDepth& depth, const Saved& s,
            const Deferred& f, nn::Tensor g_before_tH);
  [[nodiscard]] nn::Context weighted(const nn::Context& ctx) const;

  nn::Dims dims_;
  double coef_;
  std::unique_ptr<nn::Head> main_;
  std::vector<MtpDepth> depths_;
  std::vector<std::vector<Saved>> saved_;        // [slot][depth]
  std::vector<std::vector<Deferred>> deferred_;  // likewise
};

}  // namespace tessera::exec
