add_dependencies(test_cli tessera)
find_package(nlohmann_json REQUIRED)
target_link_libraries(test_cli PRIVATE nlohmann_json::nlohmann_json tessera_base)
target_compile_definitions(test_cli PRIVATE TESSERA_PROGRAM="$<TARGET_FILE:tessera>")
