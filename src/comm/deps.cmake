# The additions and copies are loops over large arrays: vectorise them fully.
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/comm/thread/sum.cpp PROPERTIES COMPILE_OPTIONS "-O3")

# MPI joins processes; without it the ranks of a job are threads of one process.
option(TESSERA_MPI "Use MPI where it is installed" ON)
if(TESSERA_MPI)
  find_package(MPI COMPONENTS CXX)
endif()
if(TESSERA_MPI AND MPI_CXX_FOUND)
  set_source_files_properties(${dir}/mpi/absent.cpp PROPERTIES HEADER_FILE_ONLY ON)
  set_source_files_properties(${dir}/mpi/mpi_wire.cpp PROPERTIES
    COMPILE_DEFINITIONS "OMPI_SKIP_MPICXX;MPICH_SKIP_MPICXX")
  target_link_libraries(tessera_comm PRIVATE MPI::MPI_CXX)
else()
  set_source_files_properties(${dir}/mpi/mpi_wire.cpp PROPERTIES HEADER_FILE_ONLY ON)
endif()
