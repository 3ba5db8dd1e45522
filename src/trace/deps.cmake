find_package(simdjson REQUIRED)
target_link_libraries(tessera_trace PRIVATE simdjson::simdjson)
