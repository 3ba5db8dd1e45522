#include "exec/param_store.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/math.h"
#include "base/random.h"

namespace tessera::exec {

using layout::GradGroup;
using layout::ParamKind;
using layout::ParamSpec;

std::int32_t position_of(const ParamSpec& spec) {
  if (spec.layer >= 0) return spec.layer;
  return layout::is_input(spec.kind) ? kEmbeddingPosition : kHeadPosition;
}

namespace {
tensor::Shape shape_of(const ParamSpec& s) {
  return s.num_dims == 1 ? tensor::Shape{s.slice.size[0]} : tensor::Shape{s.slice.size[0], s.slice.size[1]};
}
}  // namespace

ParamStore::ParamStore(std::vector<ParamSpec> specs, const StoreOptions& options, const Communicators& comms,
                       const kernels::Kernels& kernels, Arena& arena)
    : options_(options), comms_(comms), kernels_(kernels), arena_(arena) {
  std::vector<StageId> stages;
  for (ParamSpec& s : specs) {
    if (stages.empty() || stages.back() != s.stage) stages.push_back(s.stage);
    StoredParam stored;
    stored.spec = std::move(s);
    params_.push_back(std::move(stored));
  }
  for (StoredParam& p : params_) {
    if (!p.spec.buffer) continue;
    p.value = arena_.take(options_.dtype, shape_of(p.spec));
    bytes_.values += p.value.bytes();
  }
  // A tied copy on the same rank shares the embedding's value, so that bucket comes first.
  for (std::size_t i = 0; i < params_.size(); ++i) {
    if (!options_.tied || params_[i].spec.kind != ParamKind::embedding) continue;
    Members one{i};
    close_bucket(one);
  }
  for (const StageId stage : stages) {
    for (const GradGroup group : {GradGroup::dp, GradGroup::tp_dp, GradGroup::edp})
      make_buckets(stage, group);
  }
}

void ParamStore::make_buckets(StageId stage, GradGroup group) {
  std::map<std::int32_t, Members, std::greater<>> by_position;  // last layer first
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const ParamSpec& s = params_[i].spec;
    if (s.stage == stage && s.group == group && !s.buffer) by_position[position_of(s)].push_back(i);
  }
  Members open;
  std::int64_t open_bytes = 0;
  for (const auto& [position, members] : by_position) {
    for (const std::size_t i : members) {
      const ParamSpec& s = params_[i].spec;
      if (params_[i].bucket >= 0) continue;  // the tied embedding
      if (s.tied_copy) {
        close_bucket(open);
        Members one{i};
        close_bucket(one);
        open_bytes = 0;
        continue;
      }
      open.push_back(i);
      open_bytes += s.num_elements() * size_of(options_.dtype);
    }
    if (open_bytes >= options_.bucket_bytes) {
      close_bucket(open);
      open_bytes = 0;
    }
  }
  close_bucket(open);
}

void ParamStore::close_bucket(Members& members) {
  if (members.empty()) return;
  const std::int64_t element = size_of(options_.dtype);
  const auto index = static_cast<std::int32_t>(buckets_.size());
  optim::Bucket bucket;
  std::int64_t n = 0;
  for (const std::size_t i : members) {
    StoredParam& p = params_[i];
    if (!p.spec.follows) n = round_up(n, tensor::kAlignment / element);
    p.bucket = index;
    p.offset = n;
    bucket.segments.push_back({.begin = n,
                               .size = p.spec.num_elements(),
                               .weight_decay = p.spec.weight_decay,
                               .counted = !p.spec.duplicate});
    n += p.spec.num_elements();
  }
  const ParamSpec& first = params_[members.front()].spec;
  bucket.group = &comms_.grad_group(first.group);
  bucket.sharded = options_.zero1 && bucket.group->size() > 1;
  n = round_up(n, bucket.group->size() * (tensor::kAlignment / element));
  bucket.grad = options_.training ? arena_.take(options_.dtype, {n}) : Tensor(nullptr, options_.dtype, {n});
  if (options_.training) bytes_.gradients += bucket.grad.bytes();
  bucket.counted = !first.tied_copy;
  if (first.tied_copy) {
    for (std::size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].spec.kind != ParamKind::embedding) continue;
      params_[members.front()].shares_value_of = static_cast<std::int32_t>(i);
      bucket.value = buckets_[static_cast<std::size_t>(params_[i].bucket)].value;
      bucket.updated = false;
    }
  }
  if (bucket.updated) {
    bucket.value = arena_.take(options_.dtype, {n});
    bytes_.values += bucket.value.bytes();
  }
  if (bucket.updated && options_.training) {
    const std::int64_t owned = bucket.sharded ? div_exact(n, bucket.group->size()) : n;
    bucket.m = arena_.take(options_.dtype, {owned});
    bucket.v = arena_.take(options_.dtype, {owned});
    bytes_.optimizer += bucket.m.bytes() + bucket.v.bytes();
  }
  for (const std::size_t i : members) {
    StoredParam& p = params_[i];
    p.value = bucket.value.narrow_rows(p.offset, p.spec.num_elements()).reshaped(shape_of(p.spec));
    p.grad = bucket.grad.narrow_rows(p.offset, p.spec.num_elements()).reshaped(shape_of(p.spec));
  }
  // Members are in backward order: the last one completes the bucket.
  ready_.push_back({first.stage, position_of(params_[members.back()].spec), index});
  buckets_.push_back(std::move(bucket));
  members.clear();
}

