#include "apps/input_text.h"

#include <cerrno>
#include <cstring>
#include <memory>

#include "tenon/core/file.h"

namespace tenon::apps {
namespace {

Status cannot_read(const std::string& what, const std::string& why) {
  return Status::error(Code::kIo, "cannot read " + what + ": " + why);
}

}  // namespace

Result<std::string> read_all(std::FILE* file, const std::string& what) {
  std::string text;
  char bytes[4096];
  for (std::size_t got; (got = std::fread(bytes, 1, sizeof bytes, file)) > 0;) {
    text.append(bytes, got);
    if (text.size() > kMaxTextBytes)
      return cannot_read(what, "it has more than " + std::to_string(kMaxTextBytes) +
                                   " bytes; accepted are at most so many");
  }
  if (std::ferror(file) != 0) return cannot_read(what, std::strerror(errno));
  return text;
}

Result<std::string> read_all(const std::string& path, const std::string& what) {
  const std::string place = what + " in \"" + path + "\"";
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"),
                                                             std::fclose);
  if (file == nullptr) return cannot_read(place, std::strerror(errno));
  return read_all(file.get(), place);
}

}  // namespace tenon::apps
