# Reads tenon/core/targets.def, tenon/core/ops.def and the variants.def of each op, and compiles each
# kernel file once per target that lists it.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS tenon/core/targets.def tenon/core/ops.def)

include(${CMAKE_CURRENT_LIST_DIR}/tenon-kernels.cmake)
tenon_read_targets(tenon/core/targets.def)
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

# TENON_OPS, and for each the lines of its variants.def, in order of preference:
#   TENON_VARIANT(name, targets, sources, flags, promise)
# targets: "all", or names of targets.def between spaces; name@processor only on such processors. promise:
# "reference", or the name of the variant's own bits (tenon/device/variant.h).
file(STRINGS tenon/core/ops.def op_lines REGEX "^TENON_OP")
set(TENON_OPS "")
foreach(line IN LISTS op_lines)
  if(NOT line MATCHES "^TENON_OP\\(([a-z0-9_]+), ([a-z0-9_/]+)\\)$")
    message(FATAL_ERROR "tenon/core/ops.def: \"${line}\" is not TENON_OP(name, folder)")
  endif()
  set(op ${CMAKE_MATCH_1})
  list(APPEND TENON_OPS ${op})
  set(TENON_OP_FOLDER_${op} tenon/${CMAKE_MATCH_2})
  set(list ${TENON_OP_FOLDER_${op}}/variants.def)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${list})
  file(STRINGS ${list} TENON_VARIANTS_${op} REGEX "^TENON_VARIANT")
endforeach()

# Splits a line of the variants.def of `op`: variant, targets (those of targets.def, on this processor),
# sources (from the root), flags and promise in the caller's scope.
function(tenon_split_variant op line)
  if(NOT line MATCHES "^TENON_VARIANT\\(([a-z0-9_]+), ([a-z0-9_@ ]+), ([a-z0-9_. ]+), ([^,]*), ([a-z0-9_]+)\\)$")
    message(FATAL_ERROR "${TENON_OP_FOLDER_${op}}/variants.def: \"${line}\" is not "
                        "TENON_VARIANT(name, targets, sources, flags, promise)")
  endif()
  set(variant ${CMAKE_MATCH_1} PARENT_SCOPE)
  set(promise ${CMAKE_MATCH_5} PARENT_SCOPE)
  separate_arguments(asked UNIX_COMMAND "${CMAKE_MATCH_2}")
  separate_arguments(files UNIX_COMMAND "${CMAKE_MATCH_3}")
  separate_arguments(flags UNIX_COMMAND "${CMAKE_MATCH_4}")
  set(flags "${flags}" PARENT_SCOPE)
  list(TRANSFORM files PREPEND ${TENON_OP_FOLDER_${op}}/)
  set(sources ${files} PARENT_SCOPE)
  set(targets "")
  foreach(each IN LISTS asked)
    string(REGEX MATCH "^([a-z0-9_]+)@?([a-z0-9_]*)$" matched "${each}")
    set(target ${CMAKE_MATCH_1})
    if(CMAKE_MATCH_2 AND NOT CMAKE_SYSTEM_PROCESSOR STREQUAL CMAKE_MATCH_2)
      continue()
    endif()
    if(target STREQUAL "all")
      list(APPEND targets ${TENON_TARGET_NAMES})
    elseif(target IN_LIST TENON_TARGET_NAMES)
      list(APPEND targets ${target})
    else()
      message(FATAL_ERROR "${TENON_OP_FOLDER_${op}}/variants.def names the target \"${target}\"; "
                          "targets.def has ${TENON_TARGET_NAMES}")
    endif()
  endforeach()
  set(targets ${targets} PARENT_SCOPE)
endfunction()

# "tenon/ops/rope/rope.cu" becomes "tenon.ops.rope.rope": the name of what is made of it.
function(tenon_stem source out)
  string(REGEX REPLACE "\\.cu$" "" stem ${source})
  string(REPLACE "/" "." stem ${stem})
  set(${out} ${stem} PARENT_SCOPE)
endfunction()

