add_dependencies(test_cli tessera)
find_package(nlohmann_json REQUIRED)
target_link_libraries(test_cli PRIVATE nlohmann_json::nlohmann_json tessera_base)
target_compile_definitions(test_cli PRIVATE TESSERA_PROGRAM="$<TARGET_FILE:tessera>")
# Loaded before the C library: a wall clock that jumps at every look.
add_library(tessera_jumping_clock MODULE tests/cli/jumping_clock.cpp)
add_dependencies(test_cli tessera_jumping_clock)
target_compile_definitions(test_cli PRIVATE TESSERA_JUMPING_CLOCK="$<TARGET_FILE:tessera_jumping_clock>")
