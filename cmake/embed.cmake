# Builds the files of a folder into a program: tessera_embed(<target> <namespace> <function> <folder> <extension>) adds a
# generated source to the target that defines
#   std::span<const std::pair<std::string_view, std::string_view>> <namespace>::<function>();
# file name without the extension -> text, sorted by name. The caller declares the function. The source is made anew when
# a file changes, comes or goes. With cmake -P this same file writes the source.
if(CMAKE_SCRIPT_MODE_FILE)
  string(REPLACE "," ";" names "${NAMES}")
  set(code "#include <span>\n#include <string_view>\n#include <utility>\n\nnamespace ${NAMESPACE} {\n\n")
  string(APPEND code "using EmbeddedFile = std::pair<std::string_view, std::string_view>;\n")
  string(APPEND code "std::span<const EmbeddedFile> ${FUNCTION}();\n\n")
  string(APPEND code "std::span<const EmbeddedFile> ${FUNCTION}() {\n")
  if(names STREQUAL "")
    string(APPEND code "  return {};\n")
  else()
    string(APPEND code "  static constexpr EmbeddedFile files[] = {\n")
    foreach(name IN LISTS names)
      file(READ "${FOLDER}/${name}.${EXTENSION}" text)
      string(FIND "${text}" ")tessera\"" end)
      if(NOT end EQUAL -1)
        message(FATAL_ERROR "${FOLDER}/${name}.${EXTENSION} holds )tessera\", which ends the literal that it is put in")
      endif()
      string(APPEND code "      {\"${name}\",\n       R\"tessera(${text})tessera\"},\n")
    endforeach()
    string(APPEND code "  };\n  return files;\n")
  endif()
  string(APPEND code "}\n\n}  // namespace ${NAMESPACE}\n")
  file(WRITE "${OUTPUT}" "${code}")
  return()
endif()

set(TESSERA_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})

function(tessera_embed target namespace function folder extension)
  get_filename_component(folder "${folder}" ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
  string(REGEX REPLACE "^[.]" "" extension "${extension}")
  file(GLOB files CONFIGURE_DEPENDS "${folder}/*.${extension}")
  set(names "")
  foreach(path IN LISTS files)
    get_filename_component(name "${path}" NAME_WLE)
    list(APPEND names "${name}")
  endforeach()
  list(SORT names COMPARE STRING)
  list(JOIN names "," names)
  set(output ${CMAKE_BINARY_DIR}/embed/${target}_${function}.cpp)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DNAMES=${names} -DNAMESPACE=${namespace} -DFUNCTION=${function} -DFOLDER=${folder}
      -DEXTENSION=${extension} -DOUTPUT=${output} -P ${TESSERA_EMBED_SCRIPT}
    DEPENDS ${files} ${TESSERA_EMBED_SCRIPT}
    COMMENT "Embedding ${folder}/*.${extension}"
    VERBATIM)
  target_sources(${target} PRIVATE ${output})
endfunction()