# One .cu as an object for `vendor` (cuda, or hip with its host side): ${out} is the object's path. With
# KEEP the PTX that nvcc makes on the way is ${out}_ptx. FLAGS: further options.
function(tenon_vendor_object vendor source out)
  cmake_parse_arguments(ARG "KEEP" "" "FLAGS" ${ARGN})
  tenon_stem(${source} stem)
  tenon_target_definitions(${vendor} definitions)
  set(object ${PROJECT_BINARY_DIR}/kernels/${stem}.${vendor}.o)
  set(ptx "")
  if(vendor STREQUAL "cuda")
    set(command ${TENON_NVCC} ${TENON_CUDA_OPTIONS})
    if(NOT ARG_KEEP)  # a compiler cache keeps objects alone: a hit would leave no PTX
      list(PREPEND command ${CMAKE_CXX_COMPILER_LAUNCHER})
    endif()
    if(TENON_WERROR)
      list(APPEND command -Werror all-warnings)
    endif()
    if(ARG_KEEP)
      set(folder ${PROJECT_BINARY_DIR}/kernels/${stem})
      file(MAKE_DIRECTORY ${folder})
      list(APPEND command --keep --keep-dir ${folder})
      get_filename_component(base ${source} NAME_WE)
      set(ptx ${folder}/${base}.ptx)
    endif()
  else()
    set(command ${TENON_HIPCXX} ${TENON_HIP_OPTIONS})
  endif()
  add_custom_command(OUTPUT ${object} ${ptx}
    COMMAND ${command} -std=c++20 -O3 -I${PROJECT_SOURCE_DIR} -I${PROJECT_BINARY_DIR}/generated
            ${definitions} ${ARG_FLAGS} -MD -MF ${object}.d -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${PROJECT_SOURCE_DIR}/${source} DEPFILE ${object}.d
    COMMENT "Compiling ${source} for ${vendor}" VERBATIM)
  set(${out} ${object} PARENT_SCOPE)
  set(${out}_ptx ${ptx} PARENT_SCOPE)
endfunction()

# One .cu as a gfx942 and a gfx950 code object, without ROCm: ${out} are the assembly files. FLAGS as above.
function(tenon_code_objects source out)
  cmake_parse_arguments(ARG "" "" "FLAGS" ${ARGN})
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
              -I${PROJECT_SOURCE_DIR} -I${PROJECT_BINARY_DIR}/generated ${definitions} ${ARG_FLAGS}
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

# Compiles one .cu for `target` into `library`; the host's through a wrapper. FLAGS: further options.
function(tenon_kernel library source target)
  cmake_parse_arguments(ARG "" "" "FLAGS" ${ARGN})
  if(target MATCHES "^(cuda|hip)$")
    tenon_vendor_object(${target} ${source} object FLAGS ${ARG_FLAGS})
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(${library} PRIVATE ${object})
    return()
  endif()
  tenon_stem(${source} stem)
  set(wrapper ${PROJECT_BINARY_DIR}/kernels/${stem}.${target}.cc)
  file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${source}\"\n" @ONLY)
  tenon_target_definitions(${target} definitions)
  set(optimize -O3)
  if(target MATCHES "^emu")
    set(optimize -O1)
  endif()
  set_source_files_properties(${wrapper} PROPERTIES
    COMPILE_OPTIONS "${definitions};${TENON_HOST_KERNEL_OPTIONS};${optimize};${ARG_FLAGS}" SKIP_PRECOMPILE_HEADERS ON
    OBJECT_DEPENDS ${PROJECT_SOURCE_DIR}/${source})
  target_sources(${library} PRIVATE ${wrapper})
endfunction()

# Compiles one .cu for every target of this build into `library`.
function(tenon_kernels library source)
  if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${source})
    return()
  endif()
  foreach(target IN LISTS TENON_TARGETS)
    tenon_kernel(${library} ${source} ${target})
  endforeach()
endfunction()

