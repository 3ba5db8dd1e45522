#include "search/search.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "search/tally.h"
#include "search/top_list.h"
#include "search/walk.h"

namespace tessera::search {

namespace {

// A bound that exceeds the exact time by rounding alone must not prune.
constexpr double kBoundSlack = 1.0 - 1e-9;
// Rounds grow: early ones are short, for their bound serves the later ones.
constexpr std::size_t kFirstRound = 4, kLongestRound = 256;

// The part that a candidate spends most on beyond what the best so far does.
cost::Part lost_to(const cost::StepCost& cost, const cost::StepCost* best) {
  std::size_t worst = 1;
  double most = -1.0;
  for (std::size_t p = 1; p < cost.parts.size(); ++p) {  // 0 is useful work
    const double excess = cost.parts[p] - (best != nullptr ? best->parts[p] : 0.0);
    if (p == 1 || excess > most) {
      worst = p;
      most = excess;
    }
  }
  return static_cast<cost::Part>(worst);
}

struct Counts {
  std::int64_t enumerated = 0, costed = 0, pruned = 0;
};

// What one thread found in the tasks that it took.
struct Finds {
  TopList list;
  Tally tally;
  Counts counts;
};

struct Known {  // from the rounds before
  double threshold = std::numeric_limits<double>::infinity();
  const cost::StepCost* best = nullptr;
};

class Worker {
 public:
  Worker(const cost::Setup& setup, const Space& space, const Options& options, std::int32_t keep,
         std::unique_ptr<Coster> coster)
      : setup_(setup),
        space_(space),
        options_(options),
        limit_(usable_memory(setup) * options.memory_fraction),
        keep_(keep),
        recompute_(recompute_choices(setup, space)),
        coster_(std::move(coster)),
        finds_{.list = TopList(keep, options.distinct)} {
    for (const RecomputeChoice& r : recompute_) {
      if (r.mode == spec::Recompute::full) full_ = r;
    }
  }

  void run(const Task& task, const Known& known) {
    TopList list(keep_, options_.distinct);  // of this task alone: pruning must not depend on who runs it
    for (const std::int32_t pp : task.pp) {
      Layout layout{.c = task.base, .pipelines = pipelines(setup_, space_, pp)};
      layout.c.pp = pp;
      layout.c.dp = setup_.cluster.num_devices / (layout.c.tp * layout.c.cp * pp);
      layout.zeros = zero_stages(space_, layout.c);
      layout.orders = orders(space_, layout.c);
      layout.too_big.assign(layout.pipelines.size(), false);
      for (const std::int32_t mbs : micro_batch_sizes(setup_, space_, layout.c)) {
        layout.c.micro_batch_size = mbs;
        visit(layout, {.known = known, .list = list});
      }
    }
    finds_.list.merge(list, finds_.tally);
  }

  Finds take() { return std::exchange(finds_, Finds{.list = TopList(keep_, options_.distinct)}); }

 private:
  // One layout and its choices.
  struct Layout {
    cost::Candidate c;
    std::vector<Pipeline> pipelines;
    std::vector<std::int32_t> zeros;
    std::vector<cost::AxisOrder> orders;
    std::vector<bool> too_big;                  // [pipeline] at a smaller micro-batch
    [[nodiscard]] std::int64_t count() const {  // of a pipeline and a recomputation
      return static_cast<std::int64_t>(zeros.size() * orders.size());
    }
  };
  struct Found {
    const Known& known;
    TopList& list;
    [[nodiscard]] double threshold() const { return std::min(known.threshold, list.threshold()); }
  };

  [[nodiscard]] static cost::Candidate with(cost::Candidate c, const Pipeline& p) {
    c.schedule = p.kind;
    c.vpp = p.vpp;
    return c;
  }
  [[nodiscard]] static cost::Candidate with(cost::Candidate c, const RecomputeChoice& choice) {
    c.recompute = choice.mode;
    c.recompute_modules = choice.modules;
    return c;
  }

  // Of all ZeRO stages, the one with the least memory.
  [[nodiscard]] cost::MemoryCost leanest(const Layout& layout, cost::Candidate& c) {
    cost::MemoryCost least;
    std::int32_t stage = -1;
    for (const std::int32_t zero : layout.zeros) {
      c.zero_stage = zero;
      const cost::MemoryCost m = coster_->memory(c);
      if (stage >= 0 && !(m.reserved() < least.reserved())) continue;
      least = m;
      stage = zero;
    }
    c.zero_stage = stage;
    return least;
  }

