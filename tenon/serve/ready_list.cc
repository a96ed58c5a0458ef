#include "tenon/serve/ready_list.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "tenon/core/guard.h"

namespace tenon::serve {

Result<std::shared_ptr<ReadyList>> ReadyList::open() {
  return guarded([]() -> Result<std::shared_ptr<ReadyList>> {
    std::shared_ptr<ReadyList> list(new ReadyList);
    list->event_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (list->event_ >= 0) return list;
    return Status::error(Code::kIo, std::string("cannot make an event: ") + std::strerror(errno));
  });
}

ReadyList::~ReadyList() {
  if (event_ >= 0) ::close(event_);
}

std::function<void()> ReadyList::bell(std::size_t key) {
  return [list = shared_from_this(), key] { list->put(key); };
}

void ReadyList::put(std::size_t key) {
  const std::scoped_lock lock(mutex_);
  keys_.push_back(key);
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(event_, &one, sizeof one);
}

std::vector<std::size_t> ReadyList::take() {
  const std::scoped_lock lock(mutex_);
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(event_, &count, sizeof count);
  return std::exchange(keys_, {});
}

}  // namespace tenon::serve
