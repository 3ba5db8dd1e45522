#include "comm/flight_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/text.h"

namespace tessera::comm {

namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

CallInfo info_of(const Record& r) {
  CallInfo info;
  info.call = r.call.load(kRelaxed);
  info.dtype = r.dtype.load(kRelaxed);
  info.bytes = r.bytes.load(kRelaxed);
  info.peer = r.peer.load(kRelaxed);
  info.tag = r.tag.load(kRelaxed);
  info.ends_send = r.ends_send.load(kRelaxed);
  return info;
}

Site site_of(const Record& r) {
  return {r.step.load(kRelaxed), r.layer.load(kRelaxed), r.microbatch.load(kRelaxed), r.phase.load(kRelaxed)};
}

std::string_view name(Phase phase) {
  switch (phase) {
    case Phase::none:
      return "";
    case Phase::load:
      return "start";
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::backward_input:
      return "backward of inputs";
    case Phase::backward_weight:
      return "backward of weights";
    case Phase::update:
      return "update";
    case Phase::report:
      return "report";
  }
  return "";
}

std::string at(const Site& site) {
  const std::string where = text(site);
  return where.empty() ? "" : " at " + where;
}

std::string where_of(Rank me, const GroupName& group) {
  return fmt::format("rank {}, {}", me.value, title(group));
}

}  // namespace

std::string text(const Site& site) {
  std::vector<std::string> parts;
  if (site.step >= 0) parts.push_back(fmt::format("step {}", site.step));
  if (site.layer >= kHeadLayer)
    parts.emplace_back("head");
  else if (site.layer >= 0)
    parts.push_back(fmt::format("layer {}", site.layer));
  if (site.microbatch >= 0) parts.push_back(fmt::format("micro-batch {}", site.microbatch));
  if (site.phase != Phase::none) parts.emplace_back(name(site.phase));
  return join(parts, ", ");
}

std::string title(const GroupName& group) {
  std::vector<std::string> ranks;
  for (const Rank r : group.members) ranks.push_back(fmt::format("{}", r.value));
  return fmt::format("group {} {{{}}}", group.label, join(ranks, ", "));
}

std::string call_text(const CallInfo& info, std::int64_t number) {
  std::string text = fmt::format("{}{} #{}", info.ends_send ? "wait_" : "", name(info.call), number);
  if (info.peer != kNobody) text += fmt::format(" tag {}", info.tag);
  if (info.call != Call::barrier)
    text += fmt::format(" ({} {})", human(Bytes(info.bytes)), tensor::name(info.dtype));
  return text;
}

Record& FlightLog::begin(const CallInfo& info, std::int64_t number, const Site& site) {
  const std::int64_t count = count_.load(kRelaxed);
  Record& r = records_[static_cast<std::size_t>(count % kRecords)];
  r.number.store(number, kRelaxed);
  r.bytes.store(info.bytes, kRelaxed);
  r.tag.store(info.tag, kRelaxed);
  r.step.store(site.step, kRelaxed);
  r.peer.store(info.peer, kRelaxed);
  r.layer.store(site.layer, kRelaxed);
  r.microbatch.store(site.microbatch, kRelaxed);
  r.call.store(info.call, kRelaxed);
  r.dtype.store(info.dtype, kRelaxed);
  r.phase.store(site.phase, kRelaxed);
  r.ends_send.store(info.ends_send, kRelaxed);
  r.open.store(true, kRelaxed);
  count_.store(count + 1, std::memory_order_release);
  return r;
}

std::string FlightLog::doing(const GroupName& group, std::string_view whom) const {
  const std::int64_t count = count_.load(std::memory_order_acquire);
  if (count == 0) return "";
  const Record& last = records_[static_cast<std::size_t>((count - 1) % kRecords)];
  if (!last.open.load(kRelaxed)) return "";
  const std::string call =
      fmt::format("{} {}", group.label, call_text(info_of(last), last.number.load(kRelaxed)));
  if (waiting_for() == kNobody) return fmt::format("works in {}{}", call, at(site_of(last)));
  return fmt::format("waits in {} for {}{}", call, whom, at(site_of(last)));
}

std::string FlightLog::recent(const GroupName& group) const {
  const std::int64_t count = count_.load(std::memory_order_acquire);
  std::vector<std::string> parts;
  std::int64_t i = std::max<std::int64_t>(0, count - kRecords);
  while (i < count) {
    const Record& first = records_[static_cast<std::size_t>(i % kRecords)];
    const CallInfo info = info_of(first);
    std::int64_t end = i + 1;  // of a run of equal calls
    for (; end < count; ++end) {
      const CallInfo next = info_of(records_[static_cast<std::size_t>(end % kRecords)]);
      if (next.call != info.call || next.bytes != info.bytes || next.peer != info.peer ||
          next.ends_send != info.ends_send)
        break;
    }
    std::string text = call_text(info, first.number.load(kRelaxed));
    if (info.peer >= 0 && info.peer < static_cast<std::int32_t>(group.members.size()))
      text += fmt::format(" {} rank {}", info.call == Call::recv ? "from" : "to",
                          group.members[static_cast<std::size_t>(info.peer)].value);
    if (end - i > 1) text += fmt::format(" x{}", end - i);
    parts.push_back(std::move(text));
    i = end;
  }
  return parts.empty() ? "" : fmt::format("{}: {}", group.label, join(parts, ", "));
}

Error peer_left(Rank me, std::string_view doing, Rank left, const GroupName& group) {
  return {ErrorKind::comm, fmt::format("rank {} {}, but rank {} has left", me.value, doing, left.value),
          where_of(me, group), "every rank of a group must make the same calls"};
}

Error no_answer(Rank me, std::string_view doing, std::int64_t waited_ns, std::string_view whom,
                const GroupName& group) {
  return {ErrorKind::comm,
          fmt::format("rank {} {}: no answer for {}", me.value, doing,
                      human(Seconds(static_cast<double>(waited_ns) * 1e-9))),
          where_of(me, group),
          fmt::format("see what {} did in the list of states; if it was only slow, raise the timeout", whom)};
}

Error calls_differ(const OneCall& mine, const OneCall& theirs, std::string_view detail,
                   const GroupName& group) {
  return {ErrorKind::comm,
          fmt::format("calls do not match: rank {} calls {} {}{}, rank {} calls {} {}{}{}", mine.rank.value,
                      group.label, call_text(mine.info, mine.number), at(mine.site), theirs.rank.value,
                      group.label, call_text(theirs.info, theirs.number), at(theirs.site), detail),
          where_of(mine.rank, group),
          "every rank of a group must make the same calls in the same order with matching sizes"};
}

std::string detail_text(const CallInfo& mine, const CallInfo& theirs) {
  if (mine.detail == theirs.detail) return "";
  return mine.call == Call::broadcast ? fmt::format(" (roots {} and {})", mine.detail, theirs.detail)
                                      : " (with another operation)";
}

Error message_differs(const MessageEnd& sender, const MessageEnd& receiver, std::int64_t tag,
                      const GroupName& group) {
  return {ErrorKind::comm,
          fmt::format("rank {} sends {} tag {} with {} bytes of {}, rank {} receives {} bytes of {}",
                      sender.rank.value, group.label, tag, sender.bytes, tensor::name(sender.dtype),
                      receiver.rank.value, receiver.bytes, tensor::name(receiver.dtype)),
          where_of(receiver.rank, group), "give send and recv of one tag the same shape and dtype"};
}

}  // namespace tessera::comm
