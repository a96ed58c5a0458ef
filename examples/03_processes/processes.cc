// Ranks as processes, and what becomes of the others when one is lost.
//   processes                 a rank, where torchrun, srun or mpirun has started it
//   processes NUM_RANKS       starts so many copies of itself and waits for them
//   processes NUM_RANKS lose  the same; the last rank leaves after the first step
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tenon/boundary/boundary.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/fp8.h"

extern char** environ;

namespace {

using namespace tenon;

constexpr int kHidden = 256;
constexpr std::uint16_t kOne = 0x3f80;  // bf16

// [rank]
Status run_rank(bool leaves_if_last) {
  CommOptions options;  // no bootstrap: the environment says who is who
  TENON_ASSIGN(const Launch launch, read_launch([](const char* name) {
                 return static_cast<const char*>(std::getenv(name));
               }));
  options.rank = launch.rank;
  options.size = launch.size;
  options.deadline = std::chrono::seconds(5);
  TENON_ASSIGN(const Device device, nth_device(Target::kCpu, launch.local_rank));
  TENON_ASSIGN(auto comm, Communicator::create(options, device));
  TENON_ASSIGN(auto channel, BoundaryChannel::make({.hidden = kHidden, .max_rows = 1}, *comm));
  const BoundarySpec spec{.site = "processes", .hidden = kHidden, .max_rows = 1, .want_fp8 = false};
  TENON_ASSIGN(Boundary boundary, Boundary::make(spec, channel));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  // [/rank]

  std::vector<std::uint16_t> addend(kHidden, kOne), residual(kHidden), weight(kHidden),
      rows(kHidden);
  const auto row = [&](auto& of) { return view(of.data(), DType::kBF16, device, {1, kHidden}); };
  for (int step = 1; step <= 3; ++step) {
    TENON_TRY(boundary.run({row(addend)}, row(residual),
                           view(weight.data(), DType::kBF16, device, {kHidden}),
                           {.bf16 = row(rows)}, stream));
    TENON_TRY(stream.synchronize());
    TENON_TRY(comm->health());
    const float sum = to_float(bf16{residual[0]});
    if (sum != static_cast<float>(step * options.size))
      return Status::error(Code::kInternal, "the residual is " + std::to_string(sum));
    std::printf("rank %d of %d, transport %s: residual %g\n", options.rank, options.size,
                std::string(comm->transport()).c_str(), static_cast<double>(sum));
    std::fflush(stdout);
    if (leaves_if_last && options.rank == options.size - 1) std::_Exit(0);
  }
  return Status::ok();
}

// What torchrun does for ranks of one machine: a free port, and five variables.
bool start_ranks(char* self, int num_ranks, bool lose) {
  const int held = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  auto* const at = reinterpret_cast<sockaddr*>(&address);
  if (held < 0 || bind(held, at, bytes) != 0 || getsockname(held, at, &bytes) != 0) return false;
  close(held);
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", std::to_string(ntohs(address.sin_port)).c_str(), 1);
  setenv("WORLD_SIZE", std::to_string(num_ranks).c_str(), 1);
  std::vector<pid_t> started;
  for (int rank = 0; rank < num_ranks; ++rank) {
    setenv("RANK", std::to_string(rank).c_str(), 1);
    setenv("LOCAL_RANK", std::to_string(rank).c_str(), 1);
    char word[] = "lose";
    char* const words[] = {self, lose ? word : nullptr, nullptr};
    pid_t child = 0;
    if (posix_spawn(&child, self, nullptr, nullptr, words, environ) == 0) started.push_back(child);
  }
  bool all_well = static_cast<int>(started.size()) == num_ranks;
  for (const pid_t child : started) {
    int status = 0;
    waitpid(child, &status, 0);
    all_well = all_well && status == 0;
  }
  return all_well;
}

}  // namespace

int main(int count, char** words) {
  const bool lose = count > 1 && std::string(words[count - 1]) == "lose";
  if (std::getenv("RANK") != nullptr || std::getenv("SLURM_PROCID") != nullptr ||
      std::getenv("OMPI_COMM_WORLD_RANK") != nullptr) {
    const Status status = run_rank(lose);
    if (!status) std::fprintf(stderr, "%s\n", status.to_string().c_str());
    return status ? 0 : 1;
  }
  const int num_ranks = count > 1 ? std::atoi(words[1]) : 0;
  if (num_ranks < 1 || num_ranks > 8) {
    std::fprintf(stderr, "usage: processes NUM_RANKS [lose], 1 to 8 ranks\n");
    return 2;
  }
  return start_ranks(words[0], num_ranks, lose) ? 0 : 1;
}
