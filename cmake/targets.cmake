# Reads tenon/core/targets.def and tenon/ops/ops.def and compiles each kernel file once per target.

# names, folders: parallel lists of every line of targets.def.
file(STRINGS tenon/core/targets.def target_lines REGEX "^TENON_TARGET_ENTRY")
set(TENON_TARGET_NAMES "")
foreach(line IN LISTS target_lines)
  string(REGEX MATCH "\\(([A-Za-z0-9]+), ([a-z0-9]+), ([a-z_]+), ([0-9]+)\\)" matched "${line}")
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
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/tenon/core/built_targets.def
  CONTENT "${built_lines}" @ONLY)

set(TENON_HOST_TARGETS ${TENON_TARGETS})
list(FILTER TENON_HOST_TARGETS EXCLUDE REGEX "^(cuda|hip)$")

file(STRINGS tenon/ops/ops.def op_lines REGEX "^TENON_OP")
set(TENON_OPS "")
file(GLOB TENON_COMM_KERNELS CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/tenon/comm/collectives/*.cu)
file(GLOB kernel_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tenon/ops/*/*.cu)  # a new one: run CMake again
foreach(line IN LISTS op_lines)
  string(REGEX MATCH "\\(([a-z0-9_]+)\\)" matched "${line}")
  if(EXISTS ${PROJECT_SOURCE_DIR}/tenon/ops/${CMAKE_MATCH_1}/${CMAKE_MATCH_1}.cu)
    list(APPEND TENON_OPS ${CMAKE_MATCH_1})
  endif()
endforeach()

# Kernels of host targets. They run on any x86-64 or Arm machine: what needs wider vectors asks the
# processor at run time. Emulated targets are for tests and are compiled to be built fast.
set(TENON_CPU_ARCH "" CACHE STRING "-march= of the host targets' kernels; empty for the default")
set(TENON_HOST_KERNEL_OPTIONS -fno-math-errno -fno-trapping-math)
if(TENON_CPU_ARCH)
  list(APPEND TENON_HOST_KERNEL_OPTIONS -march=${TENON_CPU_ARCH})
endif()

# Arithmetic of HIP kernels: every operation rounded once, denormals kept. Defaults, but said.
set(TENON_HIP_ARITHMETIC -ffp-contract=off -fno-fast-math -fno-math-errno
  -fhip-fp32-correctly-rounded-divide-sqrt -fno-gpu-flush-denormals-to-zero)

# How each target's compiler sees a kernel file: its namespace, its device.h, its wave.
function(tenon_target_definitions target out)
  set(${out} -DTENON_TARGET=${target} -DTENON_WAVE=${TENON_WAVE_${target}}
    "-DTENON_DEVICE_HEADER=\"tenon/device/${TENON_FOLDER_${target}}/device.cuh\"" PARENT_SCOPE)
endfunction()

# "tenon/ops/rope/rope.cu" becomes "tenon.ops.rope.rope": the name of what is made of it.
function(tenon_stem source out)
  string(REGEX REPLACE "\\.cu$" "" stem ${source})
  string(REPLACE "/" "." stem ${stem})
  set(${out} ${stem} PARENT_SCOPE)
endfunction()

# One .cu as an object for `vendor` (cuda, or hip with its host side): ${out} is the object's path. With
# KEEP the PTX that nvcc makes on the way is ${out}_ptx.
function(tenon_vendor_object vendor source out)
  tenon_stem(${source} stem)
  tenon_target_definitions(${vendor} definitions)
  set(object ${PROJECT_BINARY_DIR}/kernels/${stem}.${vendor}.o)
  set(ptx "")
  if(vendor STREQUAL "cuda")
    set(command ${CMAKE_CXX_COMPILER_LAUNCHER} ${TENON_NVCC} -gencode=arch=compute_90a,code=sm_90a
      -fmad=false --expt-relaxed-constexpr -lineinfo -Xcompiler=-fPIC,-Wall,-ffp-contract=off)
    if(TENON_WERROR)
      list(APPEND command -Werror all-warnings)
    endif()
    if("KEEP" IN_LIST ARGN)
      set(folder ${PROJECT_BINARY_DIR}/kernels/${stem})
      file(MAKE_DIRECTORY ${folder})
      list(APPEND command --keep --keep-dir ${folder})
      get_filename_component(base ${source} NAME_WE)
      set(ptx ${folder}/${base}.ptx)
    endif()
  else()
    set(command ${TENON_HIPCXX} -x hip --offload-arch=gfx942 --offload-arch=gfx950 -fPIC -Wall
      ${TENON_HIP_ARITHMETIC})
  endif()
  add_custom_command(OUTPUT ${object} ${ptx}
    COMMAND ${command} -std=c++20 -O3 -I${PROJECT_SOURCE_DIR} -I${PROJECT_BINARY_DIR}/generated
            ${definitions} -MD -MF ${object}.d -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${PROJECT_SOURCE_DIR}/${source} DEPFILE ${object}.d
    COMMENT "Compiling ${source} for ${vendor}" VERBATIM)
  set(${out} ${object} PARENT_SCOPE)
  set(${out}_ptx ${ptx} PARENT_SCOPE)
