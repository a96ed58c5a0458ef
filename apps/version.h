// What a report of a fault needs to know about this program.
#pragma once

#include <string>

#include "tenon/core/build_info.h"

namespace tenon::apps {

extern const BuildInfo kBuildInfo;  // filled in by cmake/build_info.cmake

// "0.1.0 (1b1c2b8)": one word for results that name what made them.
std::string version_name();
// Several lines, for --version.
std::string version_text();

}  // namespace tenon::apps
