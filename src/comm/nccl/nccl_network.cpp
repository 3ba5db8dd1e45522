#include "comm/nccl/nccl_network.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 18, 0), "non-blocking communicators and ncclCommFinalize");

namespace tessera::comm::nccl {

namespace {

using tensor::DType;

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::u8:
      break;
  }
  return ncclUint8;
}

ncclRedOp_t op_of(Op op) {
  return op == Op::max ? ncclMax : ncclSum;
}

std::size_t count(const Tensor& x) {
  return static_cast<std::size_t>(x.num_elements());
}

void check_cuda(cudaError_t code, std::string_view call) {
  if (code == cudaSuccess) return;
  throw Error(ErrorKind::unsupported, fmt::format("{}: {}", call, cudaGetErrorString(code)), "NCCL",
              "run on a machine with NVIDIA GPUs and their driver, or leave --device cuda out");
}

class NcclGroup;

class NcclNetwork final : public DeviceNetwork {
 public:
  NcclNetwork(std::int32_t device, std::shared_ptr<tensor::Memory> memory, Seconds timeout);
  [[nodiscard]] std::string device_name() const override { return name_; }
  [[nodiscard]] Id new_id() override;
  [[nodiscard]] std::unique_ptr<DeviceGroup> join(const Id& id, std::int32_t rank, std::int32_t size,
                                                  std::string_view label) override;
  void check() override;
  void end_all() noexcept override;
  [[nodiscard]] std::int64_t patience_ns() const override { return timeout_ns_; }

  void use_device() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }
  [[nodiscard]] cudaStream_t stream() const { return static_cast<cudaStream_t>(memory_->queue()); }
  [[nodiscard]] bool ended() const { return ended_.load(); }
  void add(NcclGroup* group);
  void remove(NcclGroup* group);

 private:
  std::int32_t device_;
  std::shared_ptr<tensor::Memory> memory_;
  std::int64_t timeout_ns_;
  std::string name_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // of groups_
  std::vector<NcclGroup*> groups_;
};

