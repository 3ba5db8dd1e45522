// P = ep ranks, Q = etp ranks, E experts, e of this ep rank, t tokens of this rank, K top-k.
#include "moe/dispatch.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::moe {

namespace {
constexpr nn::DType kIndex = nn::DType::i32;
}

Dispatch::Dispatch(Options options, comm::Communicator& ep, comm::Communicator& etp)
    : o_(options), ep_(ep), etp_(etp), ep_size_(ep.size()), etp_size_(etp.size()) {
  TESSERA_CHECK_EQ(o_.num_experts % ep_size_, 0, "ep divides the number of experts");
}

DispatchSlot Dispatch::reserve(Arena& arena) const {
  const std::int64_t e = local_experts();
  DispatchSlot s;
  s.pos_tK = arena.take(kIndex, {o_.tokens, o_.top_k});
  s.token_n = arena.take(kIndex, {o_.tokens * o_.top_k});
  s.begin_e1 = arena.take(kIndex, {e + 1});
  s.counts_PE = arena.take(kIndex, {ep_size_, o_.num_experts});
  if (!exchanges()) return s;
  s.counts_QPe = arena.take(kIndex, {etp_size_, ep_size_, e});
  s.start_QPe = arena.take(kIndex, {etp_size_, ep_size_, e});
  s.from_full_R = arena.take(kIndex, {o_.max_rows});
  s.from_expert_R = arena.take(kIndex, {o_.max_rows});
  s.send_rows_P = arena.take(nn::DType::i64, {ep_size_});
  s.recv_rows_P = arena.take(nn::DType::i64, {ep_size_});
  s.part_rows_Q = arena.take(nn::DType::i64, {etp_size_});
  return s;
}

Dispatch::Scratch Dispatch::take_scratch(Arena& arena) const {
  Scratch s;
  const std::int64_t most_part =
      std::min(o_.max_rows, ep_size_ * o_.tokens * std::min<std::int64_t>(o_.top_k, local_experts()));
  if (ep_size_ > 1) s.part = arena.take(o_.dtype, {most_part, o_.hidden});
  if (etp_size_ > 1) s.full = arena.take(o_.dtype, {o_.max_rows, o_.hidden});
  return s;
}

void Dispatch::measure_scratch(Arena& counting) const {
  const tensor::Frame frame(counting);
  (void)take_scratch(counting);
}

void Dispatch::plan(DispatchSlot& slot, Tensor index_tK) const {
  sort_choices(slot, index_tK);
  if (exchanges()) {
    exchange_counts(slot);
    index_rows(slot);
    return;
  }
  const std::int32_t* count = slot.counts_PE.as<std::int32_t>();
  std::int32_t* begin = slot.begin_e1.as<std::int32_t>();
  begin[0] = 0;
  for (std::int64_t e = 0; e < o_.num_experts; ++e) begin[e + 1] = begin[e] + count[e];
  slot.received = slot.sent;
}

// Stable counting sort by (expert, token); the counts of this rank go to its row of counts_PE.
void Dispatch::sort_choices(DispatchSlot& slot, Tensor index_tK) const {
  const std::int32_t* index = index_tK.as<std::int32_t>();
  std::int32_t* pos = slot.pos_tK.as<std::int32_t>();
  std::int32_t* token = slot.token_n.as<std::int32_t>();
  std::int32_t* count = slot.counts_PE.narrow_rows(ep_.rank(), 1).as<std::int32_t>();
  const std::int64_t choices = index_tK.num_elements();

  std::fill_n(count, o_.num_experts, 0);
  for (std::int64_t i = 0; i < choices; ++i) {
    if (pos[i] >= 0) ++count[index[i]];
  }
  std::int32_t total = 0;
  for (std::int64_t e = 0; e < o_.num_experts; ++e) total += count[e];
  slot.sent = total;
  // Place from the back, so that `count` serves as the next place and then holds the starts; restore after.
  std::int32_t end = 0;
  for (std::int64_t e = 0; e < o_.num_experts; ++e) count[e] = end += count[e];
  for (std::int64_t i = choices - 1; i >= 0; --i) {
    if (pos[i] < 0) continue;
    const std::int32_t row = --count[index[i]];
    pos[i] = row;
    token[row] = static_cast<std::int32_t>(i / o_.top_k);
  }
  for (std::int64_t e = 0; e < o_.num_experts; ++e) {
    count[e] = (e + 1 < o_.num_experts ? count[e + 1] : total) - count[e];
  }
}

