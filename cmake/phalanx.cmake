# One function per kind of target, so that a room's CMakeLists.txt is a list of files and neighbours.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(GTest REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(benchmark CONFIG QUIET)

# What set-up fetches (scripts/setup.sh): Python tools, models, googleapis protos. Shared by every build folder.
set(PHALANX_DEPS ${CMAKE_SOURCE_DIR}/build/deps CACHE PATH "Where scripts/setup.sh put what it fetched")

option(PHALANX_WERROR "Treat warnings as errors" ON)
set(PHALANX_SANITIZE "" CACHE STRING "address, thread or empty")
add_library(phalanx_flags INTERFACE)
target_include_directories(phalanx_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(phalanx_flags INTERFACE -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers
                       $<$<BOOL:${PHALANX_WERROR}>:-Werror> -fno-omit-frame-pointer -ffp-contract=off)
target_link_libraries(phalanx_flags INTERFACE Threads::Threads)
if(PHALANX_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1 -O1)
  add_link_options(-fsanitize=address,undefined)
elseif(PHALANX_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -g1 -O1)
  add_link_options(-fsanitize=thread)
endif()

# phalanx_library(NAME n [SRCS a.cc ...] [DEPS lib ...]): a static library, or a header-only one when there are no sources.
function(phalanx_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${ARG_NAME} STATIC ${ARG_SRCS})
    target_link_libraries(${ARG_NAME} PUBLIC phalanx_flags ${ARG_DEPS})
  else()
    add_library(${ARG_NAME} INTERFACE)
    target_link_libraries(${ARG_NAME} INTERFACE phalanx_flags ${ARG_DEPS})
  endif()
endfunction()

# phalanx_binary(NAME n SRCS main.cc DEPS lib ...): a program in the build folder's top.
function(phalanx_binary)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE phalanx_flags ${ARG_DEPS})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

# phalanx_test(NAME n SRCS n.cc DEPS lib ... [TIMEOUT s] [LABELS l ...]): a GoogleTest program, one ctest entry.
# The tests run with the source folder as PHALANX_SOURCE_DIR and the fetched files as PHALANX_DEPS in their environment.
function(phalanx_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE phalanx_flags ${ARG_DEPS} GTest::gtest_main GTest::gmock)
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "unit;${ARG_LABELS}"
    ENVIRONMENT "PHALANX_SOURCE_DIR=${CMAKE_SOURCE_DIR};PHALANX_DEPS=${PHALANX_DEPS};PHALANX_BUILD_DIR=${CMAKE_BINARY_DIR}")
endfunction()