endfunction()

# One .cu as a gfx942 and a gfx950 code object, without ROCm: ${out} are the assembly files.
function(tenon_code_objects source out)
  tenon_stem(${source} stem)
  tenon_target_definitions(hip definitions)
  set(assemblies "")
  foreach(arch gfx942 gfx950)
    set(base ${PROJECT_BINARY_DIR}/kernels/${stem}.${arch})
    set(werror "")
    if(TENON_WERROR)
      set(werror -Werror)
    endif()
    add_custom_command(OUTPUT ${base}.s ${base}.co
      COMMAND ${TENON_CLANG} -x hip --offload-arch=${arch} --cuda-device-only -nogpuinc -nogpulib
              -std=c++20 -O3 ${TENON_HIP_ARITHMETIC} -Wall -Wextra ${werror}
              -I${PROJECT_SOURCE_DIR} -I${PROJECT_BINARY_DIR}/generated ${definitions}
              -Xclang -dependency-file -Xclang ${base}.d -Xclang -MT -Xclang ${base}.s
              -S ${PROJECT_SOURCE_DIR}/${source} -o ${base}.s
      COMMAND ${TENON_CLANG} --target=amdgcn-amd-amdhsa -mcpu=${arch} -x assembler ${base}.s
              -o ${base}.co
      DEPENDS ${PROJECT_SOURCE_DIR}/${source} DEPFILE ${base}.d
      COMMENT "Compiling ${source} for ${arch}" VERBATIM)
    list(APPEND assemblies ${base}.s)
  endforeach()
  set(${out} ${assemblies} PARENT_SCOPE)
endfunction()

# Compiles one .cu for every target of this build into `library`; the host's through a wrapper.
function(tenon_kernels library source)
  if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${source})
    return()
  endif()
  tenon_stem(${source} stem)
  foreach(target IN LISTS TENON_HOST_TARGETS)
    set(wrapper ${PROJECT_BINARY_DIR}/kernels/${stem}.${target}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${source}\"\n" @ONLY)
    tenon_target_definitions(${target} definitions)
    set(optimize -O3)
    if(target MATCHES "^emu")
      set(optimize -O1)
    endif()
    set_source_files_properties(${wrapper} PROPERTIES
      COMPILE_OPTIONS "${definitions};${TENON_HOST_KERNEL_OPTIONS};${optimize}" SKIP_PRECOMPILE_HEADERS ON
      OBJECT_DEPENDS ${PROJECT_SOURCE_DIR}/${source})
    target_sources(${library} PRIVATE ${wrapper})
  endforeach()
  foreach(vendor cuda hip)
    if(vendor IN_LIST TENON_TARGETS)
      tenon_vendor_object(${vendor} ${source} object)
      set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
      target_sources(${library} PRIVATE ${object})
    endif()
  endforeach()
endfunction()

# Every op of ops.def, and the table through which registry.h finds their variants.
function(tenon_op_kernels library)
  set(declarations "")
  set(rows "")
  foreach(op IN LISTS TENON_OPS)
    tenon_kernels(${library} tenon/ops/${op}/${op}.cu)
    foreach(target IN LISTS TENON_TARGETS)
      string(APPEND declarations "namespace tenon::${target}::${op} { extern const VariantTable table; }\n")
      string(APPEND rows "  if (op == Op::${op} && target == Target::k${TENON_ENUM_${target}}) return &${target}::${op}::table;\n")
    endforeach()
  endforeach()
  set(table ${PROJECT_BINARY_DIR}/kernels/op_table.cc)
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

