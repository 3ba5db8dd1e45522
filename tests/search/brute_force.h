// Brute force over every whole number, and the comparison of a search with it.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "search/search.h"

namespace tessera::search {

// Written without the search's own code: every number up to the limit in every axis.
class BruteForce {
 public:
  BruteForce(const cost::Setup& setup, Coster& coster) : setup_(setup), coster_(coster) {
    const std::int32_t world = setup_.cluster.num_devices;
    const std::int32_t ep_max = setup_.model.moe ? setup_.model.moe->num_experts : 1;
    const std::int32_t etp_max = setup_.model.moe ? world : 1;
    for (std::int32_t tp = 1; tp <= world; ++tp) {
      for (std::int32_t cp = 1; cp <= world; ++cp) {
        for (std::int32_t pp = 1; pp <= world; ++pp) {
          for (std::int32_t dp = 1; dp <= world; ++dp) {
            if (tp * cp * pp * dp != world) continue;
            for (std::int32_t ep = 1; ep <= ep_max; ++ep) {
              for (std::int32_t etp = 1; etp <= etp_max; ++etp) {
                choices({.tp = tp, .cp = cp, .dp = dp, .pp = pp, .ep = ep, .etp = etp});
              }
            }
          }
        }
      }
    }
    for (const Ranked& r : all_) sorted_.push_back({r.cost.seconds(), &r});
    std::sort(sorted_.begin(), sorted_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : compare(a.second->candidate, b.second->candidate) < 0;
    });
  }

  [[nodiscard]] std::vector<Ranked> best(std::int32_t top, Distinct distinct) const {
    std::vector<Ranked> list;
    for (const auto& [seconds, r] : sorted_) {
      if (static_cast<std::int32_t>(list.size()) == top) break;
      const bool again = std::any_of(list.begin(), list.end(), [&](const Ranked& o) {
        const cost::Candidate &a = o.candidate, &b = r->candidate;
        return a.tp == b.tp && a.cp == b.cp && a.pp == b.pp && a.ep == b.ep && a.etp == b.etp;
      });
      if (distinct == Distinct::candidates || !again) list.push_back(*r);
    }
    return list;
  }
  std::int64_t visited = 0, too_big = 0;
  double least_excess = std::numeric_limits<double>::infinity();

 private:
  void choices(cost::Candidate c) {
    if (setup_.model.moe) {
      if (setup_.model.moe->num_experts % c.ep != 0 ||
          spec::expert_intermediate_size(setup_.model) % c.etp != 0)
        return;
    }
    if (c.tp * c.cp * c.dp % (c.ep * c.etp) != 0) return;
    c.sequence_parallel = c.tp > 1;
    const auto layers = (setup_.model.num_hidden_layers + c.pp - 1) / c.pp;
    for (std::int32_t mbs = 1; mbs <= setup_.work.global_batch_size; ++mbs) {
      if (setup_.work.global_batch_size % (c.dp * mbs) != 0) continue;
      c.micro_batch_size = mbs;
      for (std::int32_t vpp = 1; vpp <= layers; ++vpp) {
        if (layers % vpp != 0 && vpp != 2) continue;
        for (const auto kind : {schedule::Kind::one_f_one_b, schedule::Kind::interleaved,
                                schedule::Kind::zb_h1, schedule::Kind::zb_v}) {
          const std::int32_t needed = schedule::required_vpp(kind);
          if (needed > 0 ? vpp != needed : (vpp < 2 || layers % vpp != 0)) continue;
          if (c.pp == 1 && kind != schedule::Kind::one_f_one_b) continue;
          c.vpp = vpp;
          c.schedule = kind;
          rest(c);
        }
      }
    }
  }

  void rest(cost::Candidate c) {
    for (const RecomputeChoice& choice : default_recompute(setup_.model, setup_.practice)) {
      for (std::int32_t zero = 0; zero <= 3; ++zero) {
        if (zero > 0 && c.dp * c.cp == 1 && c.edp() == 1) continue;  // nothing to share
        for (const auto order : {cost::AxisOrder::tp_cp_ep_dp_pp, cost::AxisOrder::tp_cp_ep_pp_dp}) {
          if (order != cost::AxisOrder::tp_cp_ep_dp_pp && (c.dp == 1 || c.pp == 1)) continue;
          c.recompute = choice.mode;
          c.recompute_modules = choice.modules;
          c.zero_stage = zero;
          c.order = order;
          leaf(c);
        }
      }
    }
  }

  void leaf(const cost::Candidate& c) {
    if (!coster_.why_invalid(c).empty()) return;
    ++visited;
    const double excess = coster_.memory(c).reserved() - usable_memory(setup_);
    if (excess > 0) {
      ++too_big;
      least_excess = std::min(least_excess, excess);
      return;
    }
    all_.push_back({.candidate = c, .cost = coster_.predict(c)});
  }

  const cost::Setup& setup_;
  Coster& coster_;
  std::vector<Ranked> all_;
  std::vector<std::pair<double, const Ranked*>> sorted_;
};

inline void expect_equal(const std::vector<Ranked>& a, const std::vector<Ranked>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].candidate, b[i].candidate)
        << i << ": " << cost::to_text(a[i].candidate) << " against " << cost::to_text(b[i].candidate);
    EXPECT_EQ(a[i].cost.seconds(), b[i].cost.seconds()) << i;
  }
}

inline const Rejection* find(const Result& r, Reason reason) {
  const auto at = std::find_if(r.rejections.begin(), r.rejections.end(),
                               [&](const Rejection& x) { return x.reason == reason; });
  return at == r.rejections.end() ? nullptr : &*at;
}

inline void expect_brute_force(const cost::Setup& setup, const CosterFactory& make) {
  const std::unique_ptr<Coster> coster = make();
  const BruteForce brute(setup, *coster);
  for (const Distinct distinct : {Distinct::layouts, Distinct::candidates}) {
    for (const std::int32_t top : {1, 7, 300}) {
      SCOPED_TRACE(testing::Message() << setup.cluster.num_devices << " devices, top " << top);
      const std::vector<Ranked> truth = brute.best(top, distinct);
      expect_equal(search(setup, {}, {.top = top, .threads = 2, .distinct = distinct}, make).best, truth);
      const Result r = search(setup, {}, {.top = top, .distinct = distinct, .prune = false}, make);
      expect_equal(r.best, truth);
      EXPECT_EQ(r.costed + brute.too_big, brute.visited);
      const Rejection* big = find(r, Reason::does_not_fit);
      ASSERT_EQ(big != nullptr, brute.too_big > 0);
      if (big != nullptr) {
        EXPECT_DOUBLE_EQ(big->needs - big->limit, brute.least_excess);
      }
    }
  }
}

}  // namespace tessera::search
