// Which replies have something to take, as a list behind a file descriptor: a thread that also
// waits for signals or connections polls it. Fed by Request::on_ready.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::serve {

class ReadyList : public std::enable_shared_from_this<ReadyList> {
 public:
  static Result<std::shared_ptr<ReadyList>> open();
  ~ReadyList();
  ReadyList(const ReadyList&) = delete;
  ReadyList& operator=(const ReadyList&) = delete;

  // Puts `key` on the list; for Request::on_ready. Keeps the list alive.
  std::function<void()> bell(std::size_t key);
  // Readable (poll, epoll) while the list is not empty.
  int fd() const { return event_; }
  // The keys that were put on the list since, in order, some perhaps twice; empties it.
  std::vector<std::size_t> take();

 private:
  ReadyList() = default;
  void put(std::size_t key);
  int event_ = -1;
  std::mutex mutex_;
  std::vector<std::size_t> keys_;
};

}  // namespace tenon::serve
