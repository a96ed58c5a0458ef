# How a kernel file (.cu) is compiled for each target: what the build of tenon and programs with kernels of their
# own have in common. Programs get tenon_add_kernels() by find_package(tenon); docs/embed.md.

# Reads targets.def: TENON_TARGET_NAMES, and per target its enumerator, folder and wave.
macro(tenon_read_targets file)
  file(STRINGS ${file} target_lines REGEX "^TENON_TARGET_ENTRY")
  set(TENON_TARGET_NAMES "")
  foreach(line IN LISTS target_lines)
    string(REGEX MATCH "\\(([A-Za-z0-9]+), ([a-z0-9]+), ([a-z_]+), ([0-9]+)\\)" matched "${line}")
    list(APPEND TENON_TARGET_NAMES ${CMAKE_MATCH_2})
    set(TENON_ENUM_${CMAKE_MATCH_2} ${CMAKE_MATCH_1})
    set(TENON_FOLDER_${CMAKE_MATCH_2} ${CMAKE_MATCH_3})
    set(TENON_WAVE_${CMAKE_MATCH_2} ${CMAKE_MATCH_4})
  endforeach()
endmacro()

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

# In front of a compiler's file name: of one that makes CUDA objects, and of one that makes HIP's with its host side.
set(TENON_CUDA_OPTIONS -gencode=arch=compute_90a,code=sm_90a -fmad=false --expt-relaxed-constexpr -lineinfo
  -Xcompiler=-fPIC,-Wall,-ffp-contract=off)
set(TENON_HIP_OPTIONS -x hip --offload-arch=gfx942 --offload-arch=gfx950 -fPIC -Wall ${TENON_HIP_ARITHMETIC})

# How each target's compiler sees a kernel file: its namespace, its device.h, its wave.
function(tenon_target_definitions target out)
  set(${out} -DTENON_TARGET=${target} -DTENON_WAVE=${TENON_WAVE_${target}}
    "-DTENON_DEVICE_HEADER=\"tenon/device/${TENON_FOLDER_${target}}/device.cuh\"" PARENT_SCOPE)
endfunction()

# Compiles each kernel file, once for every target that the installed libraries have, into `library`.
function(tenon_add_kernels library)
  foreach(source IN LISTS ARGN)
    get_filename_component(source ${source} ABSOLUTE)
    get_filename_component(stem ${source} NAME_WE)
    get_filename_component(folder ${source} DIRECTORY)
    foreach(target IN LISTS tenon_TARGETS)
      tenon_target_definitions(${target} definitions)
      set(made ${CMAKE_CURRENT_BINARY_DIR}/kernels/${library}.${stem}.${target})
      if(target MATCHES "^(cuda|hip)$")
        if(target STREQUAL "cuda")
          find_program(TENON_NVCC nvcc HINTS /usr/local/cuda/bin REQUIRED)
          set(command ${TENON_NVCC} ${TENON_CUDA_OPTIONS})
        else()
          find_program(TENON_HIPCXX NAMES amdclang++ HINTS /opt/rocm/bin REQUIRED)
          set(command ${TENON_HIPCXX} ${TENON_HIP_OPTIONS})
        endif()
        set(includes $<TARGET_PROPERTY:tenon::core,INTERFACE_INCLUDE_DIRECTORIES>)
        add_custom_command(OUTPUT ${made}.o
          COMMAND ${command} -std=c++20 -O3 -I${folder} "-I$<JOIN:${includes},;-I>" ${definitions}
                  -MD -MF ${made}.o.d -c ${source} -o ${made}.o
          DEPENDS ${source} DEPFILE ${made}.o.d COMMENT "Compiling ${stem}.cu for ${target}"
          VERBATIM COMMAND_EXPAND_LISTS)
        set_source_files_properties(${made}.o PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
        target_sources(${library} PRIVATE ${made}.o)
      else()
        file(CONFIGURE OUTPUT ${made}.cc CONTENT "#include \"${source}\"\n" @ONLY)
        set_source_files_properties(${made}.cc PROPERTIES OBJECT_DEPENDS ${source} INCLUDE_DIRECTORIES ${folder}
          COMPILE_OPTIONS "${definitions};${TENON_HOST_KERNEL_OPTIONS};-O3;-ffp-contract=off")
        target_sources(${library} PRIVATE ${made}.cc)
      endif()
    endforeach()
  endforeach()
endfunction()
