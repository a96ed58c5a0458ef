// What a report of a fault needs to know about this program.
#pragma once

#include <string>

namespace tenon::apps {

// Filled in by cmake/build_info.cmake.
struct BuildInfo {
  const char* version;
  const char* commit;  // as git abbreviates it, or "unknown" outside a repository
  bool modified;       // whether the tree held changes that were not committed
  const char* build;   // CMake's build type, with the sanitizers
  const char* compiler;
  const char* targets;  // "cpu, emu32 and emu64"
};
extern const BuildInfo kBuildInfo;

// "0.1.0 (1b1c2b8)": one word for results that name what made them.
std::string version_name();
// Several lines, for --version.
std::string version_text();

}  // namespace tenon::apps
