# The inner loops are compiled once per instruction set (src/kernels/cpu/isa.h). FMA contraction is what makes a
# multiply-add one rounding; no other freedom of -ffast-math is taken.
set(loops_flags -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -Wno-conversion
    -Wno-sign-conversion -Wno-ignored-attributes)
set_source_files_properties(${dir}/cpu/isa_generic.cpp PROPERTIES COMPILE_OPTIONS "${loops_flags}")
set_source_files_properties(${dir}/cpu/isa_avx2.cpp PROPERTIES COMPILE_OPTIONS "${loops_flags};-mavx2;-mfma")
set_source_files_properties(${dir}/cpu/isa_avx512.cpp PROPERTIES COMPILE_OPTIONS
  "${loops_flags};-mavx512f;-mavx512dq;-mavx512bw;-mavx512vl;-mavx2;-mfma;-mprefer-vector-width=512")

# GPUs: cuda/*.cu by nvcc, or absent.cpp where there is none.
if(TESSERA_HAVE_CUDA)
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${dir}/cuda/*.cu)
  target_sources(tessera_kernels PRIVATE ${cuda_sources})
  set_source_files_properties(${dir}/cuda/absent.cpp PROPERTIES HEADER_FILE_ONLY ON)
  target_compile_options(tessera_kernels PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;--expt-relaxed-constexpr;--Werror=all-warnings;-Xcompiler=-Wall;-Xptxas=--warn-on-spills;-Xptxas=--warning-as-error>")
  target_link_libraries(tessera_kernels PRIVATE CUDA::cudart_static)
endif()
