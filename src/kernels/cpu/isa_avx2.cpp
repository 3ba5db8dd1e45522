// Inner loops for AVX2. See isa.h.
#define TESSERA_ISA cpu_avx2
#define TESSERA_ISA_NAME "AVX2"
#define TESSERA_VECTOR_BYTES 32
#define TESSERA_TILE_ROWS 6
#include "kernels/cpu/isa.inc"
