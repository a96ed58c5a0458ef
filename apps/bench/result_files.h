// The files that the results of a bench go to: all are opened before anything is measured.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "apps/output_file.h"
#include "tenon/core/status.h"

namespace tenon::apps {

class ResultFiles {
 public:
  struct Wanted {
    const char* option;  // "--csv"
    std::string path;    // empty: not wanted
  };
  // Refuses two options that name one file.
  static Result<ResultFiles> open(const std::vector<Wanted>& wanted);

  bool has(std::string_view option) const;
  // Writes the file of this option, if it is wanted.
  void save(std::string_view option, std::string_view text);
  // Ok, or the first save() that failed.
  const Status& saved() const { return saved_; }

 private:
  std::vector<OutputFile> files_;
  Status saved_ = Status::ok();
};

}  // namespace tenon::apps
