#include "bindings/c/handles.h"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

namespace tenon::c {
namespace {

// A handle, from its low end: kind, number of its slot, and how many handles there were before.
constexpr int kKindBits = 3, kSlotBits = 21;
constexpr std::uintptr_t kMaxSlots = std::uintptr_t{1} << kSlotBits;
static_assert(sizeof(std::uintptr_t) == 8);

std::uintptr_t slot_of(std::uintptr_t handle) { return handle >> kKindBits & (kMaxSlots - 1); }
Kind kind_of(std::uintptr_t handle) {
  return static_cast<Kind>(handle & ((std::uintptr_t{1} << kKindBits) - 1));
}

struct Slot {
  std::uintptr_t handle = 0;  // 0: free
  std::shared_ptr<Object> object;
};

struct Registry {
  std::mutex mutex;
  std::vector<Slot> slots;
  std::vector<std::uintptr_t> free;
  std::uintptr_t num_made = 0;
};

// Never destroyed: what lives when the process ends may be in use, by kernels among others.
Registry& registry() {
  static Registry& once = *new Registry;
  return once;
}

std::atomic<bool> forked{false};

// Called with the registry's lock held, by the first handle. What the child then has of the parent
// is never touched: it may be locked by a thread that the child does not have.
void watch_forks() {
  static const int watched =
      pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
  (void)watched;
}

Status not_alive(Kind kind, std::uintptr_t handle) {
  const std::string wanted(name(kind));
  if (handle == 0) return Status::error(Code::kInvalidArgument, "the " + wanted + " is null");
  return Status::error(Code::kInvalidArgument, "what was passed is no " + wanted +
                                                   " that lives: it was destroyed, or no function "
                                                   "made it");
}

// With the lock held.
Result<Slot*> slot_at(Registry& all, Kind kind, std::uintptr_t handle) {
  const std::uintptr_t number = slot_of(handle);
  if (handle == 0 || number >= all.slots.size() || all.slots[number].handle != handle)
    return not_alive(kind, handle);
  if (kind_of(handle) != kind)
    return Status::error(Code::kInvalidArgument, "a " + std::string(name(kind_of(handle))) +
                                                     " was passed where a " +
                                                     std::string(name(kind)) + " is accepted");
  return &all.slots[number];
}

}  // namespace

std::string_view name(Kind kind) {
  switch (kind) {
    case Kind::kTeam: return "team";
    case Kind::kCommunicator: return "communicator";
    case Kind::kChannel: return "channel";
    case Kind::kBoundary: return "boundary";
  }
  return "handle";
}

Status check_process() {
  if (!forked.load(std::memory_order_relaxed)) return Status::ok();
  return Status::error(Code::kUnsupported,
                       "this process was forked from one that used tenon, and has none of its "
                       "threads; accepted: fork before the first handle is made, or exec after");
}

Result<std::uintptr_t> keep(Kind kind, std::shared_ptr<Object> object) {
  TENON_TRY(check_process());
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  watch_forks();
  if (all.free.empty()) {
    if (all.slots.size() == kMaxSlots)
      return Status::error(Code::kOutOfMemory,
                           std::to_string(kMaxSlots) + " handles live; no more are accepted");
    all.slots.emplace_back();
    all.free.reserve(all.slots.capacity());  // so that drop() needs no memory
    all.free.push_back(all.slots.size() - 1);
  }
  const std::uintptr_t number = all.free.back();
  all.free.pop_back();
  Slot& slot = all.slots[number];
  slot.handle =
      (++all.num_made << kSlotBits | number) << kKindBits | static_cast<std::uintptr_t>(kind);
  slot.object = std::move(object);
  return slot.handle;
}

Result<std::shared_ptr<Object>> find(Kind kind, std::uintptr_t handle) {
  TENON_TRY(check_process());
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  TENON_ASSIGN(const Slot* slot, slot_at(all, kind, handle));
  return slot->object;
}

Result<std::shared_ptr<Object>> drop(Kind kind, std::uintptr_t handle) {
  TENON_TRY(check_process());
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  TENON_ASSIGN(Slot * slot, slot_at(all, kind, handle));
  all.free.push_back(slot_of(handle));
  slot->handle = 0;
  return std::move(slot->object);
}

}  // namespace tenon::c
