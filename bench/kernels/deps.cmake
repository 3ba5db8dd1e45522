# OpenBLAS to compare with. The pthread build by its full path: the serial build gives wrong results when
# threads share it.
find_library(TESSERA_OPENBLAS NAMES openblas PATHS /usr/lib/x86_64-linux-gnu/openblas-pthread NO_DEFAULT_PATH)
find_path(TESSERA_CBLAS_INCLUDE cblas.h PATHS /usr/include/x86_64-linux-gnu/openblas-pthread NO_DEFAULT_PATH)
if(TESSERA_OPENBLAS AND TESSERA_CBLAS_INCLUDE)
  target_link_libraries(bench_kernels PRIVATE ${TESSERA_OPENBLAS})
  target_include_directories(bench_kernels SYSTEM PRIVATE ${TESSERA_CBLAS_INCLUDE})
  target_compile_definitions(bench_kernels PRIVATE TESSERA_BENCH_OPENBLAS)
endif()
