// The one list of a job's fields. Reader, writer and key list are visitors of it:
//   section(name)                  the following fields stand under this key of the file
//   required(key, member), optional(key, member)
#pragma once
#include <array>
#include <string_view>
#include <utility>

#include "spec/job.h"

namespace tessera::spec {

template <class E>
struct EnumNames;  // kAll: every value with its word in files

template <>
struct EnumNames<Precision> {
  static constexpr std::array<std::pair<Precision, std::string_view>, 8> kAll = {
      {{Precision::f32, "f32"},
       {Precision::f64, "f64"},
       {Precision::bf16, "bf16"},
       {Precision::fp16, "fp16"},
       {Precision::fp8, "fp8"},
       {Precision::fp8_block, "fp8_block"},
       {Precision::mxfp8, "mxfp8"},
       {Precision::nvfp4, "nvfp4"}}};
};
template <>
struct EnumNames<Recompute> {
  static constexpr std::array<std::pair<Recompute, std::string_view>, 3> kAll = {
      {{Recompute::none, "none"}, {Recompute::selective, "selective"}, {Recompute::full, "full"}}};
};
template <>
struct EnumNames<BalanceUnit> {
  static constexpr std::array<std::pair<BalanceUnit, std::string_view>, 3> kAll = {
      {{BalanceUnit::sequence, "sequence"},
       {BalanceUnit::micro_batch, "micro_batch"},
       {BalanceUnit::global_batch, "global_batch"}}};
};
template <>
struct EnumNames<DispatchForm> {
  static constexpr std::array<std::pair<DispatchForm, std::string_view>, 4> kAll = {
      {{DispatchForm::automatic, "auto"},
       {DispatchForm::all_to_all, "all_to_all"},
       {DispatchForm::all_gather, "all_gather"},
       {DispatchForm::hierarchical, "hierarchical"}}};
};
template <>
struct EnumNames<DropPolicy> {
  static constexpr std::array<std::pair<DropPolicy, std::string_view>, 2> kAll = {
      {{DropPolicy::position, "position"}, {DropPolicy::probs, "probs"}}};
};
template <>
struct EnumNames<RouterChoice> {
  static constexpr std::array<std::pair<RouterChoice, std::string_view>, 3> kAll = {
      {{RouterChoice::model, "model"},
       {RouterChoice::hash, "hash"},
       {RouterChoice::expert_choice, "expert_choice"}}};
};
template <>
struct EnumNames<Balancing> {
  static constexpr std::array<std::pair<Balancing, std::string_view>, 3> kAll = {
      {{Balancing::loss, "loss"}, {Balancing::bias, "bias"}, {Balancing::none, "none"}}};
};
template <>
struct EnumNames<AuxNormalisation> {
  static constexpr std::array<std::pair<AuxNormalisation, std::string_view>, 3> kAll = {
      {{AuxNormalisation::tessera, "tessera"},
       {AuxNormalisation::huggingface, "huggingface"},
       {AuxNormalisation::megatron, "megatron"}}};
};
template <>
struct EnumNames<LrDecay> {
  static constexpr std::array<std::pair<LrDecay, std::string_view>, 3> kAll = {
      {{LrDecay::constant, "constant"}, {LrDecay::cosine, "cosine"}, {LrDecay::wsd, "wsd"}}};
};
template <>
struct EnumNames<OnDivergence> {
  static constexpr std::array<std::pair<OnDivergence, std::string_view>, 3> kAll = {
      {{OnDivergence::stop, "stop"}, {OnDivergence::skip, "skip"}, {OnDivergence::rollback, "rollback"}}};
};

// JobRef: Job& or const Job&. The model has its own reader (config.json keys).
template <class JobRef, class Visitor>
void visit_train(JobRef& job, Visitor& v) {
  v.section("train");
  v.required("steps", job.train.steps);
  v.required("sequence_length", job.train.sequence_length);
  v.required("global_batch_size", job.train.global_batch_size);
  v.required("micro_batch_size", job.train.micro_batch_size);
  v.optional("precision", job.train.precision);
  v.optional("recompute", job.train.recompute);
  v.optional("recompute_modules", job.train.recompute_modules);
  v.optional("seed", job.train.seed);
  v.optional("zero_stage", job.train.zero_stage);
  v.optional("overlap_param_gather", job.train.overlap_param_gather);
  v.optional("bucket_bytes", job.train.bucket_bytes);
  v.optional("overlap_grad_reduce", job.train.overlap_grad_reduce);
  v.optional("mtp_loss_coef", job.train.mtp_loss_coef);
  v.optional("lr", job.train.optimizer.lr);
  v.optional("min_lr", job.train.optimizer.min_lr);
  v.optional("beta1", job.train.optimizer.beta1);
  v.optional("beta2", job.train.optimizer.beta2);
  v.optional("eps", job.train.optimizer.eps);
  v.optional("weight_decay", job.train.optimizer.weight_decay);
  v.optional("clip_grad", job.train.optimizer.clip_grad);
  v.optional("lr_decay", job.train.optimizer.lr_decay);
  v.optional("lr_warmup_steps", job.train.optimizer.lr_warmup_steps);
  v.optional("lr_wsd_decay_steps", job.train.optimizer.lr_wsd_decay_steps);
  v.optional("on_divergence", job.train.divergence.action);
  v.optional("max_loss_ratio", job.train.divergence.max_loss_ratio);
  v.optional("max_grad_norm_ratio", job.train.divergence.max_grad_norm_ratio);
  v.optional("divergence_window", job.train.divergence.window);
  v.optional("max_divergences", job.train.divergence.most);
}

template <class JobRef, class Visitor>
void visit_moe(JobRef& job, Visitor& v) {
  v.section("moe");
  v.optional("router", job.train.moe.router);
  v.optional("router_jitter", job.train.moe.router_jitter);
  v.optional("balancing", job.train.moe.balancing);
  v.optional("aux_loss_coef", job.train.moe.aux_loss_coef);
  v.optional("aux_loss_unit", job.train.moe.aux_loss_unit);
  v.optional("aux_loss_normalisation", job.train.moe.aux_loss_normalisation);
  v.optional("bias_update_rate", job.train.moe.bias_update_rate);
  v.optional("bias_update_centred", job.train.moe.bias_update_centred);
  v.optional("z_loss_coef", job.train.moe.z_loss_coef);
  v.optional("capacity_factor", job.train.moe.capacity_factor);
  v.optional("drop_policy", job.train.moe.drop_policy);
  v.optional("pad_to_capacity", job.train.moe.pad_to_capacity);
  v.optional("dispatch", job.train.moe.dispatch);
  v.optional("overlap_dispatch", job.train.moe.overlap_dispatch);
}

template <class JobRef, class Visitor>
void visit_job(JobRef& job, Visitor& v) {
  visit_train(job, v);
  visit_moe(job, v);
  v.section("parallel");
  v.optional("tp", job.parallel.tp);
  v.optional("cp", job.parallel.cp);
  v.optional("dp", job.parallel.dp);
  v.optional("pp", job.parallel.pp);
  v.optional("ep", job.parallel.ep);
  v.optional("etp", job.parallel.etp);
  v.optional("vpp", job.parallel.vpp);
  v.optional("sequence_parallel", job.parallel.sequence_parallel);
  v.optional("overlap_p2p_comm", job.parallel.overlap_p2p_comm);
  v.optional("tp_comm_overlap", job.parallel.tp_comm_overlap);
  v.optional("order", job.parallel.order);
  v.optional("ranks_per_node", job.parallel.ranks_per_node);
  v.optional("expert_slots", job.parallel.expert_slots);
  v.optional("schedule", job.parallel.schedule);
  v.optional("stage_layers", job.parallel.stage_layers);
  v.section("data");
  v.optional("train", job.data.train);
  v.optional("text", job.data.text);
  v.optional("tokenizer", job.data.tokenizer);
  v.optional("vocab_size", job.data.vocab_size);
  v.optional("validation_fraction", job.data.validation_fraction);
  v.section("checkpoint");
  v.optional("folder", job.checkpoint.folder);
  v.optional("every", job.checkpoint.every);
  v.optional("keep", job.checkpoint.keep);
  v.optional("resume", job.checkpoint.resume);
  v.section("output");
  v.optional("folder", job.output.folder);
  v.optional("trace_steps", job.output.trace_steps);
  v.optional("sample_prompt", job.output.sample_prompt);
  v.optional("sample_tokens", job.output.sample_tokens);
}

}  // namespace tessera::spec
