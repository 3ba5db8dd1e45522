# One Google Benchmark program bench_<room> per folder of bench/ named after a room; it links that room and the rooms in
# bench/<room>/rooms.txt (words separated by blanks). A bench/<room>/deps.cmake adds outside libraries, such as a BLAS
# to compare with (target name bench_<room>).
find_package(benchmark REQUIRED)

foreach(room IN LISTS TESSERA_ROOMS)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/${room}/*_bench.cpp)
  if(NOT sources)
    continue()
  endif()
  add_executable(bench_${room} ${sources})
  target_include_directories(bench_${room} PRIVATE ${CMAKE_SOURCE_DIR}/bench ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(bench_${room} PRIVATE tessera_${room} benchmark::benchmark benchmark::benchmark_main)
  if(EXISTS ${CMAKE_SOURCE_DIR}/bench/${room}/rooms.txt)
    file(STRINGS bench/${room}/rooms.txt extra)
    string(REPLACE " " ";" extra "${extra}")
    foreach(dep IN LISTS extra)
      target_link_libraries(bench_${room} PRIVATE tessera_${dep})
    endforeach()
  endif()
  if(EXISTS ${CMAKE_SOURCE_DIR}/bench/${room}/deps.cmake)
    include(${CMAKE_SOURCE_DIR}/bench/${room}/deps.cmake)
  endif()
  target_compile_definitions(bench_${room} PRIVATE TESSERA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  # As in the tests: literals are compared with sizes all day.
  target_compile_options(bench_${room} PRIVATE -Wno-sign-conversion -Wno-conversion -Wno-sign-compare -Wno-shadow)
endforeach()
