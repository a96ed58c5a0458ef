// Files that somebody names: opened for reading without ever waiting, and only regular ones. What
// is no such file (a FIFO, a device, a directory) is refused by what it is.
#pragma once

#include <cstdint>
#include <string>

#include "tenon/core/status.h"

namespace tenon {

// A regular file, open. Movable; closes it at the end.
class InputFile {
 public:
  static Result<InputFile> open(const std::string& path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  int descriptor() const { return descriptor_; }
  std::uint64_t bytes() const { return bytes_; }  // when it was opened

 private:
  InputFile() = default;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
};

inline constexpr std::uint64_t kMaxTextBytes = std::uint64_t{64} << 20;

// The whole text of a small file, such as config.json.
Result<std::string> read_text(const std::string& path, std::uint64_t most_bytes = kMaxTextBytes);

}  // namespace tenon
