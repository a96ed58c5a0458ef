#include "apps/version.h"

namespace tenon::apps {

std::string version_name() {
  return std::string(kBuildInfo.version) + " (" + kBuildInfo.commit +
         (kBuildInfo.modified ? ", modified)" : ")");
}

std::string version_text() {
  return "tenon " + std::string(kBuildInfo.version) + "\ncommit: " + kBuildInfo.commit +
         (kBuildInfo.modified ? ", modified" : "") + "\nbuild: " + kBuildInfo.build +
         "\ncompiler: " + kBuildInfo.compiler + "\ntargets: " + kBuildInfo.targets + "\n";
}

}  // namespace tenon::apps