# The variants of the ops whose folder is below `root`: an object for each source and target, and for
# each op built_variants.def, from which its .cc makes its table (tenon/device/op_table.inc).
function(tenon_op_kernels library root)
  foreach(op IN LISTS TENON_OPS)
    if(NOT TENON_OP_FOLDER_${op} MATCHES "^${root}/")
      continue()
    endif()
    set(rows "// Made by cmake/targets.cmake: the lines of ${TENON_OP_FOLDER_${op}}/variants.def in this build.\n")
    set(compiled "")
    foreach(target IN LISTS TENON_TARGETS)
      foreach(line IN LISTS TENON_VARIANTS_${op})
        tenon_split_variant(${op} "${line}")
        if(NOT target IN_LIST targets)
          continue()
        endif()
        set(bits "kOwn, \"${promise}\"")
        if(promise STREQUAL "reference")
          set(bits "kReference, \"\"")
        endif()
        string(APPEND rows "TENON_BUILT_VARIANT(${TENON_ENUM_${target}}, ${target}, ${variant}, ${bits})\n")
        foreach(source IN LISTS sources)  # several variants may share one
          if(NOT "${source}|${target}" IN_LIST compiled)
            list(APPEND compiled "${source}|${target}")
            tenon_kernel(${library} ${source} ${target} FLAGS ${flags})
          endif()
        endforeach()
      endforeach()
    endforeach()
    file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/${TENON_OP_FOLDER_${op}}/built_variants.def
      CONTENT "${rows}" @ONLY)
  endforeach()
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
        target_sources(${library} PRIVATE tenon/device/cuda_hip/sm90/tensor_map.cc)
        target_link_libraries(${library} PUBLIC CUDA::cudart_static)
      else()
        target_link_libraries(${library} PUBLIC hip::host)
      endif()
    endif()
  endforeach()
endfunction()

# Whether a kernel file, or a .cuh that it includes, lets kernels start early.
function(tenon_sets_early source out)
  set(files ${source})
  set(${out} FALSE PARENT_SCOPE)
  while(files)
    list(POP_FRONT files file)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})  # it may come to do so
    file(STRINGS ${file} found REGEX "shape(->|\\.)early = ")
    if(found)
      set(${out} TRUE PARENT_SCOPE)
      return()
    endif()
    file(STRINGS ${file} includes REGEX "^#include \"tenon/(comm|ops)/.*\\.cuh\"")
    foreach(line IN LISTS includes)
      string(REGEX REPLACE "^#include \"(.*)\"$" "\\1" included "${line}")
      list(APPEND files ${included})
    endforeach()
  endwhile()
endfunction()

# The kernel files of `target`: sources, and flags_SOURCE for each that has further options.
macro(tenon_sources_of target)
  set(sources_of_target "")
  foreach(op IN LISTS TENON_OPS)
    foreach(line IN LISTS TENON_VARIANTS_${op})
      tenon_split_variant(${op} "${line}")
      if(${target} IN_LIST targets)
        list(APPEND sources_of_target ${sources})
        foreach(source IN LISTS sources)
          set(flags_${source} ${flags})
        endforeach()
      endif()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES sources_of_target)
endmacro()

# For TENON_COMPILE_ONLY: objects that nothing links, checked as far as a machine without GPU can.
function(tenon_compile_only)
  if("cuda" IN_LIST TENON_COMPILE_ONLY)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    tenon_sources_of(cuda)
    set(objects "")
    set(early "")  # PTX of kernels that may start early
    foreach(source IN LISTS sources_of_target ITEMS examples/02_own_kernel/product.cu)
      tenon_sets_early(${source} sets_early)
      set(keep "")
      if(sets_early)
        set(keep KEEP)
      endif()
      tenon_vendor_object(cuda ${source} object ${keep} FLAGS ${flags_${source}})
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
    add_library(cuda_runtime OBJECT tenon/device/cuda_hip/runtime.cc tenon/device/cuda_hip/peer_memory.cc
      tenon/device/cuda_hip/sm90/tensor_map.cc)
    target_compile_definitions(cuda_runtime PRIVATE TENON_HAS_CUDA=1)
    target_include_directories(cuda_runtime PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
    target_link_libraries(cuda_runtime PRIVATE CUDA::cudart_static)
  endif()
  if("hip" IN_LIST TENON_COMPILE_ONLY)
    find_program(TENON_CLANG clang++-22 REQUIRED)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    tenon_sources_of(hip)
    set(assemblies "")
    foreach(source IN LISTS sources_of_target ITEMS tests/device/vec_test.cu)  # every conversion
      tenon_code_objects(${source} made FLAGS ${flags_${source}})
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
