// The page of a plan, and the sentence about its bottleneck.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/text.h"
#include "report/numbers.h"
#include "report/page.h"
#include "report/plan_table.h"
#include "report/waterfall.h"

namespace tessera::report {

namespace {

using cost::Part;

std::string gigabytes(double bytes) {
  return fixed(bytes / 1e9, 1) + " GB";
}

double sent(const cost::StepCost& s, graph::Axis axis) {
  return s.bytes_sent[static_cast<std::size_t>(axis)];
}

// Why the part is what it is under this candidate.
std::string why(const cost::Setup& setup, const cost::Candidate& c, const cost::StepCost& s, Part part) {
  using graph::Axis;
  const std::string& inner = setup.cluster.tiers.front().name;
  const std::int32_t domain = setup.cluster.tiers.front().size;
  const auto reach = [&](std::int64_t ranks) {
    return ranks <= domain ? "inside of the " + inner + " domain"
                           : fmt::format("beyond the {} domain of {}", inner, domain);
  };
  switch (part) {
    case Part::ideal:
      return "";
    case Part::gemm: {
      const double useful = s[Part::ideal] / (s[Part::ideal] + s[Part::gemm]);
      return fmt::format("products run at {} of peak, with tp={} and micro-batches of {}", percent(useful),
                         c.tp, c.micro_batch_size);
    }
    case Part::attention:
      return fmt::format("attention kernels run below the peak of products at {} tokens",
                         setup.work.sequence_length);
    case Part::memory_bound:
      return "they move bytes and do no products: a fused or compiled practice shortens them";
    case Part::launch:
      return fmt::format("kernels of micro-batch {} over tp={} are too short for the host",
                         c.micro_batch_size, c.tp);
    case Part::recompute:
      return fmt::format("recomputation of {} buys memory: {} of {} usable are reserved", recompute_text(c),
                         gigabytes(s.memory.reserved()), gigabytes(search::usable_memory(setup)));
    case Part::imbalance:
      return fmt::format("tokens choose experts unevenly, ep={} waits for its most loaded rank", c.ep);
    case Part::tp:
      return fmt::format("tp={} sends {} a device and step {}", c.tp, gigabytes(sent(s, Axis::tp)),
                         reach(c.tp));
    case Part::cp:
      return fmt::format("cp={} sends {} a device and step {}", c.cp, gigabytes(sent(s, Axis::cp)),
                         reach(std::int64_t{c.tp} * c.cp));
    case Part::ep:
      return fmt::format("ep={} sends {} a device and step {}", c.ep, gigabytes(sent(s, Axis::ep)),
                         reach(std::int64_t{c.ep} * c.etp));
    case Part::pp:
      return fmt::format("{} stages send {} a device and step", c.pp * c.vpp, gigabytes(sent(s, Axis::pp)));
    case Part::bubble:
      return fmt::format("{} micro-batches fill {} stages of {} pipeline ranks", fixed(s.num_microbatches, 0),
                         c.pp * c.vpp, c.pp);
    case Part::dp:
      return fmt::format("ZeRO-{} over dp={} sends {} a device and step, more than the backward pass hides",
                         c.zero_stage, c.dp, gigabytes(sent(s, Axis::dp) + sent(s, Axis::edp)));
    case Part::optimizer:
      return "every weight's states are read and written once a step";
    case Part::jitter:
      return fmt::format("the slowest of {} devices sets the pace", setup.cluster.num_devices);
  }
  return "";
}

Part largest(const cost::StepCost& s, std::span<const Part> parts) {
  return *std::max_element(parts.begin(), parts.end(), [&](Part a, Part b) { return s[a] < s[b]; });
}

std::string share(const cost::StepCost& s, double seconds) {
  return fmt::format("{} of {} ({})", duration(Seconds(seconds)), duration(Seconds(s.seconds())),
                     percent(seconds / s.seconds()));
}

std::string axis_sentence(const cost::StepCost& s) {
  const std::array<std::pair<const char*, double>, 5> axes = {{{"tp", s[Part::tp]},
                                                               {"cp", s[Part::cp]},
                                                               {"ep", s[Part::ep] + s[Part::imbalance]},
                                                               {"pp", s[Part::pp] + s[Part::bubble]},
                                                               {"dp", s[Part::dp]}}};
  const auto& most = *std::max_element(axes.begin(), axes.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
  if (!(most.second > 0.0)) return "No axis costs anything: there is no communication.";
  return fmt::format("The axis that costs most is {}: {}, waiting included.", most.first,
                     share(s, most.second));
}

std::string best_line(const PlanView& view) {
  const search::Ranked& best = view.result->best.front();
  const double s = best.cost.seconds();
  std::string step = fmt::format("{:.3f} s a step", s);
  if (view.error_band > 0.0) {
    step += fmt::format(" ({:.3f} to {:.3f})", s / (1.0 + view.error_band), s * (1.0 + view.error_band));
  }
  return fmt::format("{}: {}, {} tokens/s a device, MFU {} (causal attention halved; {} with it whole).",
                     cost::to_text(best.candidate), step,
                     fixed(tokens_per_device_second(*view.setup, best.cost), 0), percent(best.cost.mfu()),
                     percent(best.cost.mfu_full()));
}

void put_head(Page& page, const PlanView& view) {
  const cost::Setup& s = *view.setup;
  page.title(fmt::format("{} on {} x {} ({})", view.model, s.cluster.num_devices, s.calibration.name,
                         s.cluster.name));
  page.description(fmt::format("model  {} parameters, {} of them active for a token",
                               human_count(static_cast<double>(spec::num_parameters(s.model))),
                               human_count(static_cast<double>(spec::num_active_parameters(s.model)))));
  page.description(fmt::format("step   {} sequences of {} tokens, {}, practice {}", s.work.global_batch_size,
                               s.work.sequence_length, spec::name(s.work.precision), s.practice.name));
  const search::Result& r = *view.result;
  page.description(fmt::format("search {} layouts, {} candidates, {} costed, in {} on {} thread{}",
                               quantity(static_cast<double>(r.layouts)),
                               quantity(static_cast<double>(r.enumerated)),
                               quantity(static_cast<double>(r.costed)), duration(Seconds(r.seconds)),
                               r.threads, r.threads == 1 ? "" : "s"));
}

// A prediction of memory misses by some per cent: a full device may run out.
std::string memory_warning(const search::Result& r) {
  constexpr double kTight = 0.95;
  const double used = r.best.front().cost.memory.reserved() / r.memory_limit;
  if (used < kTight) return "";
  return fmt::format(
      "It reserves {} of the memory there is, and predictions miss by a few per cent: --memory 0.95 leaves "
      "room.",
      percent(used));
}

}  // namespace

std::string bottleneck(const cost::Setup& setup, const search::Ranked& best) {
  constexpr std::array<Part, 14> kLosses = {
      Part::gemm,      Part::attention, Part::memory_bound, Part::launch, Part::recompute,
      Part::imbalance, Part::tp,        Part::cp,           Part::ep,     Part::pp,
      Part::bubble,    Part::dp,        Part::optimizer,    Part::jitter};
  const cost::StepCost& s = best.cost;
  const Part most = largest(s, kLosses);
  return fmt::format("Most time is lost to {}: {}; {}. {}", describe(most), share(s, s[most]),
                     why(setup, best.candidate, s, most), axis_sentence(s));
}

std::string plan_page(const PlanView& view, const Style& style) {
  Page page(style);
  put_head(page, view);
  page.section("Best layouts");
  page.block(layout_table(view, page.inner()));
  page.paragraph(layout_legend(view), Tone::faint);
  if (view.error_band > 0.0) {
    page.paragraph(fmt::format("Step times are +-{}: the mean error on published runs of this kind.",
                               percent(view.error_band)),
                   Tone::faint);
  }
  page.section("Where the time goes, ms of a step");
  page.block(time_table(view, page.inner()));
  page.section("Memory of the fullest device, GB");
  page.block(memory_table(view, page.inner()));
  const search::Ranked& best = view.result->best.front();
  page.section("The best one");
  page.paragraph(best_line(view), Tone::plain);
  page.paragraph(bottleneck(*view.setup, best), Tone::accent);
  if (const std::string tight = memory_warning(*view.result); !tight.empty()) {
    page.paragraph(tight, Tone::plain);
  }
  page.gap();
  page.block(waterfall(best.cost.parts, page.inner()));
  page.section("Why not another one");
  page.block(rejection_table(view, page.inner()));
  return page.text();
}

}  // namespace tessera::report
