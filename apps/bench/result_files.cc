#include "apps/bench/result_files.h"

#include <algorithm>

namespace tenon::apps {

Result<ResultFiles> ResultFiles::open(const std::vector<Wanted>& wanted) {
  ResultFiles opened;
  for (const Wanted& each : wanted) {
    if (each.path.empty()) continue;
    TENON_ASSIGN(OutputFile file, OutputFile::open(each.option, each.path));
    for (const OutputFile& other : opened.files_)
      if (file.is_same_file(other))
        return Status::error(Code::kInvalidArgument, std::string(each.option) + " and " +
                                                         other.option() + " name the same file \"" +
                                                         each.path +
                                                         "\"; accepted is one for each");
    opened.files_.push_back(std::move(file));
  }
  return opened;
}

bool ResultFiles::has(std::string_view option) const {
  return std::any_of(files_.begin(), files_.end(),
                     [&](const OutputFile& each) { return each.option() == option; });
}

void ResultFiles::save(std::string_view option, std::string_view text) {
  for (OutputFile& each : files_) {
    if (each.option() != option) continue;
    const Status written = each.write(text);
    if (saved_) saved_ = written;
  }
}

}  // namespace tenon::apps