  // A micro-batch size: pipelines that are valid and may fit, then what is left of them recomputation by
  // recomputation.
  void visit(Layout& layout, const Found& found) {
    const auto choices = static_cast<std::int64_t>(recompute_.size());
    const std::int64_t each = layout.count() * choices;
    finds_.counts.enumerated += each * static_cast<std::int64_t>(layout.pipelines.size());
    layout.c.order = layout.orders.front();
    std::vector<Pipeline> open;
    for (std::size_t p = 0; p < layout.pipelines.size(); ++p) {
      cost::Candidate c = with(layout.c, layout.pipelines[p]);
      if (layout.too_big[p]) {
        finds_.tally.add_more_too_big(each);
        continue;
      }
      if (const std::string wrong = coster_->why_invalid(c); !wrong.empty()) {
        finds_.tally.add(Reason::schedule, c, wrong, each);
        continue;
      }
      if (full_) {
        c = with(c, *full_);
        const cost::MemoryCost memory = leanest(layout, c);
        if (!(memory.reserved() <= limit_)) {
          finds_.tally.add_too_big(c, memory, limit_, each);
          layout.too_big[p] = true;
          continue;
        }
      }
      open.push_back(layout.pipelines[p]);
    }
    if (open.empty()) return;
    const auto num_open = static_cast<std::int64_t>(open.size());
    const cost::Candidate first = with(layout.c, open.front());
    if (options_.prune && pruned(first, coster_->lowest_bound(first), found, each * num_open)) return;
    for (const RecomputeChoice& choice : recompute_) visit(layout, choice, open, found);
  }

  void visit(const Layout& layout, const RecomputeChoice& choice, const std::vector<Pipeline>& open,
             const Found& found) {
    std::vector<Pipeline> fitting;
    for (const Pipeline& p : open) {
      cost::Candidate c = with(with(layout.c, choice), p);
      const cost::MemoryCost memory = leanest(layout, c);
      if (memory.reserved() <= limit_) {
        fitting.push_back(p);
      } else {
        finds_.tally.add_too_big(c, memory, limit_, layout.count());
      }
    }
    if (fitting.empty()) return;
    const std::int64_t of_order = static_cast<std::int64_t>(fitting.size() * layout.zeros.size());
    for (const cost::AxisOrder order : layout.orders) {
      cost::Candidate c = with(with(layout.c, choice), fitting.front());
      c.order = order;
      if (options_.prune && pruned(c, coster_->lower_bound(c), found, of_order)) continue;
      for (const Pipeline& p : fitting) {
        for (const std::int32_t zero : layout.zeros) {
          c = with(c, p);
          c.zero_stage = zero;
          price(c, found);
        }
      }
    }
  }

  [[nodiscard]] bool pruned(const cost::Candidate& c, double at_least, const Found& found,
                            std::int64_t count) {
    if (!(at_least * kBoundSlack > found.threshold())) return false;
    finds_.counts.pruned += count;
    finds_.tally.add_bound(c, at_least, count);
    return true;
  }

  void price(const cost::Candidate& c, const Found& found) {
    const cost::MemoryCost memory = coster_->memory(c);
    if (!(memory.reserved() <= limit_)) {
      finds_.tally.add_too_big(c, memory, limit_);
      return;
    }
    ++finds_.counts.costed;
    const Ranked ranked{.candidate = c, .cost = coster_->predict(c)};
    found.list.offer(ranked, lost_to(ranked.cost, found.known.best), finds_.tally);
  }

