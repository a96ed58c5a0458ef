// Who has something to send: told by any thread, taken up by the threads of an Asio loop. Private
// to http.cc.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>  // before Asio, which uses it and does not include it

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon::server {

// A step of the engine rings for every stream that it has drawn for. They are taken up together, by
// one thread where they are few, so that threads are woken once a step and not once a stream.
class Wakes {
 public:
  class Sleeper {
   public:
    // On a thread of the loop; at most a while after it was put here.
    virtual void take_up() = 0;

   protected:
    ~Sleeper() = default;
  };

  explicit Wakes(boost::asio::io_context& io) : io_(io) {}

  // Any thread. Without the memory for it the process ends: who is not woken would wait for ever.
  void put(std::weak_ptr<Sleeper> who) noexcept {
    const std::scoped_lock lock(mutex_);
    waiting_.push_back(std::move(who));
    if (!posted_) post();
  }

 private:
  static constexpr std::size_t kTogether = 16;

  void post() {
    boost::asio::post(io_, [this] { take_up(); });
    posted_ = true;
  }

  // Some of them; another thread does the same with the rest meanwhile.
  void take_up() {
    std::array<std::shared_ptr<Sleeper>, kTogether> some;
    {
      const std::scoped_lock lock(mutex_);
      for (std::size_t taken = 0; !waiting_.empty() && taken < kTogether; waiting_.pop_front())
        if (auto each = waiting_.front().lock()) some[taken++] = std::move(each);
      posted_ = false;
      if (!waiting_.empty()) post();
    }
    for (const auto& each : some) {
      if (each == nullptr) break;
      const Status done = guarded([&] { each->take_up(); });
      if (!done) log_failure("http", done);
    }
  }

  boost::asio::io_context& io_;
  std::mutex mutex_;
  std::deque<std::weak_ptr<Sleeper>> waiting_;
  bool posted_ = false;  // whether a take_up() is on its way that nobody has begun
};

// What an exchange's wake rings. Outlives whom it wakes, who closes it.
class Bell {
 public:
  void open(Wakes& wakes, std::weak_ptr<Wakes::Sleeper> who) {
    const std::scoped_lock lock(mutex_);
    wakes_ = &wakes;
    who_ = std::move(who);
  }
  void close() {
    const std::scoped_lock lock(mutex_);
    wakes_ = nullptr;
    who_.reset();
  }
  void ring() {
    const std::scoped_lock lock(mutex_);
    if (wakes_ != nullptr) wakes_->put(who_);
  }

 private:
  std::mutex mutex_;
  Wakes* wakes_ = nullptr;
  std::weak_ptr<Wakes::Sleeper> who_;
};

}  // namespace tenon::server
