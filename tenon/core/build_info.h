// What a report of a fault needs to know about a program or a shared library. Each has its own.
#pragma once

namespace tenon {

// Filled in by cmake/build_info.cmake.
struct BuildInfo {
  const char* version;
  const char* commit;  // as git abbreviates it, or "unknown" outside a repository
  bool modified;       // whether the tree held changes that were not committed
  const char* build;   // CMake's build type, with the sanitizers
  const char* compiler;
  const char* targets;  // "cpu, emu32 and emu64"
};

}  // namespace tenon
