// What launchers tell a process through its environment: torchrun's variables, Slurm's and Open
// MPI's. Not here: the rendezvous itself (socket.cc).
#include <charconv>
#include <optional>
#include <string>

#include "tenon/comm/bootstrap.h"

namespace tenon {
namespace {

using Variables = std::function<const char*(const char* name)>;

struct Found {
  std::string_view name, value;
};

// The first of these variables that is set.
std::optional<Found> first_of(const Variables& variable, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* value = variable(name)) return Found{name, value};
  return std::nullopt;
}

Status missing(std::string_view name, std::string_view accepted) {
  return Status::error(Code::kInvalidArgument,
                       std::string(name) + " is not set; accepted: " + std::string(accepted));
}

Result<int> number(const Found& found, int least, int most, std::string_view meaning) {
  int value = 0;
  const char* end = found.value.data() + found.value.size();
  const auto parsed = std::from_chars(found.value.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end || value < least || value > most)
    return Status::error(Code::kInvalidArgument,
                         std::string(found.name) + " is \"" + std::string(found.value) +
                             "\"; accepted: " + std::string(meaning) + ", a whole number from " +
                             std::to_string(least) + " to " + std::to_string(most));
  return value;
}

}  // namespace

bool was_launched(const Variables& variable) {
  return first_of(variable, {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}).has_value();
}

int local_rank_or(int rank, const Variables& variable) {
  if (!was_launched(variable)) return rank;
  const auto launch = read_launch(variable);
  return launch ? launch->local_rank : rank;
}

Result<Launch> read_launch(const Variables& variable) {
  constexpr int kMostRanks = 1 << 20, kHighestPort = 65535;
  Launch launch;
  const auto size = first_of(variable, {"WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"});
  if (!size)
    return missing("WORLD_SIZE (or SLURM_NTASKS, OMPI_COMM_WORLD_SIZE)", "the number of ranks");
  TENON_ASSIGN(launch.size, number(*size, 1, kMostRanks, "the number of ranks"));

  const auto rank = first_of(variable, {"RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"});
  if (!rank)
    return missing("RANK (or SLURM_PROCID, OMPI_COMM_WORLD_RANK)", "this process's rank, from 0");
  TENON_ASSIGN(launch.rank, number(*rank, 0, launch.size - 1, "this process's rank"));

  launch.local_rank = launch.rank;
  const auto local =
      first_of(variable, {"LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"});
  if (local) {
    TENON_ASSIGN(launch.local_rank,
                 number(*local, 0, launch.size - 1, "this process's rank on its host"));
  }

  const auto address = first_of(variable, {"MASTER_ADDR"});
  if (!address || address->value.empty())
    return missing("MASTER_ADDR", "the host name or IP address of rank 0");
  launch.address = address->value;

  const auto port = first_of(variable, {"MASTER_PORT"});
  if (!port) return missing("MASTER_PORT", "the port on which rank 0 listens");
  TENON_ASSIGN(launch.port, number(*port, 1, kHighestPort, "the port on which rank 0 listens"));
  // torchrun's agent keeps a server of its own on that port: take the next one.
  const auto agent = first_of(variable, {"TORCHELASTIC_USE_AGENT_STORE"});
  if (agent && agent->value == "True" && launch.port < kHighestPort) ++launch.port;
  return launch;
}

}  // namespace tenon
