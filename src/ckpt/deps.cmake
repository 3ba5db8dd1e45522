find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
target_link_libraries(tessera_ckpt PRIVATE nlohmann_json::nlohmann_json PkgConfig::XXHASH)
