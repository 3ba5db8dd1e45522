# The additions and copies are loops over large arrays: vectorise them fully.
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/comm/thread/sum.cpp PROPERTIES COMPILE_OPTIONS "-O3")
