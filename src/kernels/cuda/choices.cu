// Choices of the router by expert, and its statistics. Integers are added atomically where their sum is all
// that shows.
#include <cmath>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

// --- the counting sort: chunks of choices, a warp each; counts_EC of each expert and chunk in the order of
// the rows, so that a sum over all before is where a chunk's rows of an expert begin

constexpr std::int64_t kLeastChunk = 512, kMostChunks = 128;

// The lanes of the warp that have the same expert as this one; -1 is nobody's.
struct Alike {
  int before, all;
  __device__ explicit Alike(int expert) {
    const unsigned lanes = __match_any_sync(kAllLanes, expert);
    before = __popc(lanes & ((1U << static_cast<unsigned>(lane())) - 1U));
    all = __popc(lanes);
  }
};

struct Chunks {
  std::int64_t choices, each;
  int experts;
};
// The expert of choice `i` of this block's chunk.
__device__ inline int kept_expert(const std::int32_t* pos, const std::int32_t* index, std::int64_t i,
                                  const Chunks& c) {
  const std::int64_t end = (std::int64_t{blockIdx.x} + 1) * c.each;
  return i < end && i < c.choices && pos[i] >= 0 ? index[i] : -1;
}

__global__ void count_chunks(std::int32_t* counts_EC, const std::int32_t* pos, const std::int32_t* index,
                             Chunks c) {
  std::int32_t* count = block_memory<std::int32_t>();
  for (int e = lane(); e < c.experts; e += kWarp) count[e] = 0;
  __syncwarp();
  const std::int64_t first = std::int64_t{blockIdx.x} * c.each;
  for (std::int64_t i = first; i < first + c.each; i += kWarp) {
    const int expert = kept_expert(pos, index, i + lane(), c);
    const Alike alike(expert);
    if (expert >= 0 && alike.before == 0) count[expert] += alike.all;
    __syncwarp();
  }
  for (int e = lane(); e < c.experts; e += kWarp)
    counts_EC[std::int64_t{e} * gridDim.x + blockIdx.x] = count[e];
}

// counts become the sums of those before them, begin those at the first chunk of each expert. One block.
__global__ void add_up_counts(std::int32_t* counts_EC, std::int32_t* begin_E1, std::int64_t chunks,
                              int experts) {
  __shared__ std::int32_t totals[kThreads];
  const std::int64_t n = chunks * experts, each = (n + kThreads - 1) / kThreads;
  const std::int64_t first = threadIdx.x * each, end = first + each < n ? first + each : n;
  std::int32_t total = 0, before = 0;
  for (std::int64_t i = first; i < end; ++i) total += counts_EC[i];
  totals[threadIdx.x] = total;
  __syncthreads();
  for (unsigned t = 0; t < threadIdx.x; ++t) before += totals[t];
  for (std::int64_t i = first; i < end; ++i) {
    const std::int32_t count = counts_EC[i];
    counts_EC[i] = before;
    if (i % chunks == 0) begin_E1[i / chunks] = before;
    before += count;
  }
  if (threadIdx.x == kThreads - 1) begin_E1[experts] = before;
}

__global__ void place_chunks(std::int32_t* pos, std::int32_t* token, const std::int32_t* starts_EC,
                             const std::int32_t* index, std::int64_t top_k, Chunks c) {
  std::int32_t* next = block_memory<std::int32_t>();
  for (int e = lane(); e < c.experts; e += kWarp)
    next[e] = starts_EC[std::int64_t{e} * gridDim.x + blockIdx.x];
  __syncwarp();
  const std::int64_t first = std::int64_t{blockIdx.x} * c.each;
  for (std::int64_t i = first; i < first + c.each; i += kWarp) {
    const int expert = kept_expert(pos, index, i + lane(), c);
    const Alike alike(expert);
    if (expert >= 0) {
      const std::int32_t row = next[expert] + alike.before;
      pos[i + lane()] = row;
      token[row] = static_cast<std::int32_t>((i + lane()) / top_k);
    }
    __syncwarp();
    if (expert >= 0 && alike.before == 0) next[expert] += alike.all;
    __syncwarp();
  }
}

__global__ void count_by_unit(std::int32_t* counts_UE, const std::int32_t* index, const std::int32_t* unit,
                              std::int64_t choices, std::int64_t top_k, std::int64_t experts) {
  for (std::int64_t i = first_element(); i < choices; i += element_stride()) {
    atomicAdd(&counts_UE[unit[i / top_k] * experts + index[i]], 1);
  }
}

