#include "apps/machine.h"

#include <dlfcn.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "apps/rank_threads.h"
#include "apps/version.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/transport/ccl_library.h"
#include "tenon/comm/transport/transport.h"
#include "tenon/core/env.h"
#include "tenon/device/runtime.h"
#include "tenon/ops/registry.h"

namespace tenon::apps {
namespace {

constexpr Target kTargets[] = {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) Target::k##enumerator,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
};

// Host targets have as many devices as there are ranks, all alike.
Result<int> num_devices(Target target) {
  TENON_TRY(nth_device(target, 0));
  if (is_host(target)) return 1;
  TENON_ASSIGN(Backend * held, backend(target));
  return held->num_devices();
}

std::vector<NamedText> look_at_build() {
  std::vector<NamedText> found;
  found.push_back({"version", kBuildInfo.version});
  found.push_back(
      {"commit", std::string(kBuildInfo.commit) + (kBuildInfo.modified ? ", modified" : "")});
  found.push_back({"build", kBuildInfo.build});
  found.push_back({"compiler", kBuildInfo.compiler});
#ifdef TENON_CUDA_VERSION
  found.push_back({"CUDA toolkit", TENON_CUDA_VERSION});
#endif
  found.push_back({"targets", kBuildInfo.targets});
  return found;
}

// What a vendor's library answers to a function that fills in its version, or nothing.
int version_of_library(const char* file, const char* function) {
  void* const handle = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) return 0;
  const auto ask = reinterpret_cast<int (*)(int*)>(dlsym(handle, function));
  int version = 0;
  if (ask == nullptr || ask(&version) != 0) version = 0;
  return version;  // the library stays: vendors' libraries do not like to be unloaded
}

// The first line of a small file of the kernel, or nothing.
std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// 2.28.3 of 22803.
std::string ccl_version(int version) {
  return std::to_string(version / 10'000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

void look_at_ccl(std::vector<NamedText>& found) {
  for (const Target target : {Target::kCuda, Target::kHip, Target::kCpu}) {
    // A library for host targets is one that somebody has named.
    if (is_host(target) ? env().ccl_library.empty() : !backend(target)) continue;
    const char* const label = target == Target::kHip ? "RCCL" : "NCCL";
    const auto library = transport_ccl::library_for(target);
    int version = 0;
    if (!library && is_host(target)) continue;
    if (!library)
      found.push_back({label, std::string(library.status().message())});
    else if ((*library)->version(&version) == 0)
      found.push_back({label, ccl_version(version) + " (" + (*library)->file + ")"});
  }
}

std::vector<NamedText> look_at_software() {
  std::vector<NamedText> found;
  utsname system{};
  if (uname(&system) == 0)
    found.push_back({"system", std::string(system.sysname) + " " + system.release});
  const std::string module = first_line("/proc/driver/nvidia/version");
  if (!module.empty()) found.push_back({"NVIDIA driver", module});
  if (const int version = version_of_library("libcuda.so.1", "cuDriverGetVersion"); version > 0)
    found.push_back({"CUDA driver API",
                     std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10)});
  const std::string amd = first_line("/sys/module/amdgpu/version");
  if (!amd.empty()) found.push_back({"AMD driver", amd});
  look_at_ccl(found);
  return found;
}

void look_at_cores(Machine& machine) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  machine.cores = sysconf(_SC_NPROCESSORS_ONLN);
  if (sched_getaffinity(0, sizeof mine, &mine) == 0) machine.own_cores = CPU_COUNT(&mine);
  machine.memory_bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// As the system reports them.
std::vector<MachineInstruction> look_at_instructions() {
  std::set<std::string> flags;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) flags.insert(word);
  }
  std::vector<MachineInstruction> found;
  for (const char* each : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"})
    found.push_back({each, flags.contains(each)});
  return found;
}

std::vector<MachineDevice> look_at_devices() {
  std::vector<MachineDevice> list;
  for (const Target target : kTargets) {
    const auto count = num_devices(target);
    if (!count) list.push_back({target, -1, {}, std::string(count.status().message())});
    for (int i = 0; count && i < *count; ++i) {
      const auto found = properties({target, i});
      if (found)
        list.push_back({target, i, found->name, {}, found->num_units, found->total_bytes});
      else
        list.push_back({target, i, {}, std::string(found.status().message())});
    }
  }
  return list;
}

// Asks a transport as rank 0 of two ranks of this machine would.
Status probe(const TransportEntry& line, Target target, bool in_processes) {
  std::vector<RankInfo> infos;
  for (int rank = 0; rank < 2; ++rank) {
    TENON_ASSIGN(const Device device, nth_device(target, rank));
    infos.push_back(own_card(device));
  }
  if (in_processes) {
    infos[1].process ^= 1;
    infos[1].pid = 0;  // of a process that is not there
  }
  const auto bootstraps = local_bootstrap(2);
  return line.probe({*bootstraps[0], infos[0].device, infos, env().deadline});
}

std::vector<MachineTransport> look_at_transports() {
  std::vector<MachineTransport> list;
  for (const TransportEntry& line : transport_lines())
    for (const Target target : kTargets) {
      if (!nth_device(target, 0)) continue;
      list.push_back({std::string(line.name), target,
                      std::string(probe(line, target, false).message()),
                      std::string(probe(line, target, true).message())});
    }
  return list;
}

std::vector<MachineOp> look_at_ops() {
  std::vector<MachineOp> list;
  for (const Op* op : all_ops())
    for (const Target target : kTargets) {
      MachineOp each{std::string(op->name), target, {}};
      for (const Variant& variant : variants(*op, target)) each.variants.emplace_back(variant.name);
      if (!each.variants.empty()) list.push_back(std::move(each));
    }
  return list;
}

}  // namespace

Machine look_at_machine() {
  Machine machine;
  machine.build = look_at_build();
  machine.software = look_at_software();
  look_at_cores(machine);
  machine.instructions = look_at_instructions();
  machine.devices = look_at_devices();
  machine.transports = look_at_transports();
  machine.ops = look_at_ops();
  return machine;
}

Result<std::vector<MachineLink>> measure_links() {
  std::vector<MachineLink> list;
  for (const Target target : kTargets) {
    const auto count = num_devices(target);
    if (is_host(target) || !count || *count < 2) continue;
    const int size = std::min(*count, kMaxRanks);
    using Links = std::vector<Link>;
    const auto bootstraps = local_bootstrap(size);
    const auto find_links = [&](int rank) -> Result<Links> {
      CommOptions options;
      options.bootstrap = bootstraps[static_cast<std::size_t>(rank)];
      TENON_ASSIGN(const auto comm, Communicator::create(options, {target, rank}));
      return Links(comm->links().begin(), comm->links().end());
    };
    TENON_ASSIGN(const std::vector<Links> found, on_rank_threads<Links>(size, find_links));
    for (int from = 0; from < size; ++from)
      for (int to = 0; to < size; ++to) {
        const Links& mine = found[static_cast<std::size_t>(from)];
        if (from == to || mine.empty()) continue;
        const Link link = mine[static_cast<std::size_t>(to)];
        list.push_back({target, from, to, link.latency_us, link.gbytes_per_s});
      }
  }
  return list;
}

}  // namespace tenon::apps
