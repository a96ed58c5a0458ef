// NCCL as a library that is loaded at run time: the few functions that transport ccl calls. RCCL
// speaks the same language. No header of either is needed to build; what is declared here has been
// the same in all their versions since 2.18.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::transport_ccl {

using Comm = void*;

enum Answer : int { kSuccess = 0, kInProgress = 7 };  // anything else is an error
enum Type : int { kUint8 = 1, kFloat16 = 6, kBFloat16 = 9 };
enum Operation : int { kSum = 0 };

// Names a team: drawn by one rank, given to all.
struct TeamId {
  char bytes[128];
};

// How a communicator is made. The library takes for default what lies behind `bytes` and what is
// newer than `version`.
struct Config {
  static constexpr int kDefault = std::numeric_limits<int>::min();
  std::size_t bytes = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21700;
  int blocking = 0;  // calls return at once; async_error() says when they have ended
  int cluster_size = kDefault, min_blocks = kDefault, max_blocks = kDefault;
  const char* network = nullptr;
};
static_assert(sizeof(Config) == 40);

struct Library {
  int (*version)(int* version);
  int (*draw_id)(TeamId* id);
  int (*init)(Comm* comm, int size, TeamId id, int rank, Config* config);
  int (*async_error)(Comm comm, int* answer);
  int (*abort)(Comm comm);
  int (*destroy)(Comm comm);
  int (*all_gather)(const void* mine, void* all, std::size_t count, int type, Comm comm,
                    void* stream);
  int (*all_reduce)(const void* in, void* out, std::size_t count, int type, int operation,
                    Comm comm, void* stream);
  const char* (*error_text)(int answer);
  const char* (*last_error)(Comm comm);  // null where the library does not have it
  // True for a library that moves host memory and says so by exporting tenon_ccl_serves_hosts:
  // it serves host targets instead of devices. Tests bring one.
  bool serves_hosts = false;
  std::string file;

  // "ncclAllGather: unhandled system error (…)".
  std::string describe(const char* function, int answer, Comm comm) const;
};

// The library for a target, loaded once per process, or every name that was tried and why not.
Result<const Library*> library_for(Target target);

}  // namespace tenon::transport_ccl