template <class S, class Share>
__global__ void scale_all(S* a, const Share* share, double scale, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    a[i] = static_cast<S>(scale * static_cast<double>(share[i]));
  }
}

// --- sums over tokens: a block for each run of them leaves one number a sum, then one block joins the runs

constexpr std::int64_t kLeastRun = 64, kMostRuns = 1024;

struct Runs {
  std::int64_t tokens, each;
  int experts;
  bool sigmoid;
  [[nodiscard]] unsigned count() const { return static_cast<unsigned>((tokens + each - 1) / each); }
};
Runs runs_of(const Tensor& probs_TE, RouterScore score) {
  const std::int64_t tokens = probs_TE.dim(0), spread = (tokens + kMostRuns - 1) / kMostRuns;
  return {tokens, spread > kLeastRun ? spread : kLeastRun, static_cast<int>(probs_TE.dim(1)),
          score == RouterScore::sigmoid};
}
// body(t, sum of its scores) for the tokens of this warp, all lanes.
template <class S, class Body>
__device__ void for_tokens(const S* probs, const Runs& r, Body body) {
  const std::int64_t first = std::int64_t{blockIdx.x} * r.each;
  for (std::int64_t t = first + warp(); t < first + r.each && t < r.tokens; t += num_warps()) {
    double sum = r.sigmoid ? 0.0 : 1.0;
    if (r.sigmoid) {
      for (int e = lane(); e < r.experts; e += kWarp) sum += static_cast<double>(probs[t * r.experts + e]);
      sum = warp_sum(sum);
    }
    body(t, sum > 0.0 ? sum : 1.0);
  }
}

template <class S>
__global__ void stats_of_runs(double* sums, const S* probs, const S* lse, const S* logits, double z_scale,
                              Runs r) {
  double entropy = 0.0, squares = 0.0, largest = 0.0, lse_squares = 0.0;
  for_tokens(probs, r, [&](std::int64_t t, double sum) {
    const double of_token = static_cast<double>(lse[t]);
    for (int e = lane(); e < r.experts; e += kWarp) {
      const double p = static_cast<double>(probs[t * r.experts + e]) / sum;
      const double z = static_cast<double>(logits[t * r.experts + e]);
      if (!r.sigmoid) {
        entropy += p * (of_token - z);
      } else if (p > 0.0) {
        entropy -= p * std::log(p);
      }
      squares += z * z;
      largest = std::abs(z) > largest ? std::abs(z) : largest;
    }
    if (lane() == 0) lse_squares += of_token * of_token;
  });
  entropy = block_sum(entropy);
  squares = block_sum(squares);
  largest = block_max(largest);
  lse_squares = block_sum(lse_squares);
  if (threadIdx.x != 0) return;
  double* run = sums + std::int64_t{blockIdx.x} * kRouterSums;
  run[0] = entropy;
  run[1] = squares;
  run[2] = largest;
  run[3] = z_scale * lse_squares;
}

template <class S>
__global__ void balance_of_runs(double* sums, const S* probs, const S* aux, const std::int32_t* unit,
                                Runs r) {
  double value = 0.0;
  for_tokens(probs, r, [&](std::int64_t t, double sum) {
    const S* a = aux + std::int64_t{unit[t]} * r.experts;
    for (int e = lane(); e < r.experts; e += kWarp) {
      value += static_cast<double>(a[e]) * static_cast<double>(probs[t * r.experts + e]) / sum;
    }
  });
  value = block_sum(value);
  if (threadIdx.x == 0) sums[blockIdx.x] = value;
}

// into += the sums of the runs, that at `max_at` by max. One block.
__global__ void join_runs(double* into, const double* sums, std::int64_t runs, int width, int max_at) {
  for (int c = 0; c < width; ++c) {
    double sum = 0.0, largest = 0.0;
    for (std::int64_t i = threadIdx.x; i < runs; i += blockDim.x) {
      const double value = sums[i * width + c];
      sum += value;
      largest = value > largest ? value : largest;
    }
    sum = block_sum(sum);
    largest = block_max(largest);
    if (threadIdx.x != 0) continue;
    into[c] = c != max_at ? into[c] + sum : largest > into[c] ? largest : into[c];
  }
}

