// TENON_CALLED stands in front of a long function that several places of a kernel call, instead of
// TENON_DEVICE. On CUDA they share one copy of it: code that runs once costs more to fetch than to
// run, and compilers copy it to where it is called. A copy does not see which memory a reference
// names; TENON_DYNAMIC_SHARED inside it tells. On HIP a call would keep registers in scratch
// memory.
#pragma once

#include "tenon/device/device.cuh"

#if defined(__CUDACC__)
#define TENON_CALLED static __device__ __noinline__
#elif defined(__HIP__)
#define TENON_CALLED TENON_DEVICE __attribute__((always_inline))
#else
#define TENON_CALLED TENON_DEVICE
#endif
