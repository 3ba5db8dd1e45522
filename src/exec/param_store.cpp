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
    p.value = arena_.take(value_dtype(), shape_of(p.spec));
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
  share_buffers();
  for (std::size_t b = 0; b < buckets_.size(); ++b) take_memory(b);
}

// What goes through a pass together shares buckets when these come and go by unit.
std::int32_t ParamStore::unit_of(const ParamSpec& spec) const {
  const bool mtp = spec.layer >= options_.num_layers && options_.zero_stage >= 2;
  return mtp ? kHeadPosition : position_of(spec);
}

void ParamStore::make_buckets(StageId stage, GradGroup group) {
  std::map<std::int32_t, Members, std::greater<>> by_position;  // last layer first
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const ParamSpec& s = params_[i].spec;
    if (s.stage == stage && s.group == group && !s.buffer) by_position[unit_of(s)].push_back(i);
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
      open_bytes += s.num_elements() * size_of(value_dtype());
    }
    if (open_bytes >= options_.bucket_bytes || options_.zero_stage == 3) {
      close_bucket(open);
      open_bytes = 0;
    }
  }
  close_bucket(open);
}

void ParamStore::close_bucket(Members& members) {
  if (members.empty()) return;
  const std::int64_t element = size_of(value_dtype());
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
  bucket.sharded = options_.zero_stage >= 1 && bucket.group->size() > 1;
  bucket.keeps_grad = !bucket.sharded || options_.zero_stage < 2;
  bucket.keeps_value = !bucket.sharded || options_.zero_stage < 3;
  bucket.counted = !first.tied_copy;
  n = round_up(n, bucket.group->size() * (tensor::kAlignment / element));
  bucket.grad = bucket.value = Tensor(nullptr, value_dtype(), {n});
  // Members are in backward order.
  Span span{.stage = first.stage, .first = unit_of(first), .last = unit_of(params_[members.back()].spec)};
  if (first.tied_copy) {
    for (std::size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].spec.kind != ParamKind::embedding) continue;
      params_[members.front()].shares_value_of = static_cast<std::int32_t>(i);
      span.shares_value_of = params_[i].bucket;
      bucket.updated = false;
    }
  }
  spans_.push_back(span);
  buckets_.push_back(std::move(bucket));
  members_.push_back(std::exchange(members, {}));
}

// Two buffers a group: while one unit uses its bucket, that of the next comes or that of the last one goes.
void ParamStore::share_buffers() {
  struct Buffer {
    std::int64_t elements = 0;
    const Communicator* group = nullptr;  // null: one bucket's own
    std::int32_t turn = 0;
  };
  std::vector<Buffer> grads, values;
  const auto assign = [&](std::vector<Buffer>& buffers, std::size_t b, std::int32_t& turns) {
    const optim::Bucket& bucket = buckets_[b];
    const ParamSpec& first = params_[members_[b].front()].spec;
    const bool alone = options_.tied && (first.tied_copy || first.kind == ParamKind::embedding);
    const Communicator* group = alone ? nullptr : bucket.group;
    const std::int32_t turn = alone ? 0 : turns++ % 2;
    auto at = std::ranges::find_if(
        buffers, [&](const Buffer& x) { return !alone && x.group == group && x.turn == turn; });
    if (at == buffers.end()) at = buffers.insert(buffers.end(), Buffer{.group = group, .turn = turn});
    at->elements = std::max(at->elements, bucket.grad.num_elements());
    return static_cast<std::int32_t>(at - buffers.begin());
  };
  std::map<const Communicator*, std::int32_t> grad_turns, value_turns;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    const optim::Bucket& bucket = buckets_[b];
    if (!bucket.keeps_grad) spans_[b].grad_buffer = assign(grads, b, grad_turns[bucket.group]);
    if (!bucket.keeps_value && bucket.updated)
      spans_[b].value_buffer = assign(values, b, value_turns[bucket.group]);
  }
  for (const Buffer& x : values) {
    value_buffers_.push_back(arena_.take(value_dtype(), {x.elements}));
    bytes_.values += value_buffers_.back().bytes();
  }
  for (const Buffer& x : grads) {
    if (!options_.training) break;
    grad_buffers_.push_back(arena_.take(value_dtype(), {x.elements}));
    bytes_.gradients += grad_buffers_.back().bytes();
  }
}