nn::Param ParamStore::view(std::size_t first, std::size_t count, Packing packing) {
  const StoredParam& p = params_.at(first);
  if (p.spec.buffer) return {{p.value, {}}, {}};
  std::int64_t rows = 0;
  for (std::size_t i = first; i < first + count; ++i) {
    TESSERA_CHECK(i == first || params_.at(i).spec.follows, "a fused weight is made of adjacent parameters");
    rows += params_.at(i).spec.slice.size[0];
  }
  const std::int64_t columns = p.spec.slice.size[1];
  const auto fused = [&](const Tensor& flat) {
    const Tensor part = flat.narrow_rows(p.offset, rows * columns);
    return p.spec.num_dims == 1 ? part : part.reshaped({rows, columns});
  };
  const optim::Bucket& bucket = buckets_[static_cast<std::size_t>(p.bucket)];
  nn::Param param{{fused(bucket.value), {}}, fused(bucket.grad)};
  if (packing == Packing::packed && p.spec.num_dims == 2) {
    const auto known = std::ranges::find_if(
        packed_, [&](const PackedView& v) { return v.first == first && v.count == count; });
    if (known != packed_.end()) return {known->weight, param.grad};
    const Bytes size = kernels_.packed_bytes(options_.dtype, rows, columns);
    if (size.value > 0) {
      param.weight.packed = arena_.take(DType::u8, {size.value});
      bytes_.packed += param.weight.packed.bytes();
      packed_.push_back({first, count, param.weight});
    }
  }
  return param;
}

namespace {
template <class T>
void fill_normal(const StoredParam& p, std::uint64_t seed, double range) {
  const ParamSpec& s = p.spec;
  const std::uint64_t stream = stream_of(s.name);
  T* out = p.value.as<T>();
  for (std::int64_t i = 0; i < s.slice.size[0]; ++i) {
    for (std::int64_t j = 0; j < s.slice.size[1]; ++j) {
      const std::int64_t element = (s.slice.begin[0] + i) * s.global[1] + s.slice.begin[1] + j;
      *out++ = static_cast<T>(range * normal(seed, stream, static_cast<std::uint64_t>(element)));
    }
  }
}
}  // namespace

void ParamStore::initialise(std::uint64_t seed, double range) {
  for (const StoredParam& p : params_) {
    if (p.shares_value_of >= 0) continue;
    const bool f64 = options_.dtype == DType::f64;
    if (p.spec.init != layout::Init::normal) {
      const bool ones = p.spec.init == layout::Init::ones;
      if (f64) {
        std::ranges::fill(p.value.span<double>(), ones ? 1.0 : 0.0);
      } else {
        std::ranges::fill(p.value.span<float>(), ones ? 1.0F : 0.0F);
      }
    } else if (f64) {
      fill_normal<double>(p, seed, range);
    } else {
      fill_normal<float>(p, seed, range);
    }
  }
}

void ParamStore::zero_grads(kernels::Kernels& kernels) {
  for (const optim::Bucket& b : buckets_) kernels.fill(b.grad, 0.0);
}

void ParamStore::pack(kernels::Kernels& kernels) {
  for (PackedView& v : packed_) kernels.pack(v.weight);
}

void ParamStore::sum_tied(kernels::Kernels& kernels, Communicator& tie) {
  for (const StoredParam& p : params_) {
    optim::Bucket& bucket = buckets_[static_cast<std::size_t>(p.bucket)];
    if (p.shares_value_of >= 0) {
      const StoredParam& primary = params_[static_cast<std::size_t>(p.shares_value_of)];
      const optim::Bucket& other = buckets_[static_cast<std::size_t>(primary.bucket)];
      kernels.accumulate(other.owned_grad(), bucket.owned_grad());
    } else if (tie.size() > 1 && (p.spec.tied_copy || p.spec.kind == ParamKind::embedding)) {
      tie.all_reduce(bucket.owned_grad());
    }
  }
}

}  // namespace tessera::exec
