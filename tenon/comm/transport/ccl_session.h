// One communicator of NCCL: made, called, watched and freed so that nothing waits for ever,
// although its kernels have no deadline. Calls of the library never block (its communicator is a
// nonblocking one); a thread of this session sleeps beside it and looks at three things: whether
// the bootstrap has lost a rank, whether the library reports an error, and how old the oldest eager
// collective is that has not ended. Whatever is wrong, the communicator is then aborted, which ends
// its kernels.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "tenon/comm/transport/ccl_library.h"
#include "tenon/comm/transport/transport.h"
#include "tenon/core/thread.h"

namespace tenon::transport_ccl {

// One collective. `count` elements of `type` of every rank.
struct Work {
  enum class Kind : std::uint8_t { kGather, kSum } kind = Kind::kGather;
  int type = kUint8;
  const void* in = nullptr;
  void* out = nullptr;
  std::size_t count = 0;
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  // Collective, bounded by the deadline of the context. A session must be closed.
  static Result<std::shared_ptr<Session>> open(const TransportContext& context,
                                               const Library& library);
  Session(const TransportContext& context, const Library& library);

  // Enqueues on the stream, and returns when the library is ready for more. Nothing happens once
  // the session has given up. For host targets there is no stream: work is done when this returns.
  Status run(const Work& work, Stream* stream);
  // Waits until everything that was run, captures apart, has ended; at most the deadline.
  Status drain();

  using Failed = std::function<void(const Status& status)>;
  void watch(Failed failed);
  // Gives up: ends the library's kernels soon, and tells the watcher of the first failure.
  Status fail(Status status);

  // Frees the communicator. Blocks at most the deadline: a captured graph that still lives keeps
  // the library from freeing it, which then goes on behind the scenes. The bootstrap is not used
  // afterwards.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kMaxPending = 64;
  // An eager collective that has perhaps not ended.
  struct Pending {
    std::optional<Event> event;
    Clock::time_point since;
    std::uint32_t call = 0;
    Work::Kind kind{};
  };

  Status prepare();
  Status connect(const TeamId& id);
  int enqueue(const Work& work, void* stream);
  int async_error(std::string* sentence);
  Status settle(const std::string& doing_what);
  std::string place(Work::Kind kind, std::uint32_t call) const;

  Status note(Work::Kind kind, std::uint32_t call, Stream& stream);
  Result<const Pending*> oldest_unfinished();
  Status check_age();

  void watch_until_closed();
  void abort_library();
  void free_library();

  const Library& library_;
  Bootstrap& bootstrap_;
  const Device device_;
  Backend* backend_ = nullptr;
  const int rank_, size_;
  const std::chrono::milliseconds deadline_;
  std::uint32_t num_calls_ = 0;

  std::mutex comm_mutex_;  // every call of the library on comm_
  Comm comm_ = nullptr;
  std::mutex abort_mutex_;  // for as long as the library takes to abort
  std::atomic<bool> given_up_{false};

  std::mutex pending_mutex_;
  std::array<Pending, kMaxPending> pending_;  // a ring
  std::size_t first_pending_ = 0, num_pending_ = 0;
  Clock::time_point last_end_{};

  std::mutex failed_mutex_;
  Failed failed_;
  bool told_ = false;

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool closing_ = false, freed_ = false;
  Thread watcher_;
};

}  // namespace tenon::transport_ccl
