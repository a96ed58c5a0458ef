# Reads tenon/core/targets.def and tenon/ops/ops.def and compiles each kernel file once per target.

# names, folders: parallel lists of every line of targets.def.
file(STRINGS tenon/core/targets.def target_lines REGEX "^TENON_TARGET_ENTRY")
set(TENON_TARGET_NAMES "")
foreach(line IN LISTS target_lines)
  string(REGEX MATCH "\\(([A-Za-z0-9]+), ([a-z0-9]+), ([a-z]+), ([0-9]+)\\)" matched "${line}")
  list(APPEND TENON_TARGET_NAMES ${CMAKE_MATCH_2})
  set(TENON_ENUM_${CMAKE_MATCH_2} ${CMAKE_MATCH_1})
  set(TENON_FOLDER_${CMAKE_MATCH_2} ${CMAKE_MATCH_3})
  set(TENON_WAVE_${CMAKE_MATCH_2} ${CMAKE_MATCH_4})
endforeach()
foreach(target IN LISTS TENON_TARGETS)
  if(NOT target IN_LIST TENON_TARGET_NAMES)
    message(FATAL_ERROR "TENON_TARGETS names \"${target}\"; tenon/core/targets.def has ${TENON_TARGET_NAMES}")
  endif()
endforeach()
# The lines of targets.def that this build has, for whoever must name each built target in code.
set(built_lines "// Made by cmake/targets.cmake: the lines of tenon/core/targets.def in this build.\n")
foreach(line IN LISTS target_lines)
  string(REGEX MATCH ", ([a-z0-9]+)," matched "${line}")
  if(CMAKE_MATCH_1 IN_LIST TENON_TARGETS)
    string(APPEND built_lines "${line}\n")
  endif()
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/tenon/core/built_targets.def
  CONTENT "${built_lines}" @ONLY)
include_directories(${CMAKE_BINARY_DIR}/generated)

set(TENON_HOST_TARGETS ${TENON_TARGETS})
list(FILTER TENON_HOST_TARGETS EXCLUDE REGEX "^(cuda|hip)$")

file(STRINGS tenon/ops/ops.def op_lines REGEX "^TENON_OP")
set(TENON_OPS "")
foreach(line IN LISTS op_lines)
  string(REGEX MATCH "\\(([a-z0-9_]+)\\)" matched "${line}")
  if(EXISTS ${CMAKE_SOURCE_DIR}/tenon/ops/${CMAKE_MATCH_1}/${CMAKE_MATCH_1}.cu)
    list(APPEND TENON_OPS ${CMAKE_MATCH_1})
  endif()
endforeach()

# The host kernels are compiled for this machine unless told otherwise: the cpu target lives from the
# vector units. Any value gives the same bits.
set(TENON_CPU_ARCH native CACHE STRING "-march= of the host targets' kernels; empty for the default")
set(TENON_HOST_KERNEL_OPTIONS -O3 -fno-math-errno -fno-trapping-math)
if(TENON_CPU_ARCH)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-march=${TENON_CPU_ARCH} TENON_CPU_ARCH_WORKS)
  if(TENON_CPU_ARCH_WORKS)
    list(APPEND TENON_HOST_KERNEL_OPTIONS -march=${TENON_CPU_ARCH})
  else()
    message(WARNING "The compiler does not know -march=${TENON_CPU_ARCH}: kernels use its default")
  endif()
endif()

# Compiles one .cu for every enabled host target into `library`, through a one-line wrapper.
function(tenon_kernels library source)
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${source})
    return()
  endif()
  string(REGEX REPLACE "\\.cu$" "" stem ${source})
  string(REPLACE "/" "." stem ${stem})
  foreach(target IN LISTS TENON_HOST_TARGETS)
    set(wrapper ${CMAKE_BINARY_DIR}/kernels/${stem}.${target}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${source}\"\n" @ONLY)
    set_source_files_properties(${wrapper} PROPERTIES COMPILE_OPTIONS
      "-DTENON_TARGET=${target};-DTENON_DEVICE_HEADER=\"tenon/gpu/${TENON_FOLDER_${target}}/device.h\";-DTENON_WAVE=${TENON_WAVE_${target}};${TENON_HOST_KERNEL_OPTIONS}")
    set_property(SOURCE ${wrapper} APPEND PROPERTY OBJECT_DEPENDS ${CMAKE_SOURCE_DIR}/${source})
    target_sources(${library} PRIVATE ${wrapper})
  endforeach()
endfunction()

# Every op of ops.def, and the table through which registry.h finds their variants.
function(tenon_op_kernels library)
  set(declarations "")
  set(rows "")
  foreach(op IN LISTS TENON_OPS)
    tenon_kernels(${library} tenon/ops/${op}/${op}.cu)
    foreach(target IN LISTS TENON_HOST_TARGETS)
      string(APPEND declarations "namespace tenon::${target}::${op} { extern const VariantTable table; }\n")
      string(APPEND rows "  if (op == Op::${op} && target == Target::k${TENON_ENUM_${target}}) return &${target}::${op}::table;\n")
    endforeach()
  endforeach()
  set(table ${CMAKE_BINARY_DIR}/kernels/op_table.cc)
  file(CONFIGURE OUTPUT ${table} @ONLY CONTENT "// Made by cmake/targets.cmake from ops.def and targets.def.
#include \"tenon/ops/registry.h\"
${declarations}
namespace tenon {
const VariantTable* variants(Op op, Target target) {
${rows}  return nullptr;
}
}  // namespace tenon
")
  target_sources(${library} PRIVATE ${table})
endfunction()

# The vendor runtimes, where their toolchain is enabled.
function(tenon_vendor_sources library)
endfunction()
