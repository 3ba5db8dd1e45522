# One test program per folder of tests/ named after a room; it links that room and the rooms in tests/<room>/rooms.txt
# (words separated by blanks) when a test needs more. A shared precompiled header keeps GoogleTest's cost to one compile.
find_package(GTest REQUIRED)
add_library(tessera_test_main STATIC tests/support/main.cpp)
target_link_libraries(tessera_test_main PUBLIC GTest::gtest GTest::gmock tessera_base)
target_precompile_headers(tessera_test_main PUBLIC <gtest/gtest.h> <gmock/gmock.h>)

# Queues of devices that are none.
add_library(tessera_lanes STATIC tests/support/queue.cpp tests/support/lanes.cpp)
target_include_directories(tessera_lanes PRIVATE tests)
target_link_libraries(tessera_lanes PUBLIC tessera_tensor)

# The CUDA sources for tests without a GPU: compiled for the host over tests/support/emulation.h.
set(emulated_sources "")
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cuda/*.cu)
list(REMOVE_ITEM cuda_sources ${CMAKE_SOURCE_DIR}/src/kernels/cuda/runtime.cu)
foreach(source IN LISTS cuda_sources)
  get_filename_component(name ${source} NAME_WE)
  set(output ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
  file(CONFIGURE OUTPUT ${output} CONTENT "#include \"kernels/cuda/${name}.cu\"\n")
  list(APPEND emulated_sources ${output})
endforeach()
add_library(tessera_emulated STATIC ${emulated_sources} tests/support/emulation.cpp
  tests/support/emulated_place.cpp tests/support/run_emulated.cpp)
target_include_directories(tessera_emulated PRIVATE tests src)
target_compile_definitions(tessera_emulated PRIVATE TESSERA_EMULATED)
target_compile_options(tessera_emulated PRIVATE -include support/emulation.h -Wno-sign-conversion -Wno-conversion -Wno-sign-compare)
target_link_libraries(tessera_emulated PUBLIC tessera_kernels tessera_lanes)

foreach(room IN LISTS TESSERA_ROOMS ITEMS house cli)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${room}/*_test.cpp)
  if(NOT sources)
    continue()
  endif()
  add_executable(test_${room} ${sources})
  target_include_directories(test_${room} PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/src)
  target_precompile_headers(test_${room} REUSE_FROM tessera_test_main)
  target_link_libraries(test_${room} PRIVATE tessera_test_main)
  if(TARGET tessera_${room})
    target_link_libraries(test_${room} PRIVATE tessera_${room})
  endif()
  if(EXISTS ${CMAKE_SOURCE_DIR}/tests/${room}/rooms.txt)
    file(STRINGS tests/${room}/rooms.txt extra)
    string(REPLACE " " ";" extra "${extra}")
    foreach(dep IN LISTS extra)
      target_link_libraries(test_${room} PRIVATE tessera_${dep})
    endforeach()
  endif()
  if(EXISTS ${CMAKE_SOURCE_DIR}/tests/${room}/deps.cmake)
    include(${CMAKE_SOURCE_DIR}/tests/${room}/deps.cmake)
  endif()
  target_compile_definitions(test_${room} PRIVATE
    TESSERA_SOURCE_DIR="${CMAKE_SOURCE_DIR}" TESSERA_BINARY_DIR="${CMAKE_BINARY_DIR}")
  # Warnings of sign and conversion are for the product; tests compare literals with sizes all day.
  target_compile_options(test_${room} PRIVATE -Wno-sign-conversion -Wno-conversion -Wno-sign-compare -Wno-shadow)
  add_test(NAME ${room} COMMAND test_${room})
  set_tests_properties(${room} PROPERTIES TIMEOUT 1200 ENVIRONMENT "${TESSERA_TEST_ENVIRONMENT_${room}}")
endforeach()

# What runs on a GPU alone: ctest -L gpu. Without one they are skipped with the reason.
function(add_gpu_test room filter)
  if(TARGET test_${room})
    add_test(NAME ${room}_gpu COMMAND test_${room} --gtest_filter=${filter})
    set_tests_properties(${room}_gpu PROPERTIES LABELS gpu TIMEOUT 600)
  endif()
endfunction()
add_gpu_test(kernels "*/cuda_f*:*/cuda_bf16:Cuda.*")
add_gpu_test(cudalib "OnGpu.*")
add_gpu_test(exec "GoldenGpu.*:NcclGpu.*")

