// Files that somebody names: opened for reading without ever waiting, and only regular ones. What
// is no such file (a FIFO, a device, a directory) is refused by what it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tenon/core/status.h"

namespace tenon {

// Which file it is, under whatever name.
struct FileId {
  std::uint64_t device = 0, number = 0;
  friend bool operator==(const FileId&, const FileId&) = default;
};

// A regular file, open. Movable; closes it at the end.
class InputFile {
 public:
  static Result<InputFile> open(const std::string& path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  std::uint64_t bytes() const { return bytes_; }  // when it was opened
  FileId id() const { return id_; }

  // Writes the `count` bytes from the byte `offset` on to `to`. Threads may read together. An error
  // names the file, the bytes, and where the file ended.
  Status read(std::uint64_t offset, std::size_t count, std::byte* to) const;

  // Has the system fetch these bytes from the disk, where they lie there only, and waits for none.
  void expect(std::uint64_t offset, std::uint64_t count) const;

 private:
  InputFile() = default;
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
  FileId id_;
};

inline constexpr std::uint64_t kMaxTextBytes = std::uint64_t{64} << 20;

// The whole text of a small file, such as config.json.
Result<std::string> read_text(const std::string& path, std::uint64_t most_bytes = kMaxTextBytes);

}  // namespace tenon
