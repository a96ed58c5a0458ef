#include "tenon/comm/transport/ccl_session.h"

#include <sched.h>

#include <algorithm>
#include <tuple>

#include "tenon/comm/messages.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon::transport_ccl {
namespace {

using std::chrono::milliseconds;

// What the ranks compare and share before they connect.
struct Card {
  int version = 0;
  TeamId id{};
};

std::string version_text(int version) {
  return std::to_string(version / 10'000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Status check_versions(std::span<const Card> infos) {
  for (std::size_t rank = 1; rank < infos.size(); ++rank)
    if (infos[rank].version != infos[0].version)
      return Status::error(Code::kUnsupported, "rank 0 has NCCL " + version_text(infos[0].version) +
                                                   " and rank " + std::to_string(rank) + " has " +
                                                   version_text(infos[rank].version) +
                                                   "; all must load the same version");
  return Status::ok();
}

const char* function_of(Work::Kind kind) {
  return kind == Work::Kind::kGather ? "ncclAllGather" : "ncclAllReduce";
}

}  // namespace

// --- making it ----------------------------------------------------------------------------------

Session::Session(const TransportContext& context, const Library& library)
    : library_(library),
      bootstrap_(context.bootstrap),
      device_(context.device),
      rank_(context.bootstrap.rank()),
      size_(context.bootstrap.size()),
      deadline_(context.deadline) {}

Status Session::prepare() {
  TENON_ASSIGN(backend_, backend(device_.target));
  for (Pending& each : pending_) {
    TENON_ASSIGN(each.event, Event::create(device_));
  }
  return Status::ok();
}

Result<std::shared_ptr<Session>> Session::open(const TransportContext& context,
                                               const Library& library) {
  Bootstrap& bootstrap = context.bootstrap;
  auto session = std::make_shared<Session>(context, library);
  Card mine;
  const auto draw = [&]() -> Status {
    TENON_TRY(session->prepare());
    int answer = library.version(&mine.version);
    if (answer == kSuccess && bootstrap.rank() == 0) answer = library.draw_id(&mine.id);
    if (answer == kSuccess) return Status::ok();
    return Status::error(Code::kDevice, library.describe("ncclGetUniqueId", answer, nullptr));
  };
  TENON_TRY(agree(bootstrap, draw(), "ccl: draw a team id", context.deadline));
  std::vector<Card> infos(static_cast<std::size_t>(bootstrap.size()));
  TENON_TRY(bootstrap.exchange(bytes_of(mine), std::as_writable_bytes(std::span(infos)),
                               "ccl: team id", context.deadline));
  TENON_TRY(check_versions(infos));

  Status connected = session->connect(infos[0].id);
  auto watcher = start_thread("tenon ccl", [session] { session->watch_until_closed(); });
  if (connected) connected = watcher.status();
  if (watcher) session->watcher_ = *std::move(watcher);
  // The others are in the library, waiting for this rank: only an abort reaches them there.
  if (!connected) bootstrap.abort(connected.message());
  if (connected) connected = bootstrap.barrier("ccl: connected", context.deadline);
  if (connected) return session;
  session->given_up_ = true;
  session->close();
  return connected;
}

Status Session::connect(const TeamId& id) {
  Config config;
  int answer = kSuccess;
  TENON_TRY(backend_->with_device(device_.index, [&] {
    std::lock_guard lock(comm_mutex_);
    answer = library_.init(&comm_, size_, id, rank_, &config);
    return Status::ok();
  }));
  if (answer != kSuccess && answer != kInProgress)
    return Status::error(Code::kDevice,
                         library_.describe("ncclCommInitRankConfig", answer, nullptr));
  return settle("making the communicator (ncclCommInitRankConfig)");
}

// --- calls --------------------------------------------------------------------------------------

std::string Session::place(Work::Kind kind, std::uint32_t call) const {
  return std::string(function_of(kind)) + ", call " + std::to_string(call) + ", channel \"ccl\"";
}

int Session::enqueue(const Work& work, void* stream) {
  std::lock_guard lock(comm_mutex_);
  if (comm_ == nullptr) return kSuccess;  // given up
  if (work.kind == Work::Kind::kGather)
    return library_.all_gather(work.in, work.out, work.count, work.type, comm_, stream);
  return library_.all_reduce(work.in, work.out, work.count, work.type, kSum, comm_, stream);
}

// What the library says about the last call and about its connections.
int Session::async_error(std::string* sentence) {
  std::lock_guard lock(comm_mutex_);
  if (comm_ == nullptr) return kInProgress;  // given up
  int found = kSuccess;
  const int answer = library_.async_error(comm_, &found);
  if (answer != kSuccess) found = answer;
  if (found != kSuccess && found != kInProgress && sentence != nullptr)
    *sentence = library_.describe("reported by NCCL", found, comm_);
  return found;
}

// Waits while the library is still at the call before. Usually that takes microseconds; it takes
// longer while it connects to a peer.
Status Session::settle(const std::string& doing_what) {
  constexpr int kYields = 2000;
  constexpr std::chrono::microseconds kNap(100);
  const auto end = Clock::now() + deadline_;
  const auto sentence = [&] { return "rank " + std::to_string(rank_) + " in " + doing_what; };
  for (int round = 0;; ++round) {
    if (const auto lost = bootstrap_.loss()) {
      given_up_ = true;  // at once: no call may follow one that has not ended
      return Status::error(Code::kPeerLost, sentence() + ": " + lost->why);
    }
    if (given_up_) return Status::error(Code::kPeerLost, sentence() + ": given up");
    std::string report;
    const int state = async_error(&report);
    if (state == kSuccess) return Status::ok();
    if (state != kInProgress) return fail(Status::error(Code::kDevice, sentence() + ": " + report));
    if (Clock::now() >= end)
      return fail(Status::error(Code::kTimeout, sentence() + " waited " + seconds_text(deadline_) +
                                                    " for the other ranks: deadline"));
    if (round < kYields)
      sched_yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

Status Session::run(const Work& work, Stream* stream) {
  if (given_up_) return Status::ok();
  const std::uint32_t call = num_calls_++;
  const int answer = enqueue(
      work, stream == nullptr ? nullptr : stream->backend().vendor_stream(stream->native()));
  if (answer != kSuccess && answer != kInProgress)
    return fail(Status::error(
        Code::kDevice, "rank " + std::to_string(rank_) + " in " + place(work.kind, call) + ": " +
                           library_.describe(function_of(work.kind), answer, nullptr)));
  if (answer == kInProgress) {
    const Status settled = settle(place(work.kind, call));
    if (!settled && stream == nullptr) abort_library();  // no longer touches the caller's memory
    TENON_TRY(settled);
  }
  if (stream == nullptr || stream->capturing()) return Status::ok();
  return note(work.kind, call, *stream);
}

// --- how old they are ---------------------------------------------------------------------------

Status Session::note(Work::Kind kind, std::uint32_t call, Stream& stream) {
  std::lock_guard lock(pending_mutex_);
  // A full ring: the newest event moves on to this call, and stands for those in between too.
  if (num_pending_ < kMaxPending) ++num_pending_;
  Pending& place = pending_[(first_pending_ + num_pending_ - 1) % kMaxPending];
  place.call = call;
  place.kind = kind;
  place.since = Clock::now();
  return place.event->record(stream);
}

// Takes what has ended off the ring; null when that is everything.
Result<const Session::Pending*> Session::oldest_unfinished() {
  while (num_pending_ > 0) {
    Pending& front = pending_[first_pending_];
    TENON_ASSIGN(const bool ended, front.event->has_happened());
    if (!ended) return &front;
    first_pending_ = (first_pending_ + 1) % kMaxPending;
    --num_pending_;
    last_end_ = Clock::now();
  }
  return nullptr;
}

// Work in front of a collective on its stream takes its time too: it is counted from the end of the
// collective before.
Status Session::check_age() {
  std::lock_guard lock(pending_mutex_);
  TENON_ASSIGN(const Pending* const oldest, oldest_unfinished());
  if (oldest == nullptr || Clock::now() - std::max(oldest->since, last_end_) <= deadline_)
    return Status::ok();
  return Status::error(
      Code::kTimeout, "rank " + std::to_string(rank_) + " in " + place(oldest->kind, oldest->call) +
                          " waited " + seconds_text(deadline_) + " for the other ranks: deadline");
}

Status Session::drain() {
  constexpr std::chrono::microseconds kNap(100);
  for (;;) {
    if (const auto lost = bootstrap_.loss()) return Status::error(Code::kPeerLost, lost->why);
    if (given_up_) return Status::error(Code::kPeerLost, "given up");
    std::string report;
    const int state = async_error(&report);
    if (state != kSuccess && state != kInProgress)
      return fail(Status::error(Code::kDevice, "rank " + std::to_string(rank_) + ": " + report));
    const Status young = check_age();
    if (!young) return fail(young);
    {
      std::lock_guard lock(pending_mutex_);
      if (num_pending_ == 0) return Status::ok();
    }
    std::this_thread::sleep_for(kNap);
  }
}

// --- failure ------------------------------------------------------------------------------------

void Session::watch(Failed failed) {
  std::lock_guard lock(failed_mutex_);
  failed_ = std::move(failed);
}

Status Session::fail(Status status) {
  given_up_ = true;
  wake_.notify_all();
  std::lock_guard lock(failed_mutex_);
  if (!told_ && failed_) {
    told_ = true;
    failed_(status);
  }
  return status;
}

void Session::watch_until_closed() {
  const auto period = std::clamp(deadline_ / 20, milliseconds(1), milliseconds(50));
  std::unique_lock lock(wake_mutex_);
  while (!closing_) {
    wake_.wait_for(lock, period);
    if (closing_) break;
    lock.unlock();
    const Status looked = guarded([&]() -> Status {
      if (bootstrap_.loss()) given_up_ = true;
      if (given_up_) return Status::ok();
      std::string report;
      const int state = async_error(&report);
      if (state != kSuccess && state != kInProgress)
        return Status::error(Code::kDevice, "rank " + std::to_string(rank_) + ": " + report);
      return check_age();
    });
    if (!looked) std::ignore = guarded([&] { return fail(looked); });
    if (given_up_) abort_library();
    lock.lock();
  }
  lock.unlock();
  free_library();
  lock.lock();
  freed_ = true;
  wake_.notify_all();
}

// Both may take long: the library waits for the graphs that it was captured into. Whoever comes
// second to an abort waits for the first.
void Session::abort_library() {
  std::lock_guard aborting(abort_mutex_);
  Comm comm = nullptr;
  {
    std::lock_guard lock(comm_mutex_);
    std::swap(comm, comm_);
  }
  if (comm == nullptr) return;
  std::ignore = backend_->with_device(device_.index, [&] {
    library_.abort(comm);
    return Status::ok();
  });
}

void Session::free_library() {
  if (given_up_) return abort_library();
  Comm comm = nullptr;
  {
    std::lock_guard lock(comm_mutex_);
    std::swap(comm, comm_);
  }
  if (comm == nullptr) return;
  std::ignore = backend_->with_device(device_.index, [&] {
    library_.destroy(comm);
    return Status::ok();
  });
}

void Session::close() {
  watch(nullptr);
  if (!given_up_) std::ignore = drain();
  std::unique_lock lock(wake_mutex_);
  closing_ = true;
  wake_.notify_all();
  if (!watcher_.joinable()) {
    lock.unlock();
    return free_library();
  }
  if (wake_.wait_for(lock, deadline_, [&] { return freed_; })) {
    lock.unlock();
    return watcher_.join();
  }
  log(LogLevel::kWarning,
      "NCCL has not freed a communicator within " + seconds_text(deadline_) +
          "; graphs that hold collectives of transport ccl must be destroyed before it");
  watcher_.detach();
}

}  // namespace tenon::transport_ccl
