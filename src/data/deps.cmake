find_package(PkgConfig REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(simdjson REQUIRED)
pkg_check_modules(SENTENCEPIECE REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
target_link_libraries(tessera_data PRIVATE PkgConfig::SENTENCEPIECE PkgConfig::PCRE2 PkgConfig::UTF8PROC
                                           simdjson::simdjson nlohmann_json::nlohmann_json)
