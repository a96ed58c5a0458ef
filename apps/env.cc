// tenon env: what this build and machine can do, and why not the rest. Starts nothing but teams of
// threads: with --boundary one that only makes its plans, with --links one on all devices that
// measures what lies between them. --ops makes plans of single ops and starts nothing.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/explain.h"
#include "apps/machine.h"
#include "apps/op_plans.h"
#include "apps/options.h"
#include "apps/table.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/env.h"

namespace tenon::apps {
namespace {

using Json = nlohmann::json;

std::string gigabytes(double bytes) { return fixed(bytes / 1e9, 1) + " GB"; }

void print(const Table& table) { std::fputs((table.text() + "\n").c_str(), stdout); }

void print(const std::vector<NamedText>& list) {
  for (const NamedText& each : list) std::printf("%s: %s\n", each.name.c_str(), each.text.c_str());
}

void print(const Machine& machine) {
  print(machine.build);
  print(machine.software);
  std::printf("machine: %ld cores, %s of them for this process, %s of memory\n\n", machine.cores,
              machine.own_cores > 0 ? std::to_string(machine.own_cores).c_str() : "?",
              gigabytes(machine.memory_bytes).c_str());
  Table instructions({"instructions", "here"});
  for (const MachineInstruction& each : machine.instructions)
    instructions.add({each.name, each.here ? "yes" : "no"});
  print(instructions);
  Table devices({"target", "device", "units", "memory", "why not"});
  for (const MachineDevice& each : machine.devices) {
    const std::string number = std::to_string(each.index);
    if (each.why_not.empty())
      devices.add({std::string(name(each.target)), number + ": " + each.name,
                   std::to_string(each.units), gigabytes(static_cast<double>(each.memory_bytes)),
                   ""});
    else
      devices.add(
          {std::string(name(each.target)), each.index < 0 ? "none" : number, "", "", each.why_not});
  }
  print(devices);
  Table transports({"transport", "target", "two ranks as threads", "two ranks as processes"});
  const auto yes_or = [](const std::string& why_not) { return why_not.empty() ? "yes" : why_not; };
  for (const MachineTransport& each : machine.transports)
    transports.add({each.name, std::string(name(each.target)), yes_or(each.why_not_threads),
                    yes_or(each.why_not_processes)});
  print(transports);
  Table ops({"op", "target", "variants in order of preference"});
  for (const MachineOp& each : machine.ops) {
    std::string list;
    for (const std::string& variant : each.variants) list += (list.empty() ? "" : ", ") + variant;
    ops.add({each.name, std::string(name(each.target)), list});
  }
  print(ops);
  Table variables({"variable", "value", "meaning"});
  for (const Knob& knob : knobs())
    variables.add({std::string(knob.name), knob.value.empty() ? "(none)" : knob.value,
                   std::string(knob.text)});
  std::fputs(variables.text().c_str(), stdout);
}

void print(const std::vector<MachineLink>& links) {
  if (links.empty())
    return static_cast<void>(
        std::fputs("\nno links: fewer than two devices of one target\n", stdout));
  Table table({"target", "from", "to", "latency", "pushes"});
  for (const MachineLink& each : links)
    table.add({std::string(name(each.target)), std::to_string(each.from), std::to_string(each.to),
               fixed(each.latency_us, 2) + " us", fixed(each.gbytes_per_s, 0) + " GB/s"});
  std::fputs(("\nlinks between devices, both ways at once\n" + table.text()).c_str(), stdout);
}

// A reason, or null where there is none.
Json null_or(const std::string& text) { return text.empty() ? Json() : Json(text); }

Json json_of(const std::vector<NamedText>& list) {
  Json object = Json::object();
  for (const NamedText& each : list) object[each.name] = each.text;
  return object;
}

Json json_of(const Machine& machine) {
  Json instructions = Json::object(), devices = Json::array(), transports = devices, ops = devices,
       variables = devices;
  for (const MachineInstruction& each : machine.instructions) instructions[each.name] = each.here;
  for (const MachineDevice& each : machine.devices) {
    Json device{{"target", name(each.target)}, {"why_not", null_or(each.why_not)}};
    if (each.index >= 0) device["index"] = each.index;
    if (each.why_not.empty())
      device.update(
          {{"name", each.name}, {"units", each.units}, {"memory_bytes", each.memory_bytes}});
    devices.push_back(std::move(device));
  }
  for (const MachineTransport& each : machine.transports)
    transports.push_back({{"transport", each.name},
                          {"target", name(each.target)},
                          {"threads", each.why_not_threads.empty()},
                          {"why_not_threads", null_or(each.why_not_threads)},
                          {"processes", each.why_not_processes.empty()},
                          {"why_not_processes", null_or(each.why_not_processes)}});
  for (const MachineOp& each : machine.ops)
    ops.push_back({{"op", each.name}, {"target", name(each.target)}, {"variants", each.variants}});
  for (const Knob& knob : knobs())
    variables.push_back(
        {{"variable", knob.name}, {"value", null_or(knob.value)}, {"meaning", knob.text}});
  return {{"build", json_of(machine.build)},
          {"software", json_of(machine.software)},
          {"cores", machine.cores},
          {"own_cores", machine.own_cores},
          {"memory_bytes", machine.memory_bytes},
          {"instructions", instructions},
          {"devices", devices},
          {"transports", transports},
          {"ops", ops},
          {"variables", variables}};
}

Json json_of(const std::vector<MachineLink>& links) {
  Json list = Json::array();
  for (const MachineLink& each : links)
    list.push_back({{"target", name(each.target)},
                    {"from", each.from},
                    {"to", each.to},
                    {"latency_us", each.latency_us},
                    {"gbytes_per_s", each.gbytes_per_s}});
  return list;
}

struct Options {
  BoundaryQuestion question;
  std::string device = "cpu";
  bool boundary = false, links = false, ops = false, json = false;
};

Status run(Options& options) {
  options.question.target = *target_named(options.device);
  const Machine machine = look_at_machine();
  // Where there is no JSON to keep whole, what is known is printed before anything can fail.
  if (!options.json) print(machine);
  Json all;
  if (options.json) all = json_of(machine);
  if (options.links) {
    TENON_ASSIGN(const auto links, measure_links());
    if (options.json)
      all["links"] = json_of(links);
    else
      print(links);
  }
  if (options.boundary) {
    TENON_ASSIGN(const Explanation found, explain(options.question));
    if (options.json)
      all["boundary"] = json_of(options.question, found);
    else
      std::fputs(text_of(options.question, found).c_str(), stdout);
  }
  if (options.ops) {
    const BoundaryQuestion& question = options.question;
    TENON_ASSIGN(const auto plans,
                 plan_ops({question.target, question.hidden, question.max_rows, question.tp}));
    if (options.json)
      all["plans"] = json_of(plans);
    else
      std::printf("\nplans on %s for rows of %d, %d ranks\n%s", options.device.c_str(),
                  question.hidden, question.tp, text_of(plans).c_str());
  }
  if (options.json)
    std::printf("%s\n", all.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  return Status::ok();
}

}  // namespace

Command add_env(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  BoundaryQuestion& question = options->question;
  CLI::App* app = parent.add_subcommand("env", "what this build and machine can do, and why not");
  app->add_flag("--boundary", options->boundary, "explain every row bucket of a boundary");
  app->add_flag("--ops", options->ops,
                "the plan of every op: what is launched, and why nothing else");
  app->add_flag("--links", options->links, "measure what lies between the devices");
  app->add_flag("--json", options->json, "print one JSON object and nothing else");
  app->add_option("--hidden", question.hidden, "width of rows, for --boundary and --ops")
      ->capture_default_str()
      ->check(whole_number(1, 16384));
  app->add_option("--max-rows", question.max_rows, "most rows")
      ->capture_default_str()
      ->check(whole_number(1, 8192));
  app->add_option("--tp", question.tp, "ranks")
      ->capture_default_str()
      ->check(whole_number(1, kMaxRanks));
  app->add_option("--target,--device", options->device, "target")
      ->capture_default_str()
      ->check(CLI::IsMember(target_names()));
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
