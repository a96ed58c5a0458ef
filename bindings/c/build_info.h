// What the shared library for C says about itself.
#pragma once

#include "tenon/core/build_info.h"

namespace tenon::c {

extern const BuildInfo kBuildInfo;  // filled in by cmake/build_info.cmake

}  // namespace tenon::c