// counts: chosen by expert, dropped by expert, tokens that nobody serves.
__global__ void count_routes(std::int32_t* counts, const std::int32_t* index, const std::int32_t* pos,
                             std::int64_t tokens, std::int64_t top_k, int experts, bool kept_only) {
  for (std::int64_t t = first_element(); t < tokens; t += element_stride()) {
    bool served = false;
    for (std::int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
      const bool kept = pos[i] >= 0;
      served = served || kept;
      if (kept || !kept_only) atomicAdd(&counts[index[i]], 1);
      if (!kept && !kept_only) atomicAdd(&counts[experts + index[i]], 1);
    }
    if (!served) atomicAdd(&counts[2 * experts], 1);
  }
}
__global__ void add_counts(std::int64_t* to, const std::int32_t* counts, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) to[i] += counts[i];
}

}  // namespace

void Backend::do_sort_choices(Tensor pos, Tensor token, Tensor begin, Tensor index) {
  const std::int64_t n = index.num_elements(), experts = begin.dim(0) - 1;
  const std::int64_t room = kWorkspace / std::int64_t{sizeof(std::int32_t)} / experts;
  std::int64_t most = kMostChunks < room ? kMostChunks : room;
  const std::int64_t useful = (n + kLeastChunk - 1) / kLeastChunk;
  most = useful < most ? (useful > 0 ? useful : 1) : most;
  const std::int64_t each = ((n + most - 1) / most + kWarp - 1) / kWarp * kWarp;
  const Chunks chunks = {n, each, static_cast<int>(experts)};
  const Grid grid = {
      {static_cast<unsigned>(most)}, {kWarp}, static_cast<std::size_t>(experts) * sizeof(std::int32_t)};
  auto* counts = work<std::int32_t>();
  auto* at = pos.address<std::int32_t>();
  const auto* chosen = index.address<std::int32_t>();
  launch(stream_, grid, &count_chunks, counts, at, chosen, chunks);
  launch(stream_, over_rows(1), &add_up_counts, counts, begin.address<std::int32_t>(), most,
         static_cast<int>(experts));
  launch(stream_, grid, &place_chunks, at, token.address<std::int32_t>(), counts, chosen, index.dim(1),
         chunks);
}

void Backend::do_count_choices(Tensor counts, Tensor index, Tensor unit) {
  memory()->clear(counts);
  launch(stream_, over_elements(index.num_elements()), &count_by_unit, counts.address<std::int32_t>(),
         index.address<std::int32_t>(), unit.address<std::int32_t>(), index.num_elements(), index.dim(1),
         counts.dim(1));
}

void Backend::do_scale_counts(Tensor a, Tensor share, double scale) {
  const std::int64_t n = a.num_elements();
  with_stats(a, [&](auto zero) {
    using S = decltype(zero);
    if (share.dtype() == DType::f64) {
      launch(stream_, over_elements(n), &scale_all<S, double>, a.address<S>(), share.address<double>(), scale,
             n);
    } else {
      launch(stream_, over_elements(n), &scale_all<S, std::int32_t>, a.address<S>(),
             share.address<std::int32_t>(), scale, n);
    }
  });
}

void Backend::do_router_stats(Tensor sums, Tensor counts, const RoutedTokens& r,
                              const RouterStatsOptions& o) {
  const Runs runs = runs_of(r.probs_TE, o.score);
  const std::int64_t n = counts.num_elements();
  with_stats(r.probs_TE, [&](auto zero) {
    using S = decltype(zero);
    launch(stream_, over_rows(runs.count()), &stats_of_runs<S>, work<double>(), r.probs_TE.address<S>(),
           r.lse_T.address<S>(), r.logits_TE.address<S>(), o.z_scale, runs);
  });
  launch(stream_, over_rows(1), &join_runs, sums.address<double>(), work<double>(),
         std::int64_t{runs.count()}, static_cast<int>(kRouterSums), 2);
  memory()->clear(Tensor(workspace_.data(), DType::i32, {n}, memory()->device()));
  launch(stream_, over_elements(runs.tokens), &count_routes, work<std::int32_t>(),
         r.index_TK.address<std::int32_t>(), r.pos_TK.address<std::int32_t>(), runs.tokens, r.index_TK.dim(1),
         runs.experts, o.counts_kept_only);
  launch(stream_, over_elements(n), &add_counts, counts.address<std::int64_t>(), work<std::int32_t>(), n);
}

void Backend::do_balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score) {
  const Runs runs = runs_of(probs, score);
  with_stats(probs, [&](auto zero) {
    using S = decltype(zero);
    launch(stream_, over_rows(runs.count()), &balance_of_runs<S>, work<double>(), probs.address<S>(),
           aux.address<S>(), unit.address<std::int32_t>(), runs);
  });
  launch(stream_, over_rows(1), &join_runs, value.address<double>(), work<double>(),
         std::int64_t{runs.count()}, 1, -1);
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
