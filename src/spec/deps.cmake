find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json REQUIRED)
target_link_libraries(tessera_spec PRIVATE yaml-cpp nlohmann_json::nlohmann_json)
tessera_embed(tessera_spec tessera::spec cluster_files src/spec/clusters yaml)