void Dispatch::exchange_counts(DispatchSlot& slot) const {
  const std::int64_t e = local_experts();
  if (ep_size_ > 1) ep_.all_gather(slot.counts_PE, slot.counts_PE.narrow_rows(ep_.rank(), 1));
  const std::int32_t* all = slot.counts_PE.as<std::int32_t>();
  const Tensor mine_1Pe = slot.counts_QPe.narrow_rows(etp_.rank(), 1);
  std::int32_t* mine = mine_1Pe.as<std::int32_t>();
  std::int64_t* send = slot.send_rows_P.as<std::int64_t>();
  std::int64_t* recv = slot.recv_rows_P.as<std::int64_t>();
  for (std::int64_t p = 0; p < ep_size_; ++p) {
    send[p] = 0;
    recv[p] = 0;
    for (std::int64_t i = 0; i < e; ++i) {
      send[p] += all[ep_.rank() * o_.num_experts + p * e + i];
      const std::int32_t n = all[p * o_.num_experts + ep_.rank() * e + i];
      recv[p] += n;
      mine[p * e + i] = n;
    }
  }
  if (etp_size_ > 1) etp_.all_gather(slot.counts_QPe, mine_1Pe);
}

void Dispatch::index_rows(DispatchSlot& slot) const {
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

void Dispatch::to_experts(Kernels& kernels, Arena& scratch, const DispatchSlot& slot, Tensor rows_RH,
                          Tensor sent_nH) const {
  TESSERA_CHECK(exchanges(), "a group of one rank has nothing to exchange");
  const tensor::Frame frame(scratch);
  const Scratch s = take_scratch(scratch);
  const auto part_rows = slot.part_rows_Q.span<std::int64_t>();
  Tensor full = sent_nH;
  if (ep_size_ > 1) {
    full = s.part.narrow_rows(0, part_rows[static_cast<std::size_t>(etp_.rank())]);
    ep_.all_to_all_v(full, slot.recv_rows_P.span<std::int64_t>(), sent_nH,
                     slot.send_rows_P.span<std::int64_t>());
  }
  if (etp_size_ > 1) {
    const Tensor part = full;
    full = s.full.narrow_rows(0, slot.received);
    etp_.all_gather_v(full, part, part_rows);
  }
  kernels.gather_rows(rows_RH, full, slot.from_full_R.narrow_rows(0, slot.received));
}

void Dispatch::from_experts(Kernels& kernels, Arena& scratch, const DispatchSlot& slot, Tensor sent_nH,
                            Tensor rows_RH) const {
  TESSERA_CHECK(exchanges(), "a group of one rank has nothing to exchange");
  const tensor::Frame frame(scratch);
  const Scratch s = take_scratch(scratch);
  const auto part_rows = slot.part_rows_Q.span<std::int64_t>();
  const std::int64_t mine = part_rows[static_cast<std::size_t>(etp_.rank())];
  const Tensor full = (etp_size_ > 1 ? s.full : s.part).narrow_rows(0, slot.received);
  kernels.gather_rows(full, rows_RH, slot.from_expert_R.narrow_rows(0, slot.received));
  Tensor part = full;
  if (etp_size_ > 1) {
    part = ep_size_ > 1 ? s.part.narrow_rows(0, mine) : sent_nH;
    etp_.reduce_scatter_v(part, full, part_rows);
  }
  if (ep_size_ > 1) {
    ep_.all_to_all_v(sent_nH, slot.send_rows_P.span<std::int64_t>(), part,
                     slot.recv_rows_P.span<std::int64_t>());
  }
}

}  // namespace tessera::moe
