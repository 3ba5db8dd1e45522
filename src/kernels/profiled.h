// Kernels that time every call of another backend: what each operation takes, beside the bytes that it must
// move and the FLOPs that it does. Calls stay queued behind each other: a time lies between two marks in the
// lane (tensor::Mark), on a GPU's own clock. Where the host queues more slowly than the GPU computes, it
// holds the gap until the launch; on a CPU it is that of the thread's own clock.
//
//   Profile profile;
//   auto kernels = make_profiled(make_cpu(), profile);
//   ... a step ...
//   for (const OperatorUse& use : profile.uses()) ...
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace tessera::kernels {

// All calls of one operation on rows of one width, whatever their number: experts get other rows each time.
struct OperatorUse {
  std::string name;  // "linear"
  // "4096 to 14336" of a product's inputs and outputs; else of the rows, or "" of flat tensors
  std::string width;
  std::int64_t calls = 0;
  Seconds time;
  // bytes: every tensor read once and written once, rows that are chosen by an index as many times as they
  // are chosen; what a cache saves or a second pass costs is not in it.
  Bytes bytes;
  Flops flops;
};

// Thread safe. Of kernels that went before it, it keeps the memory until their marks are read.
class Profile {
 public:
  // A call between two marks.
  struct Span {
    std::shared_ptr<tensor::Memory> memory;  // before the marks, which it outlives
    std::unique_ptr<tensor::Mark> start, end;
    std::string name, width;
    Bytes bytes;
    Flops flops;
  };

  void clear();  // and what is still queued
  // With marks to record, of that memory.
  [[nodiscard]] Span begin(const std::shared_ptr<tensor::Memory>& memory);
  void add(Span span);                            // both marks recorded
  [[nodiscard]] std::vector<OperatorUse> uses();  // longest time first; waits for what is queued

 private:
  void read();  // the marks of all spans, which are free then. REQUIRES: mutex_ is held

  std::mutex mutex_;
  std::vector<Span> spans_, free_;
  std::map<std::pair<std::string, std::string>, OperatorUse> uses_;
};

// profile outlives the result.
[[nodiscard]] std::unique_ptr<Kernels> make_profiled(std::unique_ptr<Kernels> inner, Profile& profile);

}  // namespace tessera::kernels
