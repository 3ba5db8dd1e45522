find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
target_link_libraries(tessera PRIVATE CLI11::CLI11 nlohmann_json::nlohmann_json)
target_compile_definitions(tessera PRIVATE TESSERA_VERSION="${PROJECT_VERSION}")
