# Debian packages, by CPack: libtenon1 (the shared library), libtenon-dev (what programs are compiled and linked
# with, C and C++) and tenon (the command). `./x package` builds them from the preset "package"; with the same
# SOURCE_DATE_EPOCH and compiler two builds of a commit are the same bytes, in whatever folder.
set(TENON_PACKAGE_MAINTAINER "tenon developers <tenon@localhost>" CACHE STRING
    "Who answers for the packages, as NAME <ADDRESS>: whoever gives them out")
set(library libtenon${TENON_C_ABI})

# Documents that Debian asks of every package, and of a command.
set(folder ${PROJECT_BINARY_DIR}/package)
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)  # of SOURCE_DATE_EPOCH, where it is set
file(CONFIGURE OUTPUT ${folder}/changelog @ONLY CONTENT "tenon (@PROJECT_VERSION@) unstable; urgency=medium

  * Version @PROJECT_VERSION@: CHANGELOG.md of the source says what is new.

 -- @TENON_PACKAGE_MAINTAINER@  @date@
")
function(tenon_compress file out)  # without name and time
  execute_process(COMMAND gzip -9nc ${file} OUTPUT_FILE ${out} RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "gzip of ${file} failed")
  endif()
endfunction()
tenon_compress(${folder}/changelog ${folder}/changelog.gz)
foreach(pair "library;${library}" "development;libtenon-dev" "tool;tenon")
  list(GET pair 0 component)
  list(GET pair 1 name)
  install(FILES deploy/debian/copyright ${folder}/changelog.gz DESTINATION share/doc/${name} COMPONENT ${component})
  set(overrides deploy/debian/lintian-overrides)
  if(component STREQUAL "library")
    string(APPEND overrides .library)
  endif()
  install(FILES ${overrides} DESTINATION share/lintian/overrides RENAME ${name} COMPONENT ${component})
endforeach()
add_custom_command(OUTPUT ${folder}/tenon.1.gz ${folder}/completion.bash
  COMMAND $<TARGET_FILE:tenon> man > ${folder}/tenon.1
  COMMAND gzip -9nc ${folder}/tenon.1 > ${folder}/tenon.1.gz
  COMMAND $<TARGET_FILE:tenon> completion bash > ${folder}/completion.bash
  DEPENDS tenon COMMENT "Manual page and completion" VERBATIM)
add_custom_target(tenon_documents ALL DEPENDS ${folder}/tenon.1.gz ${folder}/completion.bash)
install(FILES ${folder}/tenon.1.gz DESTINATION share/man/man1 COMPONENT tool)
install(FILES ${folder}/completion.bash DESTINATION share/bash-completion/completions RENAME tenon COMPONENT tool)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tenon)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT ${TENON_PACKAGE_MAINTAINER})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_COMPONENTS_ALL library development tool)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
    OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME ${library})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
file(CONFIGURE OUTPUT ${folder}/shlibs CONTENT "libtenon @TENON_C_ABI@ @library@ (>= @PROJECT_VERSION@)\n" @ONLY)
file(CONFIGURE OUTPUT ${folder}/triggers CONTENT "activate-noawait ldconfig\n" @ONLY)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${folder}/shlibs ${folder}/triggers)
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "fused tensor-parallel boundaries, shared library for C
Sum over ranks, residual, RMSNorm and FP8 quantisation as one operation with
one result, bit for bit, on every path. This package has the library that
programs and language bindings load.")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libtenon-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
    "${library} (= ${PROJECT_VERSION}), libssl-dev, libpcre2-dev, libutf8proc-dev")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "fused tensor-parallel boundaries, headers and static libraries
Sum over ranks, residual, RMSNorm and FP8 quantisation as one operation with
one result, bit for bit, on every path. This package has the header for C, the
headers and static libraries for C++20, and the files by which pkg-config and
CMake find them.")
set(CPACK_DEBIAN_TOOL_PACKAGE_NAME tenon)
set(CPACK_DEBIAN_TOOL_PACKAGE_SECTION science)
set(CPACK_DEBIAN_TOOL_DESCRIPTION "serve Qwen3.5-FP8 checkpoints through fused boundaries
A lean inference engine with tensor parallelism, and a server that clients of
OpenAI's and Anthropic's interfaces can talk to. This build computes on CPUs.")
include(CPack)
