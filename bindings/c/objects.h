// What handles of the C interface hold, and who may use it when. Private to this folder.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bindings/c/handles.h"
#include "tenon/boundary/boundary.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/status.h"
#include "tenon/device/runtime.h"

namespace tenon::c {

// Who may use something that one thread uses at a time. Nobody waits.
class Turn {
 public:
  static Result<Turn> take(std::atomic<bool>& taken, std::string_view what) {
    if (taken.exchange(true, std::memory_order_acquire))
      return Status::error(
          Code::kInvalidArgument,
          "another thread is in a call of this " + std::string(what) + "; accepted: one at a time");
    return Turn(taken);
  }
  Turn(Turn&& other) noexcept : taken_(std::exchange(other.taken_, nullptr)) {}
  ~Turn() {
    if (taken_ != nullptr) taken_->store(false, std::memory_order_release);
  }

 private:
  explicit Turn(std::atomic<bool>& taken) : taken_(&taken) {}
  std::atomic<bool>* taken_;
};

// The caller's stream as the library knows streams: made at the first call, then found again.
class Borrowed {
 public:
  Result<Stream*> over(Device device, void* native) {
    // Host targets look at a thread's stack when it makes a stream.
    const bool same_thread = !is_host(device.target) || made_by_ == std::this_thread::get_id();
    if (!stream_ || native_ != native || !same_thread) {
      TENON_ASSIGN(Stream made, Stream::borrow(device, native));
      stream_.emplace(std::move(made));
      native_ = native;
      made_by_ = std::this_thread::get_id();
    }
    return &*stream_;
  }

 private:
  std::optional<Stream> stream_;
  void* native_ = nullptr;
  std::thread::id made_by_;
};

struct TeamObject final : Object {
  static constexpr Kind kKind = Kind::kTeam;
  std::mutex mutex;
  std::vector<std::shared_ptr<Bootstrap>> ranks;  // null: taken
};

struct CommunicatorObject final : Object {
  static constexpr Kind kKind = Kind::kCommunicator;
  std::unique_ptr<Communicator> comm;
  std::atomic<bool> taken{false};
  Borrowed borrowed;
};

struct ChannelObject final : Object {
  static constexpr Kind kKind = Kind::kChannel;
  std::shared_ptr<CommunicatorObject> communicator;
  std::shared_ptr<BoundaryChannel> channel;
  std::atomic<bool> taken{false};
  Borrowed borrowed;
};

struct BoundaryObject final : Object {
  static constexpr Kind kKind = Kind::kBoundary;
  explicit BoundaryObject(Boundary made) : boundary(std::move(made)), uses(boundary.uses()) {}
  std::shared_ptr<ChannelObject> channel;
  Boundary boundary;
  std::vector<BoundaryUse> uses;  // whose texts tenon_plan points to
};

template <class Held, class Handle>
Result<std::shared_ptr<Held>> held_by(Handle* handle) {
  TENON_ASSIGN(auto object, find(Held::kKind, reinterpret_cast<std::uintptr_t>(handle)));
  return std::static_pointer_cast<Held>(std::move(object));
}

template <class Held, class Handle>
Status hand_out(std::shared_ptr<Held> object, Handle** made) {
  TENON_ASSIGN(const std::uintptr_t handle, keep(Held::kKind, std::move(object)));
  *made = reinterpret_cast<Handle*>(handle);
  return Status::ok();
}

inline Result<Turn> turn_of(CommunicatorObject& communicator) {
  return Turn::take(communicator.taken, "communicator");
}
inline Result<Turn> turn_of(ChannelObject& channel) { return Turn::take(channel.taken, "channel"); }

}  // namespace tenon::c
