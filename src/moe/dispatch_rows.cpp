// P = ep ranks, Q = etp ranks, E experts, e of this ep rank, t tokens of this rank, K top-k.
#include "moe/dispatch_rows.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"

namespace tessera::moe {

namespace {
constexpr nn::DType kIndex = nn::DType::i32;
}

RowOrder::RowOrder(const Dispatch::Options& options, comm::Communicator& ep, comm::Communicator& etp)
    : o_(options), ep_(ep), etp_(etp), ep_size_(ep.size()), etp_size_(etp.size()) {
  TESSERA_CHECK_EQ(o_.num_experts % ep_size_, 0, "ep divides the number of experts");
}

void RowOrder::reserve(DispatchSlot& s, Arena& arena) const {
  const std::int64_t e = local_experts();
  s.begin_e1 = arena.take(kIndex, {e + 1});
  s.counts_QPe = arena.take(kIndex, {etp_size_, ep_size_, e});
  s.start_QPe = arena.take(kIndex, {etp_size_, ep_size_, e});
  s.from_full_R = arena.take(kIndex, {o_.max_rows});
  s.from_expert_R = arena.take(kIndex, {o_.max_rows});
  s.part_rows_Q = arena.take(nn::DType::i64, {etp_size_});
}

Tensor RowOrder::own_counts(const DispatchSlot& s) const {
  return s.counts_QPe.narrow_rows(etp_.rank(), 1);
}

std::int64_t RowOrder::part_rows(const DispatchSlot& s) const {
  return s.part_rows_Q.as<std::int64_t>()[etp_.rank()];
}

std::int64_t RowOrder::most_part_rows() const {
  return std::min(o_.max_rows, ep_size_ * o_.tokens * std::min<std::int64_t>(o_.top_k, local_experts()));
}

void RowOrder::index(Context& ctx, DispatchSlot& slot) const {
  if (etp_size_ > 1) {
    share_now(ctx, [this, s = &slot] { etp_.all_gather(s->counts_QPe, own_counts(*s)); });
  }
  const std::int64_t e = local_experts();
  const std::int32_t* count = slot.counts_QPe.as<std::int32_t>();
  std::int32_t* start = slot.start_QPe.as<std::int32_t>();
  std::int64_t* part_rows = slot.part_rows_Q.as<std::int64_t>();
  std::int64_t total = 0;
  for (std::int64_t q = 0; q < etp_size_; ++q) {
    const std::int64_t before = total;
    for (std::int64_t i = q * ep_size_ * e; i < (q + 1) * ep_size_ * e; ++i) {
      start[i] = static_cast<std::int32_t>(total);
      total += count[i];
    }
    part_rows[q] = total - before;
  }
  if (total > o_.max_rows) {
    throw Error(
        ErrorKind::internal,
        fmt::format("{} rows arrive at the experts of this rank, the buffers hold {}", total, o_.max_rows),
        fmt::format("moe dispatch, ep rank {} of {}, etp rank {} of {}", ep_.rank(), ep_size_, etp_.rank(),
                    etp_size_),
        "this is a defect of Tessera's memory plan: please report it with the job");
  }
  slot.received = total;

  std::int32_t* begin = slot.begin_e1.as<std::int32_t>();
  std::int32_t* from_full = slot.from_full_R.as<std::int32_t>();
  std::int32_t* from_expert = slot.from_expert_R.as<std::int32_t>();
  std::int32_t row = 0;
  for (std::int64_t i = 0; i < e; ++i) {
    begin[i] = row;
    for (std::int64_t p = 0; p < ep_size_; ++p) {
      for (std::int64_t q = 0; q < etp_size_; ++q) {
        const std::int64_t block = (q * ep_size_ + p) * e + i;
        for (std::int32_t n = 0; n < count[block]; ++n, ++row) {
          from_full[row] = start[block] + n;
          from_expert[start[block] + n] = row;
        }
      }
    }
  }
  begin[e] = row;
}

void RowOrder::gather(Tensor full_RH, Tensor part_RH, const DispatchSlot& slot) const {
  etp_.all_gather_v(full_RH, part_RH, slot.part_rows_Q.span<std::int64_t>());
}
void RowOrder::sum(Tensor part_RH, Tensor full_RH, const DispatchSlot& slot) const {
  etp_.reduce_scatter_v(part_RH, full_RH, slot.part_rows_Q.span<std::int64_t>());
}

void finish(Context& ctx, Travel& tr) {
  comm::CommWorker* worker = tr.in_flight.worker;
  if (worker == nullptr) return;
  if (ctx.turn != nullptr) ctx.turn->pass();
  const std::int64_t start = wall_ns();
  worker->wait(tr.in_flight.ticket);
  const comm::CommWorker::Timing timing = worker->timing(tr.in_flight.ticket);
  tr.hidden_ns += std::max<std::int64_t>(0, std::min(start, timing.end_ns) - timing.start_ns);
  tr.in_flight.worker = nullptr;
}

std::unique_ptr<Dispatch> make_dispatch(const Dispatch::Options& options, const ExpertGroups& groups) {
  Dispatch::Options o = options;
  comm::Communicator& ep = groups.ep;
  comm::Communicator& etp = groups.etp;
  if (o.max_sent == 0) o.max_sent = o.tokens * o.top_k;
  if (ep.size() == 1 && etp.size() == 1) return make_local(o);
  if (ep.size() == 1) return make_all_to_all(o, ep, etp);  // no rows over ep: only etp is left
  switch (o.form) {
    case DispatchForm::all_to_all:
      return make_all_to_all(o, ep, etp);
    case DispatchForm::all_gather:
      return make_all_gather(o, ep, etp);
    case DispatchForm::hierarchical:
      TESSERA_CHECK(groups.across != nullptr && groups.inside != nullptr,
                    "hierarchical dispatch knows its nodes");
      TESSERA_CHECK_EQ(groups.across->size() * groups.inside->size(), ep.size(), "nodes x their ranks");
      return make_hierarchical(o, groups);
  }
  return nullptr;
}

}  // namespace tessera::moe
