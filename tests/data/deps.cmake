find_package(ZLIB REQUIRED)
find_package(nlohmann_json REQUIRED)
target_link_libraries(test_data PRIVATE PkgConfig::SENTENCEPIECE ZLIB::ZLIB nlohmann_json::nlohmann_json)