void ParamStore::take_memory(std::size_t b) {
  optim::Bucket& bucket = buckets_[b];
  const Span& span = spans_[b];
  const std::int64_t n = bucket.grad.num_elements();
  const std::int64_t owned = bucket.owned_size();
  const auto take = [&](std::int64_t elements, Bytes& sum) {
    Tensor t = arena_.take(value_dtype(), {elements});
    sum += t.bytes();
    return t;
  };
  const auto part_of = [&](const std::vector<Tensor>& buffers, std::int32_t at) {
    return buffers[static_cast<std::size_t>(at)].narrow_rows(0, n);
  };
  if (options_.training) {
    if (!bucket.keeps_grad) bucket.grad_shard = take(owned, bytes_.gradients);
    bucket.grad = bucket.keeps_grad ? take(n, bytes_.gradients) : part_of(grad_buffers_, span.grad_buffer);
  }
  if (span.shares_value_of >= 0) {
    bucket.value = buckets_[static_cast<std::size_t>(span.shares_value_of)].value;
  } else if (bucket.keeps_value) {
    bucket.value = take(n, bytes_.values);
  } else {
    bucket.value_shard = take(owned, bytes_.values);
    bucket.value = part_of(value_buffers_, span.value_buffer);
  }
  if (bucket.updated && options_.training) {
    bucket.m = take(owned, bytes_.optimizer);
    bucket.v = take(owned, bytes_.optimizer);
  }
  for (const std::size_t i : members_[b]) {
    StoredParam& p = params_[i];
    p.value = bucket.value.narrow_rows(p.offset, p.spec.num_elements()).reshaped(shape_of(p.spec));
    p.grad = bucket.grad.narrow_rows(p.offset, p.spec.num_elements()).reshaped(shape_of(p.spec));
  }
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
  // Values that come and go are not worth a packed copy.
  if (packing == Packing::packed && p.spec.num_dims == 2 && bucket.keeps_value) {
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

void ParamStore::write_values(const std::function<void(const StoredParam&)>& write) {
  tensor::Memory& memory = *kernels_.memory();
  const auto write_one = [&](const StoredParam& p) {
    on_host(memory, p.value, tensor::Access::write, [&](const Tensor& value) {
      StoredParam here = p;
      here.value = value;
      write(here);
    });
  };
  for (const StoredParam& p : params_) {
    if (p.spec.buffer) write_one(p);
  }
  // Bucket by bucket: they may share the memory that is written.
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    if (spans_[b].shares_value_of >= 0) continue;
    optim::Bucket& bucket = buckets_[b];
    if (!bucket.keeps_value) memory.clear(bucket.value);
    for (const std::size_t i : members_[b]) write_one(params_[i]);
    if (!bucket.keeps_value) memory.copy(bucket.value_shard, bucket.owned_part(bucket.value));
  }
}

void ParamStore::initialise(std::uint64_t seed, double range) {
  write_values([&](const StoredParam& p) {
    const bool f64 = value_dtype() == DType::f64;
    if (p.spec.init == layout::Init::normal) {
      f64 ? fill_normal<double>(p, seed, range) : fill_normal<float>(p, seed, range);
      return;
    }
    const bool ones = p.spec.init == layout::Init::ones;
    if (f64) {
      std::ranges::fill(p.value.span<double>(), ones ? 1.0 : 0.0);
    } else {
      std::ranges::fill(p.value.span<float>(), ones ? 1.0F : 0.0F);
    }
  });
}

void ParamStore::rename(std::vector<ParamSpec> specs) {
  TESSERA_CHECK_EQ(specs.size(), params_.size(), "as many parameters as before");
  for (std::size_t i = 0; i < specs.size(); ++i) {
    TESSERA_CHECK(specs[i].slice == params_[i].spec.slice && specs[i].kind == params_[i].spec.kind,
                  "parameters change their names alone");
    params_[i].spec = std::move(specs[i]);
  }
}

void ParamStore::zero_grads(kernels::Kernels& kernels) {
  for (const optim::Bucket& b : buckets_) kernels.fill(b.keeps_grad ? b.grad : b.grad_shard, 0.0);
}

void ParamStore::pack(kernels::Kernels& kernels) {
  for (PackedView& v : packed_) kernels.pack(v.weight);
}

void ParamStore::pack_bucket(kernels::Kernels& kernels, std::size_t bucket) {
  const auto of_bucket = [&](std::size_t param) {
    const auto b = static_cast<std::size_t>(params_[param].bucket);
    const std::int32_t shared = spans_[b].shares_value_of;
    return b == bucket || (shared >= 0 && static_cast<std::size_t>(shared) == bucket);
  };
  for (PackedView& v : packed_) {
    if (of_bucket(v.first)) kernels.pack(v.weight);
  }
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
