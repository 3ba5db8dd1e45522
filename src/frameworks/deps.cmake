find_package(PkgConfig REQUIRED)
pkg_check_modules(tomlplusplus REQUIRED IMPORTED_TARGET tomlplusplus)
target_link_libraries(tessera_frameworks PRIVATE PkgConfig::tomlplusplus)
tessera_embed(tessera_frameworks tessera::frameworks argument_lists src/frameworks/lists txt)
