// NCCL on GPU 0 with one rank, as many as it takes on one GPU: its calls, lanes and clean end.
#include <gtest/gtest.h>

#include <cstdlib>

#include "comm/nccl/nccl_network.h"
#include "kernels/cuda/cuda_kernels.h"
#include "support/tensors.h"

namespace tessera::testing {
namespace {

using comm::Tensor;
using tensor::Buffer;
using tensor::DType;

TEST(NcclGpu, OneRankKeepsItsNumbersInEveryCall) {
  const kernels::DeviceList list = kernels::cuda_devices();
  if (list.count == 0 && std::getenv("TESSERA_REQUIRE_GPU") != nullptr) FAIL() << list.why_none;
  if (list.count == 0) GTEST_SKIP() << "no GPU: " << list.why_none;
  if (!comm::nccl::is_built_in()) GTEST_SKIP() << "this build has no NCCL";
  const auto kernels = kernels::make_cuda(0);
  const std::shared_ptr<tensor::Memory>& memory = kernels->memory();
  const auto network = comm::nccl::make_network(0, memory, Seconds(60.0));
  const auto group = network->join(network->new_id(), 0, 1, "one");
  for (const std::int32_t lane : {0, memory->new_lane()}) {
    const tensor::InLane in(*memory, lane);
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      const test::Owned values = test::random(dtype, {6, 4}, 1), got(dtype, {6, 4});
      const Buffer first(memory, Tensor(values).bytes(), tensor::Reach::own),
          second(memory, Tensor(values).bytes(), tensor::Reach::own);
      const Tensor x(first.data(), dtype, {6, 4}, memory->device()),
          y(second.data(), dtype, {6, 4}, memory->device());
      memory->copy(x, values);
      group->all_reduce(x, comm::Op::sum);
      group->all_reduce(x, comm::Op::max);
      group->reduce_scatter(y, x);
      group->all_gather(x, y);
      group->broadcast(x, 0);
      memory->clear(y);
      group->reduce_rows(y, x, std::array{std::int64_t{6}});
      memory->copy(got, y);
      memory->synchronise();
      network->check();
      EXPECT_EQ(test::values(got), test::values(values)) << tensor::name(dtype) << " in lane " << lane;
    }
  }
}

}  // namespace
}  // namespace tessera::testing
