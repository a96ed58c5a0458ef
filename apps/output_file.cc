#include "apps/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tenon::apps {

Result<OutputFile> OutputFile::open(std::string_view option, const std::string& path) {
  OutputFile out;
  out.option_ = option;
  out.path_ = path;
  const auto refuse = [&](int why) {
    const char* text = why == ENXIO ? "nobody reads from it" : std::strerror(why);
    return Status::error(Code::kIo, out.option_ + ": cannot write \"" + path + "\": " + text);
  };
  // A pipe that nobody reads from is an error here, not a wait.
  constexpr int kHow = O_WRONLY | O_CLOEXEC | O_NONBLOCK;
  out.file_ = ::open(path.c_str(), kHow | O_CREAT | O_EXCL, 0666);
  out.made_ = out.file_ >= 0;
  if (!out.made_) out.file_ = ::open(path.c_str(), kHow | O_CREAT, 0666);
  if (out.file_ < 0) return refuse(errno);
  struct stat found {};
  if (fstat(out.file_, &found) != 0) return refuse(errno);
  out.regular_ = S_ISREG(found.st_mode);
  if (fcntl(out.file_, F_SETFL, 0) != 0) return refuse(errno);
  return out;
}

OutputFile::OutputFile(OutputFile&& other) noexcept { *this = std::move(other); }

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(option_, other.option_);
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(made_, other.made_);
  std::swap(regular_, other.regular_);
  return *this;
}

OutputFile::~OutputFile() {
  if (file_ < 0) return;
  ::close(file_);
  if (made_) ::unlink(path_.c_str());
}

Status OutputFile::write(std::string_view text) {
  const auto refuse = [&] {
    return Status::error(
        Code::kIo, option_ + ": could not write all of \"" + path_ + "\": " + std::strerror(errno));
  };
  made_ = false;  // from here on it is somebody's
  if (regular_ && (::lseek(file_, 0, SEEK_SET) != 0 || ::ftruncate(file_, 0) != 0)) return refuse();
  while (!text.empty()) {
    const ssize_t count = ::write(file_, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return refuse();
    text.remove_prefix(static_cast<std::size_t>(count));
  }
  return Status::ok();
}

bool OutputFile::is_same_file(const OutputFile& other) const {
  struct stat mine {
  }, theirs{};
  return regular_ && fstat(file_, &mine) == 0 && fstat(other.file_, &theirs) == 0 &&
         mine.st_dev == theirs.st_dev && mine.st_ino == theirs.st_ino;
}

}  // namespace tenon::apps
