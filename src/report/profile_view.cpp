#include "report/profile_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "report/numbers.h"
#include "report/table.h"

namespace tessera::report {

namespace {

std::string rate(double amount, Seconds time, double unit) {
  return amount > 0.0 && time.value > 0.0 ? fixed(amount / time.value / unit, 1) : "";
}

std::vector<std::string> cells(const ProfileRow& r, const ProfileView& view, Seconds all) {
  const Share share = share_of(r, view);
  return {r.name,
          r.width,
          fmt::format("{:.0f}", r.calls),
          human(r.time),
          percent(r.time.value / all.value),
          rate(r.bytes, r.time, 1e9),
          rate(r.flops, r.time, 1e9),
          share.reached > 0.0 ? (share.limit == Limit::compute ? "compute" : "memory") : "",
          share.reached > 0.0 ? percent(share.reached) : ""};
}

std::optional<double> share_of_peak(const ProfileView& view, double flops_per_token) {
  if (view.peak.value <= 0.0) return std::nullopt;
  return flops_per_token * view.tokens / (view.step.value * view.peak.value * view.units);
}

std::string limits(const ProfileView& view) {
  std::string out = fmt::format(
      "a step takes {}, the fastest {}, without the clock: "
      "{:.0f} tokens/s",
      human(view.step), human(view.fastest), view.tokens / view.step.value);
  if (const auto used = mfu(view))
    out += fmt::format(", MFU {} ({} with the whole square of attention)", percent(*used),
                       percent(*mfu_full(view)));
  out += view.peak.value > 0.0
             ? fmt::format("\ncompute: {:.1f} GFLOP/s, {}", view.peak.value * 1e-9, view.peak_source)
             : fmt::format("\ncompute: {}", view.peak_source);
  return out + fmt::format(
                   "; a product of sides {} reaches {:.1f}\n"
                   "memory: {:.1f} GB/s of a copy, read and written\n"
                   "calls: {} from one small call to the next; all three measured now\n",
                   view.side, view.product.value * 1e-9, view.bandwidth.value * 1e-9, human(view.launch));
}

}  // namespace

std::optional<double> mfu(const ProfileView& view) {
  return share_of_peak(view, view.model_flops);
}
std::optional<double> mfu_full(const ProfileView& view) {
  return share_of_peak(view, view.model_flops_full);
}

Share share_of(const ProfileRow& r, const ProfileView& view) {
  const double compute = view.peak.value > 0.0 ? r.flops / view.peak.value : 0.0;
  const double memory = view.bandwidth.value > 0.0 ? r.bytes / view.bandwidth.value : 0.0;
  Share share{.limit = compute > memory ? Limit::compute : Limit::memory};
  if (r.time.value > 0.0) share.reached = std::max(compute, memory) / r.time.value;
  return share;
}

std::string render(const ProfileView& view, std::int32_t most, const Style& style) {
  Table table({{.header = "operation", .align = Align::left},
               {.header = "width", .align = Align::left, .drop = 1},
               {.header = "calls", .drop = 2},
               {.header = "time"},
               {.header = "share"},
               {.header = "GB/s"},
               {.header = "GFLOP/s"},
               {.header = "limit", .align = Align::left},
               {.header = "of it"}});
  ProfileRow sum;
  for (const ProfileRow& r : view.rows) {
    sum.time = sum.time + r.time;
    sum.calls += r.calls;
  }
  const std::size_t shown =
      most > 0 ? std::min(view.rows.size(), static_cast<std::size_t>(most)) : view.rows.size();
  for (std::size_t i = 0; i < shown; ++i) table.add_row(cells(view.rows[i], view, sum.time));
  if (shown < view.rows.size()) {
    ProfileRow rest{.name = fmt::format("{} other{}", view.rows.size() - shown,
                                        view.rows.size() - shown == 1 ? "" : "s")};
    for (std::size_t i = shown; i < view.rows.size(); ++i) {
      rest.time = rest.time + view.rows[i].time;
      rest.calls += view.rows[i].calls;
    }
    table.add_row({rest.name, "", fmt::format("{:.0f}", rest.calls), human(rest.time),
                   percent(rest.time.value / sum.time.value), "", "", "", ""});
  }
  table.add_footer({"all", "", fmt::format("{:.0f}", sum.calls), human(sum.time), "", "", "", "", ""});
  return table.render(style) + "\n" + limits(view);
}

}  // namespace tessera::report
