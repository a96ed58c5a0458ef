// Where device/runtime.cc finds the backend of each target. Private to this floor.
#pragma once

#include "tenon/device/runtime.h"

namespace tenon {

Result<Backend*> host_backend(Target target);    // cpu/runtime.cc: cpu, emu32, emu64
Result<Backend*> vendor_backend(Target target);  // cuda_hip/runtime.cc: cuda or hip

}  // namespace tenon