# Programs that run under mpirun: add_mpi_test(NAME PROCESSES PROGRAM [ARGUMENTS...]). --oversubscribe and the
# permission for root are Open MPI's; MPICH needs neither.
if(TESSERA_MPI AND MPI_CXX_FOUND)
  execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpiexec_version ERROR_QUIET)
  set(TESSERA_MPIRUN ${MPIEXEC_EXECUTABLE})
  if(mpiexec_version MATCHES "Open MPI|OpenRTE")
    list(APPEND TESSERA_MPIRUN --oversubscribe --bind-to none)
  endif()
  function(add_mpi_test name processes program)
    add_test(NAME ${name} COMMAND ${TESSERA_MPIRUN} -n ${processes} $<TARGET_FILE:${program}> ${ARGN})
    set_tests_properties(${name} PROPERTIES TIMEOUT 300
      ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
  endfunction()

  add_executable(test_comm_mpi tests/comm/mpi/main.cpp tests/comm/collectives_test.cpp tests/comm/messages_test.cpp)
  target_include_directories(test_comm_mpi PRIVATE tests src)
  target_link_libraries(test_comm_mpi PRIVATE GTest::gtest GTest::gmock tessera_comm)
  target_compile_definitions(test_comm_mpi PRIVATE TESSERA_TEST_MPI)
  target_compile_options(test_comm_mpi PRIVATE -Wno-sign-conversion -Wno-conversion -Wno-sign-compare -Wno-shadow)
  add_executable(tessera_faults tests/comm/mpi/faults.cpp)
  target_include_directories(tessera_faults PRIVATE src)
  target_link_libraries(tessera_faults PRIVATE tessera_comm)
  add_dependencies(test_comm tessera_faults)
  string(REPLACE ";" " " mpirun_words "${TESSERA_MPIRUN}")
  set_source_files_properties(tests/comm/mpi_faults_test.cpp PROPERTIES COMPILE_DEFINITIONS
    "TESSERA_FAULTS_PROGRAM=\"${CMAKE_BINARY_DIR}/tessera_faults\";TESSERA_MPIRUN=\"${mpirun_words}\"")

  set_source_files_properties(tests/cli/mpi_test.cpp tests/cli/cluster_test.cpp tests/cli/kills_test.cpp
    tests/cli/leave_test.cpp PROPERTIES COMPILE_DEFINITIONS
    "TESSERA_MPIRUN=\"${mpirun_words}\"")

  add_executable(test_exec_mpi tests/comm/mpi/main.cpp tests/exec/mpi/parity.cpp tests/exec/run_support_test.cpp)
  target_include_directories(test_exec_mpi PRIVATE tests tests/exec src)
  target_link_libraries(test_exec_mpi PRIVATE GTest::gtest GTest::gmock tessera_exec)
  target_compile_definitions(test_exec_mpi PRIVATE TESSERA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_compile_options(test_exec_mpi PRIVATE -Wno-sign-conversion -Wno-conversion -Wno-sign-compare -Wno-shadow)
  set(engine_tests --gtest_filter=EngineOverProcesses*)
  add_mpi_test(exec_mpi_4_processes 4 test_exec_mpi ${engine_tests})
  add_mpi_test(exec_mpi_6_processes 6 test_exec_mpi ${engine_tests})
  add_mpi_test(exec_mpi_2_processes_of_2 2 test_exec_mpi ${engine_tests} --ranks-per-process=2)
  add_mpi_test(comm_mpi_4_processes 4 test_comm_mpi)
  add_mpi_test(comm_mpi_6_processes 6 test_comm_mpi)
  add_mpi_test(comm_mpi_2_processes_of_2 2 test_comm_mpi --ranks-per-process=2)
endif()
