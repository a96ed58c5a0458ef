// Texts that somebody names on the command line: a file, a pipe or a device.
#pragma once

#include <cstdio>
#include <string>

#include "tenon/core/status.h"

namespace tenon::apps {

// All that can be read from it, at most kMaxTextBytes (tenon/core/file.h). Errors are those of
// "the prompt", where that is `what` it is, "in standard input" or wherever.
Result<std::string> read_all(std::FILE* file, const std::string& what);
Result<std::string> read_all(const std::string& path, const std::string& what);

}  // namespace tenon::apps
