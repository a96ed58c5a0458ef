# Whether the Python package (bindings/python) is built: TENON_HAS_PYTHON. Where it is, Python_EXECUTABLE is the
# Python that it is for and nanobind_ROOT the nanobind that makes it, from PyPI into the build folder where this
# Python has none.
set(TENON_PYTHON "auto" CACHE STRING "The Python package: auto (with the tests, where it can be built), on, off")
set(TENON_HAS_PYTHON OFF)
string(TOLOWER "${TENON_PYTHON}" asked)
if(NOT asked MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "TENON_PYTHON is \"${TENON_PYTHON}\"; accepted: auto, on, off")
endif()
# An interpreter without sanitizers cannot load what has them.
if(asked STREQUAL "off" OR (asked STREQUAL "auto" AND (NOT TENON_TESTS OR NOT TENON_C OR TENON_SANITIZE)))
  return()
endif()

function(tenon_no_python why)
  if(asked STREQUAL "on")
    message(FATAL_ERROR "TENON_PYTHON=on: ${why}")
  endif()
  message(STATUS "The Python package is not built: ${why}")
endfunction()

if(NOT TENON_C)
  tenon_no_python("TENON_C is off, and the package calls the shared library for C; accepted: TENON_C=ON")
endif()
find_package(Python 3.9 QUIET COMPONENTS Interpreter Development.Module)
if(NOT Python_FOUND)
  tenon_no_python("no Python 3.9 or later with its headers was found; accepted: Debian's python3-dev, or "
                  "-DPython_EXECUTABLE= another interpreter that has them")
  return()
endif()

set(nanobind 3.1.0)
function(tenon_find_nanobind python)
  execute_process(COMMAND ${python} -c "import nanobind; print(nanobind.__version__, nanobind.cmake_dir())"
                  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(found MATCHES "^3\\.[0-9.]+ (.+)$")
    set(nanobind_ROOT ${CMAKE_MATCH_1} PARENT_SCOPE)
  endif()
endfunction()

tenon_find_nanobind(${Python_EXECUTABLE})
if(NOT nanobind_ROOT)
  set(folder ${PROJECT_BINARY_DIR}/third_party/nanobind-${nanobind})
  if(NOT EXISTS ${folder}/done)
    message(STATUS "Fetching nanobind ${nanobind}")
    execute_process(COMMAND ${Python_EXECUTABLE} -m venv --clear ${folder} OUTPUT_QUIET ERROR_QUIET)
    execute_process(COMMAND ${folder}/bin/python -m pip install --quiet --disable-pip-version-check --timeout 10
                            --retries 1 nanobind==${nanobind}
                    TIMEOUT 120 RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(NOT failed)
      file(TOUCH ${folder}/done)
    endif()
  endif()
  if(EXISTS ${folder}/done)
    tenon_find_nanobind(${folder}/bin/python)
  endif()
endif()
if(NOT nanobind_ROOT)
  tenon_no_python("nanobind 3 is not there, and PyPI did not give ${nanobind}; accepted: pip install "
                  "nanobind==${nanobind} for ${Python_EXECUTABLE}")
  return()
endif()
set(TENON_HAS_PYTHON ON)
