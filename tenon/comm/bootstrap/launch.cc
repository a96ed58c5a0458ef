// What launchers tell a process through its environment: torchrun's variables, Slurm's and Open
// MPI's. Not here: the rendezvous itself (socket.cc).
#include <charconv>
#include <optional>
#include <string>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/env.h"

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

// What a launcher must say, and under which names.
struct Wanted {
  std::initializer_list<const char*> names;
  std::string_view meaning;
};
const Wanted kSize{{"WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"}, "the number of ranks"};
const Wanted kRank{{"RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"}, "this process's rank, from 0"};
const Wanted kAddress{{"MASTER_ADDR"}, "the host name or IP address of rank 0"};
const Wanted kPort{{"MASTER_PORT"}, "the port on which rank 0 listens"};
const Wanted* const kWanted[] = {&kSize, &kRank, &kAddress, &kPort};

// "RANK (or SLURM_PROCID, OMPI_COMM_WORLD_RANK)".
std::string names_text(const Wanted& wanted) {
  std::string text, others;
  for (const char* name : wanted.names)
    if (text.empty())
      text = name;
    else
      others += (others.empty() ? "" : ", ") + std::string(name);
  return others.empty() ? text : text + " (or " + others + ")";
}

std::vector<const Wanted*> missing_of(const Variables& variable) {
  std::vector<const Wanted*> missing;
  for (const Wanted* wanted : kWanted) {
    const auto found = first_of(variable, wanted->names);
    if (!found || (wanted == &kAddress && found->value.empty())) missing.push_back(wanted);
  }
  return missing;
}

// What the ranks of one job share although nobody has chosen it: keeps other jobs apart, and is no
// secret from who can guess it. Not torchrun's count of restarts, which may differ between hosts.
std::string job_id(const Variables& variable) {
  for (const char* name : {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE"}) {
    const char* value = variable(name);
    const bool says_something =
        value != nullptr && *value != 0 && value != std::string_view("none");
    if (says_something) return std::string(name) + "=" + value;
  }
  return {};
}

}  // namespace

bool was_launched(const Variables& variable) {
  const auto missing = missing_of(variable);
  if (missing.empty()) return true;
  const auto some = first_of(variable, {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"});
  if (!some) return false;
  std::string names;
  for (const Wanted* each : missing)
    names += (names.empty() ? "" : ", ") + std::string(*each->names.begin());
  log(LogLevel::kWarning, std::string(some->name) + " is set, but not " + names +
                              ": no launcher is at work, and it is ignored");
  return false;
}

int local_rank_or(int rank, const Variables& variable) {
  if (!was_launched(variable)) return rank;
  const auto launch = read_launch(variable);
  return launch ? launch->local_rank : rank;
}

Result<Launch> read_launch(const Variables& variable) {
  constexpr int kMostRanks = 1 << 20, kHighestPort = 65535;
  std::string missing;
  for (const Wanted* each : missing_of(variable))
    missing += (missing.empty() ? "" : "; ") + names_text(*each) +
               " is not set; accepted: " + std::string(each->meaning);
  if (!missing.empty()) return Status::error(Code::kInvalidArgument, missing);
  Launch launch;
  TENON_ASSIGN(launch.size, number(*first_of(variable, kSize.names), 1, kMostRanks, kSize.meaning));
  TENON_ASSIGN(launch.rank,
               number(*first_of(variable, kRank.names), 0, launch.size - 1, "this process's rank"));

  launch.local_rank = launch.rank;
  const auto local =
      first_of(variable, {"LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"});
  if (local) {
    TENON_ASSIGN(launch.local_rank,
                 number(*local, 0, launch.size - 1, "this process's rank on its host"));
  }

  launch.address = first_of(variable, kAddress.names)->value;
  TENON_ASSIGN(launch.port,
               number(*first_of(variable, kPort.names), 1, kHighestPort, kPort.meaning));
  // torchrun's agent keeps a server of its own on that port: take the next one.
  const auto agent = first_of(variable, {"TORCHELASTIC_USE_AGENT_STORE"});
  if (agent && agent->value == "True" && launch.port < kHighestPort) ++launch.port;

  const char* secret = variable("TENON_SECRET");
  launch.secret = secret != nullptr && *secret != 0 ? secret : job_id(variable);
  const char* listen_all = variable("TENON_LISTEN_ALL");
  launch.listen_all = listen_all != nullptr && listen_all == std::string_view("1");
  return launch;
}

}  // namespace tenon
