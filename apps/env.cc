// tenon env: what this build and machine can do, and why not the rest. Starts nothing but teams of
// threads: with --boundary one that only makes its plans, with --links one on all devices that
// measures what lies between them.
#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>

#include "apps/commands.h"
#include "apps/explain.h"
#include "apps/options.h"
#include "apps/rank_threads.h"
#include "apps/table.h"
#include "tenon/comm/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/transport.h"
#include "tenon/core/env.h"
#include "tenon/gpu/runtime.h"
#include "tenon/ops/registry.h"

namespace tenon::apps {
namespace {

constexpr Target kTargets[] = {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) Target::k##enumerator,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
};

std::string yes_or_why(const Status& status) {
  return status ? "yes" : std::string(status.message());
}

std::string gigabytes(double bytes) { return fixed(bytes / 1e9, 1) + " GB"; }

void print_machine() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  const bool known = sched_getaffinity(0, sizeof mine, &mine) == 0;
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  std::printf("machine: %ld cores, %s of them for this process, %s of memory\n",
              sysconf(_SC_NPROCESSORS_ONLN), known ? std::to_string(CPU_COUNT(&mine)).c_str() : "?",
              gigabytes(bytes).c_str());
}

// What the cpu target's kernels choose their variants by, as the system reports it.
void print_instructions() {
  std::set<std::string> found;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; found.empty() && std::getline(file, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) found.insert(word);
  }
  Table table({"instructions", "here"});
  for (const char* each : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"})
    table.add({each, found.contains(each) ? "yes" : "no"});
  std::fputs(("\n" + table.text() + "\n").c_str(), stdout);
}

// Host targets have as many devices as there are ranks, all alike.
Result<int> num_devices(Target target) {
  TENON_TRY(nth_device(target, 0));
  if (is_host(target)) return 1;
  TENON_ASSIGN(Backend * held, backend(target));
  return held->num_devices();
}

void print_devices() {
  Table table({"target", "device", "units", "memory", "why not"});
  for (const Target target : kTargets) {
    const std::string of_target(name(target));
    const auto count = num_devices(target);
    if (!count) table.add({of_target, "none", "", "", std::string(count.status().message())});
    for (int i = 0; count && i < *count; ++i) {
      const auto found = properties({target, i});
      if (found)
        table.add({of_target, std::to_string(i) + ": " + found->name,
                   std::to_string(found->num_units),
                   gigabytes(static_cast<double>(found->total_bytes)), ""});
      else
        table.add({of_target, std::to_string(i), "", "", std::string(found.status().message())});
    }
  }
  std::fputs((table.text() + "\n").c_str(), stdout);
}

// Asks a transport as rank 0 of two ranks of this machine would.
Status probe(const TransportLine& line, Target target, bool in_processes) {
  std::vector<RankCard> cards;
  for (int rank = 0; rank < 2; ++rank) {
    TENON_ASSIGN(const Device device, nth_device(target, rank));
    cards.push_back(own_card(device));
  }
  if (in_processes) {
    cards[1].process ^= 1;
    cards[1].pid = 0;  // nobody's
  }
  const auto bootstraps = local_bootstrap(2);
  return line.probe({*bootstraps[0], cards[0].device, cards, env().deadline});
}

void print_transports() {
  Table table({"transport", "target", "two ranks as threads", "two ranks as processes"});
  for (const TransportLine& line : transport_lines())
    for (const Target target : kTargets)
      if (nth_device(target, 0))
        table.add({std::string(line.name), std::string(name(target)),
                   yes_or_why(probe(line, target, false)), yes_or_why(probe(line, target, true))});
  std::fputs((table.text() + "\n").c_str(), stdout);
}

void print_ops() {
  Table table({"op", "target", "variants in order of preference"});
  for (int op = 0; op < kNumOps; ++op)
    for (const Target target : kTargets) {
      const VariantTable* found = variants(static_cast<Op>(op), target);
      if (found == nullptr) continue;
      std::string list;
      for (const Variant& each : found->variants)
        list += (list.empty() ? "" : ", ") + std::string(each.name);
      table.add({std::string(name(static_cast<Op>(op))), std::string(name(target)), list});
    }
  std::fputs((table.text() + "\n").c_str(), stdout);
}

void print_knobs() {
  Table table({"variable", "value", "meaning"});
  for (const Knob& knob : knobs())
    table.add({std::string(knob.name), knob.value.empty() ? "(none)" : knob.value,
               std::string(knob.text)});
  std::fputs(table.text().c_str(), stdout);
}

// What one rank on each device of a target finds between them.
Status print_links(Target target) {
  TENON_ASSIGN(const int devices, num_devices(target));
  const int size = std::min(devices, kMaxRanks);
  using Links = std::vector<Link>;
  const auto bootstraps = local_bootstrap(size);
  const auto find_links = [&](int rank) -> Result<Links> {
    CommOptions options;
    options.bootstrap = bootstraps[static_cast<std::size_t>(rank)];
    TENON_ASSIGN(const auto comm, Communicator::create(options, {target, rank}));
    return Links(comm->links().begin(), comm->links().end());
  };
  TENON_ASSIGN(const std::vector<Links> found, on_rank_threads<Links>(size, find_links));
  Table table({"from", "to", "latency", "pushes"});
  for (int from = 0; from < size; ++from)
    for (int to = 0; to < size; ++to) {
      if (from == to || found[static_cast<std::size_t>(from)].empty()) continue;
      const Link link = found[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)];
      table.add({std::to_string(from), std::to_string(to), fixed(link.latency_us, 2) + " us",
                 fixed(link.gbytes_per_s, 0) + " GB/s"});
    }
  std::fputs(("\nlinks between " + std::to_string(size) + " " + std::string(name(target)) +
              " devices, both ways at once\n" + table.text())
                 .c_str(),
             stdout);
  return Status::ok();
}

Status print_links() {
  bool any = false;
  for (const Target target : kTargets) {
    const auto count = num_devices(target);
    if (is_host(target) || !count || *count < 2) continue;
    any = true;
    TENON_TRY(print_links(target));
  }
  if (!any) std::fputs("\nno links: fewer than two devices of one target\n", stdout);
  return Status::ok();
}

}  // namespace

Command add_env(CLI::App& parent) {
  auto question = std::make_shared<BoundaryQuestion>();
  auto device = std::make_shared<std::string>("cpu");
  auto wanted = std::make_shared<bool>(false);
  auto links = std::make_shared<bool>(false);
  CLI::App* app = parent.add_subcommand("env", "what this build and machine can do, and why not");
  app->add_flag("--boundary", *wanted, "explain every row bucket of a boundary");
  app->add_flag("--links", *links, "measure what lies between the devices");
  app->add_option("--hidden", question->hidden, "width of that boundary")
      ->capture_default_str()
      ->check(whole_number(1, 16384));
  app->add_option("--max-rows", question->max_rows, "its most rows")
      ->capture_default_str()
      ->check(whole_number(1, 8192));
  app->add_option("--tp", question->tp, "its ranks")->capture_default_str();
  app->add_option("--device", *device, "its target")->capture_default_str();
  return {app, [question, device, wanted, links] {
            const auto target = target_named(*device);
            if (!target)
              return Status::error(Code::kInvalidArgument,
                                   "env: --device is \"" + *device +
                                       "\"; accepted are cuda, hip, cpu, emu32 and emu64");
            question->target = *target;
            print_machine();
            print_instructions();
            print_devices();
            print_transports();
            print_ops();
            print_knobs();
            if (*links) TENON_TRY(print_links());
            return *wanted ? explain(*question) : Status::ok();
          }};
}

}  // namespace tenon::apps
