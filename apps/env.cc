// tenon env: what this build and machine can do, and why not the rest. Starts nothing but, with
// --boundary, a team of threads that only makes its plans.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "apps/commands.h"
#include "apps/table.h"
#include "tenon/comm/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/env.h"
#include "tenon/layers/boundary.h"
#include "tenon/ops/registry.h"

namespace tenon::apps {
namespace {

struct Options {
  bool boundary = false;
  int hidden = 4096, max_rows = 8192, tp = 2;
};

constexpr Target kTargets[] = {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) Target::k##enumerator,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
};

void print_targets() {
  Table table({"target", "available", "device"});
  for (const Target target : kTargets) {
    const auto found = properties({target, 0});
    table.add({std::string(name(target)), found ? "yes" : "no",
               found ? found->name + ", " + std::to_string(found->num_units) + " units"
                     : std::string(found.status().message())});
  }
  std::fputs(("targets\n" + table.text() + "\n").c_str(), stdout);
}

void print_transports() {
  Table table({"transport", "in this build"});
#define TENON_TRANSPORT(transport) table.add({#transport, "yes"});
#include "tenon/comm/transports.def"
#undef TENON_TRANSPORT
  table.add({"ipc", "no: not written yet"});
  table.add({"ccl", "no: not written yet"});
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

// Every rank makes the boundary, since that is collective; rank 0's answer is everybody's.
Result<std::vector<BoundaryUse>> plan_boundary(const Options& options, int rank,
                                               std::shared_ptr<Bootstrap> bootstrap) {
  CommOptions comm_options;
  comm_options.rank = rank;
  comm_options.size = options.tp;
  comm_options.bootstrap = std::move(bootstrap);
  TENON_ASSIGN(auto comm, Communicator::create(comm_options, Device{Target::kCpu, 0}));
  BoundaryChannel::Spec channel_spec;
  channel_spec.hidden = options.hidden;
  channel_spec.max_rows = options.max_rows;
  TENON_ASSIGN(auto channel, BoundaryChannel::make(channel_spec, *comm));
  BoundarySpec spec;
  spec.site = "example";
  spec.hidden = options.hidden;
  spec.max_rows = options.max_rows;
  TENON_ASSIGN(const Boundary boundary, Boundary::make(spec, channel));
  return boundary.uses();
}

Status print_boundary(const Options& options) {
  if (options.tp < 1 || options.tp > kMaxRanks)
    return Status::error(Code::kInvalidArgument,
                         "env: --tp is " + std::to_string(options.tp) + "; accepted are 1 to 8");
  const auto bootstraps = local_bootstrap(options.tp);
  std::vector<Result<std::vector<BoundaryUse>>> found(
      bootstraps.size(), Status::error(Code::kInternal, "the rank did not run"));
  std::vector<std::thread> ranks;
  for (std::size_t rank = 0; rank < bootstraps.size(); ++rank)
    ranks.emplace_back([&, rank] {
      found[rank] = plan_boundary(options, static_cast<int>(rank), bootstraps[rank]);
    });
  for (std::thread& each : ranks) each.join();
  for (const auto& each : found) TENON_TRY(each);
  Table table({"rows up to", "stage", "variant", "why not a more fused one"});
  for (const BoundaryUse& use : *found[0])
    table.add({std::to_string(use.max_rows), std::string(name(use.stage)), use.variant,
               use.reason.empty() ? "it is the most fused" : use.reason});
  std::fputs(("\nboundary of " + std::to_string(options.hidden) + " wide rows, " +
              std::to_string(options.tp) + " ranks on cpu\n" + table.text())
                 .c_str(),
             stdout);
  return Status::ok();
}

}  // namespace

Command add_env(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("env", "what this build and machine can do, and why not");
  app->add_flag("--boundary", options->boundary, "explain every row bucket of a boundary");
  app->add_option("--hidden", options->hidden, "width of that boundary")->capture_default_str();
  app->add_option("--max-rows", options->max_rows, "its most rows")->capture_default_str();
  app->add_option("--tp", options->tp, "its ranks")->capture_default_str();
  return {app, [options] {
            print_targets();
            print_transports();
            print_ops();
            print_knobs();
            return options->boundary ? print_boundary(*options) : Status::ok();
          }};
}

}  // namespace tenon::apps
