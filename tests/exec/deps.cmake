find_package(nlohmann_json REQUIRED)
target_link_libraries(test_exec PRIVATE nlohmann_json::nlohmann_json)
# The engine on the kernels of the CUDA backend, without a GPU.
target_link_libraries(test_exec PRIVATE tessera_emulated)
