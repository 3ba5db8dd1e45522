// Kernels that time every call of another backend: what each operation takes, beside the bytes that it must
// move and the FLOPs that it does. Each call waits for the device before and after, so the whole is slower
// than without; on a GPU a time holds one launch and one wait, on a CPU it is that of the thread's own clock.
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

// Thread safe.
class Profile {
 public:
  void clear();
  void add(std::string name, std::string width, std::int64_t ns, Bytes bytes, Flops flops);
  [[nodiscard]] std::vector<OperatorUse> uses() const;  // longest time first

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, OperatorUse> uses_;
};

// profile outlives the result.
[[nodiscard]] std::unique_ptr<Kernels> make_profiled(std::unique_ptr<Kernels> inner, Profile& profile);

}  // namespace tessera::kernels