// Calls of NCCL on one communicator, one at a time; who ends it from another thread waits for the call that
// runs, which looks at NcclNetwork::aborted while it waits.
class NcclGroup final : public DeviceGroup {
 public:
  NcclGroup(NcclNetwork& network, const DeviceNetwork::Id& id, std::int32_t rank, std::int32_t size,
            std::string_view label)
      : network_(network), label_(label) {
    ncclUniqueId unique{};
    static_assert(sizeof unique.internal == std::tuple_size_v<DeviceNetwork::Id>);
    std::memcpy(unique.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = label.data();  // static storage, ends with a zero
    network_.use_device();
    network_.add(this);
    try {
      const std::lock_guard lock(mutex_);
      settle(ncclCommInitRankConfig(&comm_, size, unique, rank, &config), "ncclCommInitRankConfig");
    } catch (...) {
      network_.remove(this);
      end();
      throw;
    }
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  ~NcclGroup() override {
    network_.remove(this);
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    try {
      settle(ncclCommFinalize(comm_), "ncclCommFinalize");
      (void)ncclCommDestroy(comm_);
    } catch (...) {
      (void)ncclCommAbort(comm_);
    }
  }

  void all_reduce(const Tensor& x, Op op) override {
    queue("ncclAllReduce", [&](cudaStream_t s) {
      return ncclAllReduce(x.raw(), x.raw(), count(x), type_of(x.dtype()), op_of(op), comm_, s);
    });
  }
  void reduce_scatter(const Tensor& out, const Tensor& in) override {
    queue("ncclReduceScatter", [&](cudaStream_t s) {
      return ncclReduceScatter(in.raw(), out.raw(), count(out), type_of(in.dtype()), ncclSum, comm_, s);
    });
  }
  void all_gather(const Tensor& out, const Tensor& in) override {
    queue("ncclAllGather", [&](cudaStream_t s) {
      return ncclAllGather(in.raw(), out.raw(), count(in), type_of(in.dtype()), comm_, s);
    });
  }
  void broadcast(const Tensor& x, std::int32_t root) override {
    queue("ncclBroadcast", [&](cudaStream_t s) {
      return ncclBroadcast(x.raw(), x.raw(), count(x), type_of(x.dtype()), root, comm_, s);
    });
  }
  void reduce_rows(const Tensor& out, const Tensor& in, std::span<const std::int64_t> rows) override {
    together("ncclReduce", [&](cudaStream_t s, const auto& each) {
      std::int64_t first = 0;
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const Tensor part = in.narrow_rows(first, rows[r]);
        first += rows[r];
        if (part.empty()) continue;
        each(ncclReduce(part.raw(), out.raw(), count(part), type_of(in.dtype()), ncclSum, static_cast<int>(r),
                        comm_, s));
      }
    });
  }
  void exchange(std::span<const Piece> sent, std::span<const Piece> received) override {
    together("ncclSend and ncclRecv", [&](cudaStream_t s, const auto& each) {
      for (const Piece& p : sent)
        each(ncclSend(p.data, static_cast<std::size_t>(p.bytes), ncclUint8, p.peer, comm_, s));
      for (const Piece& p : received)
        each(ncclRecv(p.data, static_cast<std::size_t>(p.bytes), ncclUint8, p.peer, comm_, s));
    });
  }

  // An error that NCCL found while nobody called it.
  void check() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || comm_ == nullptr) return;  // whoever calls finds it
    ncclResult_t state = ncclSuccess;
    throw_if(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
    throw_if(state, "a collective");
  }
  void end() noexcept {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) (void)ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  template <class Call>
  void queue(std::string_view what, const Call& call) {
    const std::lock_guard lock(mutex_);
    require_open(what);
    network_.use_device();
    settle(call(network_.stream()), what);
  }
  // Several calls that NCCL starts at once.
  template <class Calls>
  void together(std::string_view what, const Calls& calls) {
    const std::lock_guard lock(mutex_);
    require_open(what);
    network_.use_device();
    throw_if(ncclGroupStart(), "ncclGroupStart");
    ncclResult_t worst = ncclSuccess;
    calls(network_.stream(), [&](ncclResult_t result) {
      if (result != ncclSuccess && result != ncclInProgress && worst == ncclSuccess) worst = result;
    });
    const ncclResult_t ended = ncclGroupEnd();
    throw_if(worst, what);
    settle(ended, what);
  }
  void require_open(std::string_view what) const {
    if (comm_ != nullptr) return;
    throw Error(ErrorKind::comm, fmt::format("{} after the groups of this rank were ended", what),
                std::string(label_), "see the error before this one");
  }
  // Without blocking a call may go on after it has returned; the next one must not begin before.
  void settle(ncclResult_t result, std::string_view what) {
    const std::int64_t start = wall_ns();
    while (result == ncclInProgress) {
      if (network_.ended())
        throw Error(ErrorKind::comm, fmt::format("{} was given up", what), std::string(label_),
                    "see the error of the rank that failed first");
      if (wall_ns() - start > network_.patience_ns())
        throw Error(ErrorKind::comm,
                    fmt::format("{}: the other ranks did not come within {:.0f} s", what,
                                static_cast<double>(network_.patience_ns()) * 1e-9),
                    std::string(label_),
                    "see whether all processes run, and reach each other's network interfaces "
                    "(NCCL_SOCKET_IFNAME); NCCL_DEBUG=INFO shows what NCCL does");
      std::this_thread::yield();
      ncclResult_t state = ncclInProgress;
      throw_if(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
      result = state;
    }
    throw_if(result, what);
  }
  void throw_if(ncclResult_t result, std::string_view what) const {
    if (result == ncclSuccess || result == ncclInProgress) return;
    const char* last = ncclGetLastError(comm_);
    throw Error(ErrorKind::comm,
                fmt::format("NCCL {}: {}: {}{}{}", version(), what, ncclGetErrorString(result),
                            last != nullptr && *last != '\0' ? ": " : "", last != nullptr ? last : ""),
                std::string(label_),
                "NCCL_DEBUG=INFO shows what NCCL does; nvidia-smi the state of the GPUs");
  }

  NcclNetwork& network_;
  std::string_view label_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
};

NcclNetwork::NcclNetwork(std::int32_t device, std::shared_ptr<tensor::Memory> memory, Seconds timeout)
    : device_(device),
      memory_(std::move(memory)),
      timeout_ns_(static_cast<std::int64_t>(timeout.value * 1e9)) {
  int devices = 0;
  check_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (device < 0 || device >= devices)
    throw Error(ErrorKind::unsupported, fmt::format("GPU {} of {}", device, devices), "NCCL",
                "choose a GPU that nvidia-smi lists");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  name_ = "GPU-";
  for (const char byte : properties.uuid.bytes)
    name_ += fmt::format("{:02x}", static_cast<unsigned char>(byte));
}

DeviceNetwork::Id NcclNetwork::new_id() {
  ncclUniqueId unique{};
  const ncclResult_t result = ncclGetUniqueId(&unique);
  if (result != ncclSuccess)
    throw Error(ErrorKind::comm, fmt::format("ncclGetUniqueId: {}", ncclGetErrorString(result)), "NCCL",
                "NCCL needs a network interface to listen on: see NCCL_SOCKET_IFNAME and NCCL_DEBUG=INFO");
  Id id{};
  std::memcpy(id.data(), unique.internal, id.size());
  return id;
}

std::unique_ptr<DeviceGroup> NcclNetwork::join(const Id& id, std::int32_t rank, std::int32_t size,
                                               std::string_view label) {
  return std::make_unique<NcclGroup>(*this, id, rank, size, label);
}

void NcclNetwork::add(NcclGroup* group) {
  const std::lock_guard lock(mutex_);
  groups_.push_back(group);
}
void NcclNetwork::remove(NcclGroup* group) {
  const std::lock_guard lock(mutex_);
  std::erase(groups_, group);
}

void NcclNetwork::check() {
  const std::lock_guard lock(mutex_);
  for (NcclGroup* group : groups_) group->check();
}

void NcclNetwork::end_all() noexcept {
  ended_ = true;
  const std::lock_guard lock(mutex_);
  for (NcclGroup* group : groups_) group->end();
}

}  // namespace

bool is_built_in() {
  return true;
}

std::string version() {
  int code = 0;
  if (ncclGetVersion(&code) != ncclSuccess) return "";
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

std::unique_ptr<DeviceNetwork> make_network(std::int32_t device, std::shared_ptr<tensor::Memory> memory,
                                            Seconds timeout) {
  return std::make_unique<NcclNetwork>(device, std::move(memory), timeout);
}

}  // namespace tessera::comm::nccl