# The compilers of the vendor targets that are asked for.
set(TENON_COMPILE_ONLY "" CACHE STRING "Build nothing but the kernels of: cuda, hip")
if("cuda" IN_LIST TENON_TARGETS OR "cuda" IN_LIST TENON_COMPILE_ONLY)
  find_program(TENON_NVCC nvcc HINTS /usr/local/cuda/bin REQUIRED)
  get_filename_component(cuda_bin ${TENON_NVCC} DIRECTORY)
  set(CUDAToolkit_ROOT ${cuda_bin}/..)
  find_package(CUDAToolkit REQUIRED)
endif()
if("hip" IN_LIST TENON_TARGETS)
  find_program(TENON_HIPCXX NAMES amdclang++ HINTS /opt/rocm/bin REQUIRED)
  find_package(hip REQUIRED HINTS /opt/rocm)
endif()

# The runtime of the vendor target of this build, if there is one.
function(tenon_vendor_sources library)
  foreach(vendor cuda hip)
    if(vendor IN_LIST TENON_TARGETS)
      target_sources(${library} PRIVATE tenon/device/cuda_hip/runtime.cc tenon/device/cuda_hip/peer_memory.cc)
      string(TOUPPER ${vendor} upper)
      target_compile_definitions(${library} PUBLIC TENON_HAS_${upper}=1)
      if(vendor STREQUAL "cuda")
        target_link_libraries(${library} PUBLIC CUDA::cudart_static)
      else()
        target_link_libraries(${library} PUBLIC hip::host)
      endif()
    endif()
  endforeach()
endfunction()

# For TENON_COMPILE_ONLY: objects that nothing links, checked as far as a machine without GPU can.
function(tenon_compile_only)
  set(sources ${TENON_COMM_KERNELS})
  foreach(op IN LISTS TENON_OPS)
    list(APPEND sources tenon/ops/${op}/${op}.cu)
  endforeach()
  if("cuda" IN_LIST TENON_COMPILE_ONLY)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(objects "")
    set(early "")  # PTX of kernels that may start early
    foreach(source IN LISTS sources)
      file(STRINGS ${source} sets_early REGEX "shape(->|\\.)early = ")
      set(keep "")
      if(sets_early)
        set(keep KEEP)
      endif()
      tenon_vendor_object(cuda ${source} object ${keep})
      list(APPEND objects ${object})
      list(APPEND early ${object_ptx})
    endforeach()
    set(checked ${PROJECT_BINARY_DIR}/kernels/ptx_checked)
    add_custom_command(OUTPUT ${checked}
      COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_ptx.py ${early}
      COMMAND ${CMAKE_COMMAND} -E touch ${checked}
      DEPENDS ${early} ${PROJECT_SOURCE_DIR}/tools/check_ptx.py
      COMMENT "Checking that kernels wait before they touch memory" VERBATIM)
    add_custom_target(cuda_objects ALL DEPENDS ${objects} ${checked})
    add_library(cuda_runtime OBJECT tenon/device/cuda_hip/runtime.cc tenon/device/cuda_hip/peer_memory.cc)
    target_compile_definitions(cuda_runtime PRIVATE TENON_HAS_CUDA=1)
    target_link_libraries(cuda_runtime PRIVATE CUDA::cudart_static)
  endif()
  if("hip" IN_LIST TENON_COMPILE_ONLY)
    find_program(TENON_CLANG clang++-22 REQUIRED)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(assemblies "")
    foreach(source IN LISTS sources ITEMS tests/device/vec_test.cu)  # every conversion on its own
      tenon_code_objects(${source} made)
      list(APPEND assemblies ${made})
    endforeach()
    set(checked ${PROJECT_BINARY_DIR}/kernels/isa_checked)
    add_custom_command(OUTPUT ${checked}
      COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_isa.py ${assemblies}
      COMMAND ${CMAKE_COMMAND} -E touch ${checked}
      DEPENDS ${assemblies} ${PROJECT_SOURCE_DIR}/tools/check_isa.py
      COMMENT "Checking the instructions of gfx942 and gfx950" VERBATIM)
    add_custom_target(hip_objects ALL DEPENDS ${checked})
  endif()
endfunction()
