#include "tenon/core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tenon {
namespace {

Status failed(const std::string& path, const std::string& why) {
  return Status::error(Code::kIo, path + ": " + why);
}

Status cannot_open(const std::string& path, int error) {
  std::string why = std::string("cannot be opened: ") + std::strerror(error);
  if (error == EMFILE || error == ENFILE)
    why += "; a larger limit of open files is needed (ulimit -n)";
  return failed(path, why);
}

Status check_kind(const std::string& path, const struct stat& found) {
  const char* kind = S_ISDIR(found.st_mode)                             ? "a directory"
                     : S_ISFIFO(found.st_mode)                          ? "a FIFO"
                     : S_ISSOCK(found.st_mode)                          ? "a socket"
                     : S_ISCHR(found.st_mode) || S_ISBLK(found.st_mode) ? "a device"
                                                                        : "of an unknown kind";
  if (S_ISREG(found.st_mode)) return Status::ok();
  return failed(path, std::string("is ") + kind + "; accepted: a regular file");
}

}  // namespace

Result<InputFile> InputFile::open(const std::string& path) {
  // Looked at first: merely opening a device may do something.
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return cannot_open(path, errno);
  TENON_TRY(check_kind(path, found));
  InputFile file;
  file.descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file.descriptor_ < 0) return cannot_open(path, errno);
  if (::fstat(file.descriptor_, &found) != 0) return cannot_open(path, errno);
  TENON_TRY(check_kind(path, found));  // it may be another one by now
  file.path_ = path;
  file.bytes_ = static_cast<std::uint64_t>(found.st_size);
  file.id_ = {static_cast<std::uint64_t>(found.st_dev), static_cast<std::uint64_t>(found.st_ino)};
  return file;
}

InputFile::InputFile(InputFile&& other) noexcept { *this = std::move(other); }

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  std::swap(id_, other.id_);
  return *this;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status InputFile::read(std::uint64_t offset, std::size_t count, std::byte* to) const {
  const auto asked = [&] {
    return "bytes " + std::to_string(offset) + " to " + std::to_string(offset + count);
  };
  for (std::size_t done = 0; done < count;) {
    const ssize_t got =
        ::pread(descriptor_, to + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(path_, asked() + " cannot be read: " + std::strerror(errno));
    if (got == 0)
      return failed(path_, "became shorter while it was read: " + asked() + " were asked for, " +
                               std::to_string(done) + " of these " + std::to_string(count) +
                               " were found");
    done += static_cast<std::size_t>(got);
  }
  return Status::ok();
}

void InputFile::expect(std::uint64_t offset, std::uint64_t count) const {
  static_cast<void>(::posix_fadvise(descriptor_, static_cast<off_t>(offset),
                                    static_cast<off_t>(count), POSIX_FADV_WILLNEED));
}

Result<std::string> read_text(const std::string& path, std::uint64_t most_bytes) {
  TENON_ASSIGN(const InputFile file, InputFile::open(path));
  if (file.bytes() > most_bytes)
    return failed(path, "has " + std::to_string(file.bytes()) + " bytes, at most " +
                            std::to_string(most_bytes) + " are accepted");
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  TENON_TRY(file.read(0, text.size(), reinterpret_cast<std::byte*>(text.data())));
  return text;
}

}  // namespace tenon
