find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json REQUIRED)
target_link_libraries(tessera_spec PRIVATE yaml-cpp nlohmann_json::nlohmann_json)
