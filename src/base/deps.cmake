find_package(fmt REQUIRED)
target_link_libraries(tessera_base PUBLIC fmt::fmt)
