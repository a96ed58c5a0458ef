// What transport ccl loads in tests: the functions of NCCL that it calls, over host memory, between
// threads and between processes of one host. Like NCCL's own, calls on its communicators return at
// once and go on in a thread; unlike NCCL's they have ended when that thread has. Its own sum runs
// in the reverse order of the ranks, so that it can be told from ours.
//
// FAKE_CCL="RANK FAULT [CALL]" makes one rank (or, as −1, all of them) misbehave:
//   fail_init    making the communicator fails
//   hang_init    making the communicator never ends
//   old_version  the process (with RANK −1) has another version
//   fail CALL    the call with that number, from 0, is refused
//   hang CALL    it never begins
//   report CALL  it ends well, and an asynchronous error is there afterwards
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tenon/core/fp8.h"

namespace {

constexpr int kMaxRanks = 8;
constexpr std::size_t kChunkBytes = std::size_t{1} << 16;
enum : int { kSuccess = 0, kInternalError = 3, kRemoteError = 6, kInProgress = 7 };

// In shared memory; zero at first.
struct Board {
  std::atomic<int> num_joined;
  struct Slot {
    std::atomic<std::uint64_t> num_posted;
    std::byte chunk[2][kChunkBytes];  // of even and of odd steps
  } slots[kMaxRanks];
};

// Where the board is: an open file of the process that drew the id.
struct Place {
  int pid, file;
};

struct Comm {
  Board* board = nullptr;
  int rank = 0, size = 1, own_file = -1;
  int num_calls = 0;
  std::uint64_t step = 0;
  std::atomic<int> state{kInProgress};
  std::atomic<bool> aborted{false};
  std::thread worker;
};

struct Fault {
  int rank = -2, call = -1;
  std::string what;
};
bool misbehaves(int rank, const char* what, int call = -1) {
  const char* text = std::getenv("FAKE_CCL");
  if (text == nullptr) return false;
  Fault fault;
  std::istringstream(text) >> fault.rank >> fault.what >> fault.call;
  return (fault.rank == rank || fault.rank == -1) && fault.what == what && fault.call == call;
}

// False when the communicator was aborted meanwhile.
template <class Ready>
bool wait_until(const Comm& comm, Ready ready) {
  for (int round = 0; !ready(); ++round) {
    if (comm.aborted) return false;
    if (round < 1000)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

// Work in the communicator's thread. The one before has ended: its state was asked for.
template <class Work>
int start(Comm& comm, Work work) {
  if (comm.worker.joinable()) comm.worker.join();
  comm.state = kInProgress;
  comm.worker = std::thread([&comm, work] { comm.state = work(); });
  return kInProgress;
}

bool gather(Comm& comm, const std::byte* mine, std::byte* all, std::size_t bytes) {
  for (std::size_t begin = 0; begin < bytes; begin += kChunkBytes, ++comm.step) {
    const std::size_t count = std::min(kChunkBytes, bytes - begin);
    Board::Slot& own = comm.board->slots[comm.rank];
    std::memcpy(own.chunk[comm.step % 2], mine + begin, count);
    own.num_posted = comm.step + 1;
    for (int peer = 0; peer < comm.size; ++peer) {
      Board::Slot& theirs = comm.board->slots[peer];
      if (!wait_until(comm, [&] { return theirs.num_posted > comm.step; })) return false;
      std::memcpy(all + static_cast<std::size_t>(peer) * bytes + begin, theirs.chunk[comm.step % 2],
                  count);
    }
  }
  return true;
}

template <class T>
void sum_backwards(const std::vector<std::byte>& all, std::size_t count, int size, void* out) {
  const T* in = reinterpret_cast<const T*>(all.data());
  for (std::size_t i = 0; i < count; ++i) {
    float sum = tenon::to_float(in[static_cast<std::size_t>(size - 1) * count + i]);
    for (int rank = size - 2; rank >= 0; --rank)
      sum += tenon::to_float(in[static_cast<std::size_t>(rank) * count + i]);
    if constexpr (std::is_same_v<T, tenon::bf16>)
      static_cast<T*>(out)[i] = tenon::to_bf16(sum);
    else
      static_cast<T*>(out)[i] = tenon::to_f16(sum);
  }
}

// A call: `work` in the background, with what FAKE_CCL says about it.
template <class Work>
int call(Comm& comm, Work work) {
  const int number = comm.num_calls++;
  if (misbehaves(comm.rank, "fail", number)) return kInternalError;
  return start(comm, [&comm, number, work]() -> int {
    if (misbehaves(comm.rank, "hang", number)) wait_until(comm, [] { return false; });
    if (comm.aborted || !work()) return kInternalError;
    return misbehaves(comm.rank, "report", number) ? kRemoteError : kSuccess;
  });
}

int open_board(const Place& place) {
  const std::string path =
      "/proc/" + std::to_string(place.pid) + "/fd/" + std::to_string(place.file);
  return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

void free_comm(Comm* comm) {
  comm->aborted = true;
  if (comm->worker.joinable()) comm->worker.join();
  if (comm->board != nullptr) munmap(comm->board, sizeof(Board));
  if (comm->own_file >= 0) close(comm->own_file);
  delete comm;
}

}  // namespace

extern "C" {

struct FakeId {
  char bytes[128];
};

int tenon_ccl_serves_hosts() { return 1; }

int ncclGetVersion(int* version) {
  *version = misbehaves(-1, "old_version") ? 22705 : 22803;
  return kSuccess;
}

const char* ncclGetErrorString(int answer) {
  return answer == kRemoteError ? "remote process exited or there was a network error"
                                : "internal error";
}

int ncclGetUniqueId(FakeId* id) {
  const int file = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(Board)) != 0) return kInternalError;
  const Place place{getpid(), file};
  std::memcpy(id->bytes, &place, sizeof place);
  return kSuccess;
}

int ncclCommInitRankConfig(void** out, int size, FakeId id, int rank, void*) {
  if (misbehaves(rank, "fail_init")) return kInternalError;
  Place place{};
  std::memcpy(&place, id.bytes, sizeof place);
  auto* comm = new Comm;
  *out = comm;
  comm->rank = rank;
  comm->size = size;
  if (rank == 0) comm->own_file = place.file;
  return start(*comm, [comm, place]() -> int {
    if (misbehaves(comm->rank, "hang_init")) wait_until(*comm, [] { return false; });
    const int file = open_board(place);
    if (file < 0) return kRemoteError;
    void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return kInternalError;
    comm->board = static_cast<Board*>(memory);
    ++comm->board->num_joined;
    const bool all = wait_until(*comm, [&] { return comm->board->num_joined >= comm->size; });
    return all ? kSuccess : kInternalError;
  });
}

int ncclCommGetAsyncError(void* handle, int* answer) {
  *answer = static_cast<Comm*>(handle)->state;
  return kSuccess;
}

int ncclCommAbort(void* handle) {
  free_comm(static_cast<Comm*>(handle));
  return kSuccess;
}

int ncclCommDestroy(void* handle) {
  free_comm(static_cast<Comm*>(handle));
  return kSuccess;
}

int ncclAllGather(const void* mine, void* all, std::size_t bytes, int, void* handle, void*) {
  Comm& comm = *static_cast<Comm*>(handle);
  return call(comm, [&comm, mine, all, bytes] {
    return gather(comm, static_cast<const std::byte*>(mine), static_cast<std::byte*>(all), bytes);
  });
}

int ncclAllReduce(const void* in, void* out, std::size_t count, int type, int, void* handle,
                  void*) {
  Comm& comm = *static_cast<Comm*>(handle);
  return call(comm, [&comm, in, out, count, type] {
    std::vector<std::byte> all(2 * count * static_cast<std::size_t>(comm.size));
    if (!gather(comm, static_cast<const std::byte*>(in), all.data(), 2 * count)) return false;
    if (type == 9)
      sum_backwards<tenon::bf16>(all, count, comm.size, out);
    else
      sum_backwards<tenon::f16>(all, count, comm.size, out);
    return true;
  });
}

}  // extern "C"
