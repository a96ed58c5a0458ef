#include "apps/server/later.h"

#include <atomic>
#include <utility>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon::server {

Workers::Workers(int num_threads, std::size_t most_waiting)
    : num_threads_(static_cast<std::size_t>(num_threads)), most_waiting_(most_waiting) {
  threads_.reserve(num_threads_);  // one that finds no place is joined
}

Workers::~Workers() {
  std::deque<std::function<void()>> forgotten;  // may free much: not under the lock
  {
    const std::scoped_lock lock(mutex_);
    stops_ = true;
    forgotten.swap(waiting_);
  }
  wake_.notify_all();
  threads_.clear();  // joins
}

Status Workers::post(std::function<void()> task) {
  const std::scoped_lock lock(mutex_);
  if (waiting_.size() >= most_waiting_)
    return Status::error(Code::kUnsupported, std::to_string(most_waiting_) + " wait already");
  if (waiting_.size() >= idle_ && threads_.size() < num_threads_) {
    auto thread =
        start_thread("tenon later " + std::to_string(threads_.size()), [this] { work(); });
    if (thread) threads_.push_back(*std::move(thread));
    if (threads_.empty()) return thread.status();
  }
  waiting_.push_back(std::move(task));
  wake_.notify_one();
  return Status::ok();
}

void Workers::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    wake_.wait(lock, [this] { return stops_ || !waiting_.empty(); });
    --idle_;
    if (stops_) return;
    std::function<void()> task = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    const Status done = guarded([&] { task(); });
    if (!done) log_failure("http, later", done);
    task = nullptr;  // what it holds goes here
    lock.lock();
  }
}

namespace {

class Later final : public HttpExchange {
 public:
  Later(Workers& workers, MakeExchange make, RefuseExchange refuse)
      : workers_(workers), shared_(std::make_shared<Shared>()) {
    shared_->make = std::move(make);
    shared_->refuse = std::move(refuse);
  }
  ~Later() override { shared_->has_left = true; }

  void begin(std::function<void()> wake) override {
    wake_ = std::move(wake);
    const Status posted = workers_.post([shared = shared_, wake = wake_] { run(*shared, wake); });
    if (!posted) made_ = shared_->refuse(429, std::string(posted.message()));
  }

  HttpPiece next() override {
    if (made_ == nullptr) {
      const std::scoped_lock lock(shared_->mutex);
      made_ = std::move(shared_->made);
      if (!shared_->failure) made_ = shared_->refuse(500, std::string(shared_->failure.message()));
    }
    if (made_ == nullptr) return {};
    if (!std::exchange(begun_, true)) made_->begin(wake_);
    return made_->next();
  }

  std::string note() const override { return made_ == nullptr ? std::string() : made_->note(); }

 private:
  struct Shared {
    MakeExchange make;
    RefuseExchange refuse;
    std::atomic<bool> has_left{false};
    std::mutex mutex;
    std::unique_ptr<HttpExchange> made;
    Status failure;  // where nothing could be made
  };

  static void run(Shared& shared, const std::function<void()>& wake) {
    if (shared.has_left) return;
    std::unique_ptr<HttpExchange> made;
    const Status done = guarded([&] {
      made = shared.make([&shared] { return !shared.has_left; });
      return Status::ok();
    });
    {
      const std::scoped_lock lock(shared.mutex);
      shared.made = std::move(made);
      shared.failure = done;
    }
    wake();
  }

  Workers& workers_;
  const std::shared_ptr<Shared> shared_;
  std::function<void()> wake_;
  std::unique_ptr<HttpExchange> made_;  // seen by the threads of HTTP alone
  bool begun_ = false;
};

}  // namespace

std::unique_ptr<HttpExchange> answer_later(Workers& workers, MakeExchange make,
                                           RefuseExchange refuse) {
  return std::make_unique<Later>(workers, std::move(make), std::move(refuse));
}

}  // namespace tenon::server
