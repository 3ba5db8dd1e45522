# The CUDA backend is one of the implementations that every kernel test runs.
target_link_libraries(test_kernels PRIVATE tessera_emulated)