  const cost::Setup& setup_;
  const Space& space_;
  const Options& options_;
  double limit_;
  std::int32_t keep_;
  std::vector<RecomputeChoice> recompute_;
  std::optional<RecomputeChoice> full_;  // of them: needs the least memory
  std::unique_ptr<Coster> coster_;
  Finds finds_;
};

// Runs work(worker, index) for every index below n on the threads; the first failure by index is thrown.
template <class Work>
void run_parallel(std::int32_t num_threads, std::size_t n, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  std::size_t failed_at = n;
  const auto loop = [&](std::int32_t worker) {
    for (std::size_t i = next++; i < n; i = next++) {
      try {
        work(worker, i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < failed_at) {
          failed_at = i;
          failure = std::current_exception();
        }
        return;
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    const auto extra = std::min<std::size_t>(static_cast<std::size_t>(num_threads), n);
    for (std::size_t t = 1; t < extra; ++t) threads.emplace_back(loop, static_cast<std::int32_t>(t));
    loop(0);
  }
  if (failure) std::rethrow_exception(failure);
}

class Run {
 public:
  Run(const cost::Setup& setup, const Space& space, const Options& options, const CosterFactory& make_coster)
      : options_(options),
        keep_(options.refine ? std::max(options.top, options.refined) : options.top),
        list_(keep_, options.distinct) {
    result_.threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<std::int32_t>(std::thread::hardware_concurrency()));
    result_.memory_limit = usable_memory(setup) * options.memory_fraction;
    std::unique_ptr<Coster> first = make_coster();
    walk_ = make_walk(setup, space, *first);
    for (std::int32_t t = 0; t < result_.threads; ++t) {
      workers_.emplace_back(setup, space, options, keep_, t == 0 ? std::move(first) : make_coster());
    }
  }

  Result run() {
    seed();
    std::size_t size = kFirstRound;
    for (std::size_t begin = 0; begin < walk_.tasks.size();
         begin += size, size = std::min(2 * size, kLongestRound)) {
      const std::size_t count = std::min(size, walk_.tasks.size() - begin);
      round(begin, count);
    }
    refine();
    finish();
    return std::move(result_);
  }

 private:
  // A first bound, from the first tasks of the walk; they run again, counted, later.
  void seed() {
    if (!options_.prune) return;
    const std::size_t count = std::min(kFirstRound, walk_.tasks.size() / 8);
    const Known known;
    run_parallel(result_.threads, count, [&](std::int32_t worker, std::size_t i) {
      workers_[static_cast<std::size_t>(worker)].run(walk_.tasks[i], known);
    });
    TopList list(keep_, options_.distinct);
    Tally ignored;
    for (Worker& w : workers_) list.merge(w.take().list, ignored);
    seed_threshold_ = list.threshold();
    if (!list.entries().empty()) seed_best_ = list.entries().front().ranked.cost;
  }

  [[nodiscard]] Known known_from(const TopList& list) const {
    Known known{.threshold = std::min(seed_threshold_, list.threshold())};
    if (!list.entries().empty()) {
      known.best = &list.entries().front().ranked.cost;
    } else if (seed_best_) {
      known.best = &*seed_best_;
    }
    return known;
  }

  void round(std::size_t begin, std::size_t count) {
    const Known known = known_from(list_);
    run_parallel(result_.threads, count, [&](std::int32_t worker, std::size_t i) {
      workers_[static_cast<std::size_t>(worker)].run(walk_.tasks[begin + i], known);
    });
    for (Worker& w : workers_) {
      const Finds finds = w.take();
      walk_.tally.merge(finds.tally);
      list_.merge(finds.list, walk_.tally);
      result_.enumerated += finds.counts.enumerated;
      result_.costed += finds.counts.costed;
      result_.pruned += finds.counts.pruned;
    }
  }

  void refine() {
    if (!options_.refine) return;
    std::vector<TopList::Entry> entries = list_.entries();
    run_parallel(result_.threads, entries.size(), [&](std::int32_t, std::size_t i) {
      Ranked& r = entries[i].ranked;
      r.cost = options_.refine(r.candidate, r.cost);
    });
    list_ = TopList(options_.top, options_.distinct);
    for (const TopList::Entry& e : entries) list_.offer(e.ranked, e.lost_to, walk_.tally);
  }

  void finish() {
    for (const TopList::Entry& e : list_.entries()) result_.best.push_back(e.ranked);
    const double best = result_.best.empty() ? 0.0 : list_.entries().front().seconds;
    if (options_.account) {
      run_parallel(result_.threads, result_.best.size(), [&](std::int32_t, std::size_t i) {
        Ranked& r = result_.best[i];
        r.cost = options_.account(r.candidate, r.cost);
      });
    }
    result_.rejections = walk_.tally.rejections(best);
    result_.layouts = walk_.layouts;
  }

  const Options& options_;
  std::int32_t keep_;
  TopList list_;
  Walk walk_;
  std::vector<Worker> workers_;
  double seed_threshold_ = std::numeric_limits<double>::infinity();
  std::optional<cost::StepCost> seed_best_;
  Result result_;
};

}  // namespace

std::string_view name(Reason reason) {
  switch (reason) {
    case Reason::batch:
      return "batch";
    case Reason::shape:
      return "shape";
    case Reason::schedule:
      return "schedule";
    case Reason::does_not_fit:
      return "does not fit";
    case Reason::bound:
      return "bound";
    case Reason::slower:
      return "slower";
  }
  return "";
}

double usable_memory(const cost::Setup& setup) {
  const auto usable = static_cast<double>(setup.calibration.usable_memory.value);
  const auto sold = static_cast<double>(setup.calibration.memory.value);
  const auto cluster = static_cast<double>(setup.cluster.memory.value);
  if (cluster <= 0.0 || sold <= 0.0) return usable;
  return usable * cluster / sold;  // the same device with another memory
}

Result search(const cost::Setup& setup, const Space& space, const Options& options,
              const CosterFactory& make_coster) {
  const std::int64_t start = wall_ns();
  Problems problems;
  check_space(setup, space, problems);
  problems.throw_if_any();
  TESSERA_CHECK(options.top >= 1 && options.refined >= 0, "a search keeps at least one candidate");
  Result result = Run(setup, space, options, make_coster).run();
  result.seconds = static_cast<double>(wall_ns() - start) * 1e-9;
  return result;
}

}  // namespace tessera::search
