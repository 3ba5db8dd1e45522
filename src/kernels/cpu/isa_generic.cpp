// Inner loops for generic. See isa.h.
#define TESSERA_ISA cpu_generic
#define TESSERA_ISA_NAME "generic"
#define TESSERA_VECTOR_BYTES 16
#define TESSERA_TILE_ROWS 6
#include "kernels/cpu/isa.inc"
