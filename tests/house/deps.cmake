target_sources(test_house PRIVATE tests/house/rules.cpp tests/house/outline.cpp)
