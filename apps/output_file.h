// A file that results go to: opened before they are made, written when they are there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::apps {

// Movable. A path is bytes, whatever they spell.
class OutputFile {
 public:
  // Makes the file, or finds that it cannot be written. What a file held stays until write().
  // `option` names it in errors.
  static Result<OutputFile> open(std::string_view option, const std::string& path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  ~OutputFile();  // removes a file that open() made and that nothing was written to

  // Replaces what the file holds.
  Status write(std::string_view text);
  // True for two paths of one file.
  bool is_same_file(const OutputFile& other) const;
  const std::string& option() const { return option_; }

 private:
  OutputFile() = default;
  std::string option_, path_;
  int file_ = -1;
  bool made_ = false, regular_ = false;
};

}  // namespace tenon::apps
