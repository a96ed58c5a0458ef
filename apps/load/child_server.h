// `tenon serve` as a child of this process, on a free port of loopback, for as long as the object
// lives.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "tenon/core/thread.h"

namespace tenon::apps {

class ChildServer {
 public:
  // Waits until it serves. `options`: further words of its command line. Where it ends instead, or
  // a signal comes first, that is the error, with the last line that it wrote.
  static Result<std::unique_ptr<ChildServer>> start(const std::vector<std::string>& options);
  ~ChildServer();  // SIGTERM; SIGKILL where that is not enough
  ChildServer(const ChildServer&) = delete;
  ChildServer& operator=(const ChildServer&) = delete;

  const std::string& url() const { return url_; }

 private:
  ChildServer() = default;
  Status wait_until_it_serves();

  pid_t child_ = -1;
  int log_ = -1;  // the reading end of its standard error
  std::string url_;
  Thread reader_;  // passes on what it writes later
};

// "--tp 2 --target cuda" as words.
std::vector<std::string> words_of(const std::string& text);

}  // namespace tenon::apps
