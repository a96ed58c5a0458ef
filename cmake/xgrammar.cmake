# XGrammar, the library behind answers that keep to a grammar (docs/adr/0056). Debian has no package of it:
# it is compiled from the source archive that PyPI has, pinned by its hash. Defines the target
# tenon_xgrammar and TENON_HAS_XGRAMMAR where that is possible.
set(TENON_XGRAMMAR "auto" CACHE STRING "Grammars for answers: auto (where the archive can be had), on, off")
set(TENON_XGRAMMAR_ARCHIVE "" CACHE FILEPATH "XGrammar's source archive, where it is not to be fetched")
set(TENON_HAS_XGRAMMAR OFF)
if(TENON_XGRAMMAR STREQUAL "off")
  return()
endif()

set(version 0.2.8)
set(hash 8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80)
set(address https://files.pythonhosted.org/packages/03/0f/29f521535729be740779c2c98b630ef6607cf28be9b669895dd2b821ff63/xgrammar-${version}.tar.gz)
set(folder ${PROJECT_BINARY_DIR}/third_party)
set(root ${folder}/xgrammar-${version})

# Unpacked beside its final place and then renamed: what stands there is whole.
function(tenon_fetch_xgrammar)
  set(archive ${TENON_XGRAMMAR_ARCHIVE})
  if(NOT archive)
    set(archive ${folder}/xgrammar-${version}.tar.gz)
    message(STATUS "Fetching XGrammar ${version}")
    file(DOWNLOAD ${address} ${archive} TIMEOUT 120 INACTIVITY_TIMEOUT 20 STATUS status)
    list(GET status 0 failed)
    if(failed)
      list(GET status 1 why)
      file(REMOVE ${archive})
      set(TENON_XGRAMMAR_WHY "the archive cannot be fetched (${why})" PARENT_SCOPE)
      return()
    endif()
  endif()
  file(SHA256 ${archive} found)
  if(NOT found STREQUAL hash)
    message(FATAL_ERROR "XGrammar's archive ${archive} has the SHA-256 ${found}; accepted is ${hash}")
  endif()
  file(REMOVE_RECURSE ${folder}/unpacked)
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${folder}/unpacked
       PATTERNS "*/cpp/*" "*/include/*" "*/3rdparty/picojson/*" "*/3rdparty/dlpack/include/*" "*/LICENSE" "*/NOTICE")
  # Strings with a minLength or maxLength would take control characters, which JSON's strings cannot have.
  set(converter ${folder}/unpacked/xgrammar-${version}/cpp/json_schema_converter.cc)
  file(READ ${converter} source)
  string(REPLACE "{'\\r', '\\r'}, {'\\n', '\\n'}}, true)" "{0, 0x1f}}, true)  /* changed by tenon */" changed
         "${source}")
  if(changed STREQUAL source)
    message(FATAL_ERROR "XGrammar ${version} has not the line that cmake/xgrammar.cmake mends")
  endif()
  file(WRITE ${converter} "${changed}")
  file(RENAME ${folder}/unpacked/xgrammar-${version} ${root})
endfunction()

if(NOT EXISTS ${root}/include/xgrammar/xgrammar.h)
  tenon_fetch_xgrammar()
endif()
if(NOT EXISTS ${root}/include/xgrammar/xgrammar.h)
  if(TENON_XGRAMMAR STREQUAL "on")
    message(FATAL_ERROR "XGrammar: ${TENON_XGRAMMAR_WHY}; TENON_XGRAMMAR_ARCHIVE names a file instead")
  endif()
  message(WARNING "Built without grammars: ${TENON_XGRAMMAR_WHY}. TENON_XGRAMMAR_ARCHIVE names a file instead; "
                  "TENON_XGRAMMAR=off silences this.")
  return()
endif()

file(GLOB xgrammar_sources ${root}/cpp/*.cc ${root}/cpp/converter_ext/*.cc ${root}/cpp/support/*.cc)
add_library(tenon_xgrammar STATIC ${xgrammar_sources})
set_target_properties(tenon_xgrammar PROPERTIES EXPORT_NAME xgrammar CXX_STANDARD 17)
target_include_directories(tenon_xgrammar SYSTEM PRIVATE ${root}/include ${root}/3rdparty/picojson
                                                         ${root}/3rdparty/dlpack/include)
target_compile_definitions(tenon_xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
# Others' code: its warnings are not ours to mend, and only its memory and its races are watched.
target_compile_options(tenon_xgrammar PRIVATE -O2 -w $<$<BOOL:${TENON_SANITIZE}>:-fno-sanitize=undefined>)
install(TARGETS tenon_xgrammar EXPORT tenon-targets)
set(TENON_HAS_XGRAMMAR ON)
set(TENON_XGRAMMAR_INCLUDES ${root}/include ${root}/3rdparty/dlpack/include)
