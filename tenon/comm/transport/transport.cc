// The list of transports and the choice of one that every rank accepts.
#include "tenon/comm/transport/transport.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <random>

#include "tenon/comm/messages.h"

namespace tenon {

#define TENON_TRANSPORT(name)                                                 \
  namespace transport_##name {                                                \
    Status probe(const TransportContext& context);                            \
    Result<std::unique_ptr<Transport>> open(const TransportContext& context); \
  }
#include "tenon/comm/transport/transports.def"
#undef TENON_TRANSPORT

std::span<const TransportEntry> transport_lines() {
  static constexpr TransportEntry kEntries[] = {
#define TENON_TRANSPORT(name) {#name, &transport_##name::probe, &transport_##name::open},
#include "tenon/comm/transport/transports.def"
#undef TENON_TRANSPORT
  };
  return kEntries;
}

namespace {

std::string known_names() {
  std::string names = "auto";
  for (const TransportEntry& line : transport_lines()) names += ", " + std::string(line.name);
  return names;
}

// Processes that share both of these see each other under /proc.
std::uint64_t host_identity() {
  std::string identity;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> identity;
  struct stat pids {};
  if (stat("/proc/self/ns/pid", &pids) == 0)
    for (const std::uint64_t part : {std::uint64_t{pids.st_dev}, std::uint64_t{pids.st_ino}})
      identity.append("/").append(std::to_string(part));
  return std::hash<std::string>{}(identity);
}

std::uint64_t random_word() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

}  // namespace

RankInfo own_card(Device device) {
  // Drawn once per process. A fork inherits it, hence the pid beside it.
  static const std::uint64_t process = random_word();
  RankInfo info;
  info.host = host_identity();
  info.pid = getpid();
  info.process = process ^ static_cast<std::uint64_t>(info.pid);
  info.device = device;
  if (const auto found = properties(device)) {
    info.max_blocks = found->max_cooperative_blocks;
    info.device_id = found->id;
  }
  return info;
}

bool share_device(const RankInfo& a, const RankInfo& b) {
  return a.host == b.host && a.device.target == b.device.target && a.device_id == b.device_id &&
         (!is_host(a.device.target) || a.device == b.device);
}

Result<ChosenTransport> choose_transport(const TransportContext& context, std::string_view wanted) {
  ChosenTransport chosen;
  bool known = wanted == "auto";
  for (const TransportEntry& line : transport_lines()) known = known || line.name == wanted;
  Status agreed = known ? Status::ok()
                        : Status::error(Code::kInvalidArgument,
                                        "transport \"" + std::string(wanted) +
                                            "\" is not known; accepted: " + known_names());
  TENON_TRY(agree(context.bootstrap, agreed, "transport name", context.deadline));

  for (const TransportEntry& line : transport_lines()) {
    if (wanted != "auto" && wanted != line.name) continue;
    const Status verdict = agree(context.bootstrap, line.probe(context),
                                 "transport " + std::string(line.name), context.deadline);
    if (verdict.code() == Code::kTimeout || verdict.code() == Code::kPeerLost) return verdict;
    if (!verdict) {
      chosen.refusals.push_back(std::string(line.name) + ": " + std::string(verdict.message()));
      continue;
    }
    auto opened = line.open(context);
    if (opened.status().code() == Code::kUnsupported) {
      chosen.refusals.push_back(std::string(line.name) + ": " +
                                std::string(opened.status().message()));
      continue;
    }
    TENON_ASSIGN(chosen.transport, std::move(opened), "transport " + std::string(line.name));
    chosen.name = line.name;
    return chosen;
  }
  std::string reasons;
  for (const std::string& refusal : chosen.refusals) reasons += "; " + refusal;
  return Status::error(Code::kUnsupported, "no transport that all ranks accept" + reasons);
}

}  // namespace tenon
