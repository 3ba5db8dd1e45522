#include "kernels/cpu/isa.h"

namespace tessera::kernels {

namespace cpu_avx512 {
const cpu::Isa& table();
}
namespace cpu_avx2 {
const cpu::Isa& table();
}
namespace cpu_generic {
const cpu::Isa& table();
}

namespace cpu {

const Isa& avx512() {
  return cpu_avx512::table();
}
const Isa& avx2() {
  return cpu_avx2::table();
}
const Isa& generic() {
  return cpu_generic::table();
}

bool supported(const Isa& isa) {
  if (&isa == &avx512()) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  if (&isa == &avx2()) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return true;
}

const Isa& best() {
  if (supported(avx512())) return avx512();
  if (supported(avx2())) return avx2();
  return generic();
}

}  // namespace cpu
}  // namespace tessera::kernels
