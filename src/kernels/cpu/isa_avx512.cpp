// Inner loops for AVX-512. See isa.h.
#define TESSERA_ISA cpu_avx512
#define TESSERA_ISA_NAME "AVX-512"
#define TESSERA_VECTOR_BYTES 64
#define TESSERA_TILE_ROWS 14
#include "kernels/cpu/isa.inc"
