// What moves tensors between the memories of GPUs: NCCL (nccl/), or a test's own. A rank has one
// DeviceNetwork; a DeviceGroup is its end of one group. device_communicator.h makes a Communicator of them.
//
// Operations of a group queue in the calling thread's lane (tensor/memory.h) and return; all ranks of a group
// must queue the same ones in the same order. Sums are added in an order that the library chooses, the same
// in every run of one layout.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"

namespace tessera::comm {

class DeviceGroup {
 public:
  virtual ~DeviceGroup() = default;
  // Bytes that go to one other rank of the group, or come from it.
  struct Piece {
    std::int32_t peer = 0;
    std::byte* data = nullptr;
    std::int64_t bytes = 0;
  };
  // Of tensors in the device's memory, none of them empty. In place as Communicator allows it.
  virtual void all_reduce(const Tensor& x, Op op) = 0;
  virtual void reduce_scatter(const Tensor& out, const Tensor& in) = 0;
  virtual void all_gather(const Tensor& out, const Tensor& in) = 0;
  virtual void broadcast(const Tensor& x, std::int32_t root) = 0;
  // in: rows[r] rows for each rank r, whose sum over all ranks rank r keeps in `out`.
  virtual void reduce_rows(const Tensor& out, const Tensor& in, std::span<const std::int64_t> rows) = 0;
  // All at once: none waits for another.
  virtual void exchange(std::span<const Piece> sent, std::span<const Piece> received) = 0;
};

class DeviceNetwork {
 public:
  virtual ~DeviceNetwork() = default;
  using Id = std::array<std::byte, 128>;  // one rank makes it and tells the others

  // The GPU of this rank, the same text for no other one of the job. Two ranks of one GPU cannot be joined.
  [[nodiscard]] virtual std::string device_name() const = 0;
  [[nodiscard]] virtual Id new_id() = 0;
  // Waits for the other ranks. `label` has static storage. Error{comm} when they do not come in time.
  [[nodiscard]] virtual std::unique_ptr<DeviceGroup> join(const Id& id, std::int32_t rank, std::int32_t size,
                                                          std::string_view label) = 0;
  // Error{comm} when the library has found one, on any thread.
  virtual void check() = 0;
  // Ends what is queued in all groups, with whatever numbers, so that the device comes to rest; no group can
  // be used any more.
  virtual void end_all() noexcept = 0;
  [[nodiscard]] virtual std::int64_t patience_ns() const = 0;  // with a collective, until it counts as hung
};

}  // namespace tessera::comm
