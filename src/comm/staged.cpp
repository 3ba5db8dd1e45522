#include "comm/staged.h"

#include <map>
#include <utility>

#include "tensor/bf16.h"

namespace tessera::comm {

namespace {

using tensor::Access;
using tensor::Bf16;
using tensor::Buffer;
using tensor::Device;
using tensor::DType;
using tensor::Memory;
using tensor::Reach;

class Staged final : public Communicator {
 public:
  Staged(std::unique_ptr<Communicator> inner, std::shared_ptr<Memory> memory)
      : Communicator(inner->rank(), inner->size(), inner->label()),
        inner_(std::move(inner)),
        memory_(std::move(memory)) {}
  [[nodiscard]] bool moves(Device device) const override {
    return device == memory_->device() || inner_->moves(device);
  }
  void check(std::int64_t waited_ns) override { inner_->check(waited_ns); }
  void compare_sites(bool compare) override { inner_->compare_sites(compare); }

 private:
  // A tensor of a call, on the host.
  class Part {
   public:
    Part(Staged& staged, Buffer& buffer, const Tensor& x, Access access)
        : staged_(staged), there_(x), here_(x), access_(access) {
      if (x.device() == Device::cpu) return;
      here_ = staged_.on_host(buffer, x);
      if (access_ != Access::write) staged_.memory_->copy(here_, there_);
    }
    [[nodiscard]] const Tensor& here() const { return here_; }
    void give_back() const {
      if (there_.device() == Device::cpu || access_ == Access::read) return;
      staged_.memory_->copy(there_, here_);
      staged_.memory_->synchronise();  // the next call may use the same host memory
    }

   private:
    Staged& staged_;
    Tensor there_, here_;
    Access access_;
  };

  [[nodiscard]] Tensor on_host(Buffer& buffer, const Tensor& x) {
    if (buffer.size() < x.bytes()) buffer = Buffer(memory_, x.bytes(), Reach::shared);
    return {buffer.data(), x.dtype(), x.shape()};
  }

  // call(x) with one tensor; call(out, in) with two.
  template <class Call>
  void in_place(const Tensor& x, Access access, const Call& call) {
    const Part part(*this, out_, x, access);
    memory_->synchronise();
    call(part.here());
    part.give_back();
  }
  template <class Call>
  void out_of(const Tensor& out, const Tensor& in, const Call& call) {
    if (size() == 1) {
      memory_->copy(out, in);
      if (out.device() == Device::cpu || in.device() == Device::cpu) memory_->synchronise();
      return;
    }
    const Part to(*this, out_, out, Access::write);
    const Part from(*this, in_, in, Access::read);
    memory_->synchronise();
    call(to.here(), from.here());
    to.give_back();
  }

  // call(out, in) on f32 copies; in place where out is in.
  template <class Call>
  void sum_in_f32(const Tensor& out, const Tensor& in, const Call& call) {
    const Part from(*this, in_, in, Access::read);
    memory_->synchronise();
    const auto wide = [](Buffer& buffer, const Tensor& x) {
      const Bytes bytes(x.num_elements() * size_of(DType::f32));
      if (buffer.size() < bytes) buffer = Buffer(bytes);
      return Tensor(buffer.data(), DType::f32, x.shape());
    };
    const Tensor in32 = wide(wide_in_, in);
    for (std::int64_t i = 0; i < in.num_elements(); ++i) in32.as<float>()[i] = from.here().as<Bf16>()[i];
    const Tensor out32 = out.raw() == in.raw() && out.shape() == in.shape() ? in32 : wide(wide_out_, out);
    call(out32, in32);
    const Part to(*this, out_, out, Access::write);
    for (std::int64_t i = 0; i < out.num_elements(); ++i) to.here().as<Bf16>()[i] = out32.as<float>()[i];
    to.give_back();
  }

  void do_all_reduce(Tensor x) override {
    if (size() == 1) return;
    if (x.dtype() == DType::bf16)
      return sum_in_f32(x, x, [&](const Tensor& o, const Tensor&) { inner_->all_reduce(o); });
    in_place(x, Access::read_write, [&](const Tensor& h) { inner_->all_reduce(h); });
  }
  void do_all_reduce_direct(Tensor x, Op op) override {
    if (size() == 1) return;
    in_place(x, Access::read_write, [&](const Tensor& h) { inner_->all_reduce_direct(h, op); });
  }
  void do_reduce_scatter(Tensor out, Tensor in) override {
    if (size() > 1 && in.dtype() == DType::bf16)
      return sum_in_f32(out, in, [&](const Tensor& o, const Tensor& i) { inner_->reduce_scatter(o, i); });
    out_of(out, in, [&](const Tensor& o, const Tensor& i) { inner_->reduce_scatter(o, i); });
  }
  void do_all_gather(Tensor out, Tensor in) override {
    out_of(out, in, [&](const Tensor& o, const Tensor& i) { inner_->all_gather(o, i); });
  }
  void do_all_gather_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) override {
    out_of(out, in, [&](const Tensor& o, const Tensor& i) { inner_->all_gather_v(o, i, rows); });
  }
  void do_reduce_scatter_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) override {
    if (size() > 1 && in.dtype() == DType::bf16)
      return sum_in_f32(out, in,
                        [&](const Tensor& o, const Tensor& i) { inner_->reduce_scatter_v(o, i, rows); });
    out_of(out, in, [&](const Tensor& o, const Tensor& i) { inner_->reduce_scatter_v(o, i, rows); });
  }
  void do_all_to_all_v(Tensor out, std::span<const std::int64_t> recv_rows, Tensor in,
                       std::span<const std::int64_t> send_rows) override {
    out_of(out, in,
           [&](const Tensor& o, const Tensor& i) { inner_->all_to_all_v(o, recv_rows, i, send_rows); });
  }
  void do_send(Tensor x, std::int32_t to, std::int64_t tag) override {
    const Part part(*this, messages_[{to, tag}], x, Access::read);
    memory_->synchronise();
    inner_->send(part.here(), to, tag);
  }
  void do_recv(Tensor x, std::int32_t from, std::int64_t tag) override {
    in_place(x, Access::write, [&](const Tensor& h) { inner_->recv(h, from, tag); });
  }
  void do_wait_send(std::int32_t to, std::int64_t tag) override { inner_->wait_send(to, tag); }
  void do_broadcast(Tensor x, std::int32_t root) override {
    if (size() == 1) return;
    in_place(x, rank() == root ? Access::read : Access::write,
             [&](const Tensor& h) { inner_->broadcast(h, root); });
  }
  void do_barrier() override {
    memory_->synchronise();
    inner_->barrier();
  }

  // Messages outlive the inner communicator, which takes unread ones back.
  std::map<std::pair<std::int32_t, std::int64_t>, Buffer> messages_;
  Buffer in_, out_, wide_in_, wide_out_;
  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<Memory> memory_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner,
                                          std::shared_ptr<Memory> memory) {
  if (inner->moves(memory->device())) return inner;
  return std::make_unique<Staged>(std::move(inner), std::move(memory));
}

}  // namespace tessera::comm
