// tenon bench: the command line of the benchmarks.
#include <CLI/CLI.hpp>

#include "apps/bench/boundary.h"
#include "apps/bench/engine_bench.h"
#include "apps/bench/shapes.h"
#include "apps/bench/tables.h"
#include "apps/commands.h"
#include "apps/options.h"

namespace tenon::apps {
namespace {

// The command line's words, before they mean anything.
struct Words {
  std::string rows, hidden, device = "cpu", dtype = "bf16", mode = "auto", l2 = "warm",
                            inputs = "normal";
  bool around = false;
};

void add_shapes(CLI::App& app, BoundaryBench& options, Words& words) {
  app.add_option(
      "--rows", words.rows,
      "1 to 8192, as 1,3,16..512: a range is both its ends and the powers of two between; "
      "by default 1..128 on hosts, 1..512 on devices, 64..8192 there with --mode eager");
  app.add_flag("--around", words.around, "also the numbers of rows beside each power of two");
  app.add_option("--hidden", words.hidden,
                 "widths, multiples of 128, likewise; by default 4096 on hosts, seven from 1024 "
                 "to 8192 on devices");
  app.add_option("--tp", options.tp, "ranks")
      ->capture_default_str()
      ->check(whole_number(1, kMaxRanks));
  app.add_option("--target,--device", words.device, "target of tenon env")->capture_default_str();
  app.add_option("--dtype", words.dtype, "bf16 or f16")->capture_default_str();
}

void add_method(CLI::App& app, BoundaryBench& options, Words& words) {
  app.add_option("--mode", words.mode, "graph, eager, or auto: graph on devices up to 512 rows")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "graph", "eager"}));
  app.add_option("--l2", words.l2, "warm, cold or both: what a call finds in the L2 cache")
      ->capture_default_str()
      ->check(CLI::IsMember({"warm", "cold", "both"}));
  app.add_option("--inputs", words.inputs,
                 "what is timed: normal numbers, these with outliers, or numbers that cancel")
      ->capture_default_str()
      ->check(CLI::IsMember(
          std::vector<std::string>(std::begin(kInputsNames), std::end(kInputsNames))));
  add_list_option(
      app, "--arms", options.arms,
      "some of vendor,three-kernels,two-kernels-fp8,two-kernels,one-kernel-fp8,one-kernel (see "
      "below); all by default",
      not_empty("a list of arms"));
  app.add_option("--variant", options.variant,
                 "of the one-kernel arms: one_shot, one_shot_packed, one_shot_split, two_shot or "
                 "two_shot_packed");
  app.add_flag("--spread-residual", options.spread_residual,
               "every rank gets the whole residual, not only the rows that it owns");
  app.add_option("--iterations", options.iterations, "calls of a repeat; 64 on devices, else 30")
      ->check(whole_number(1, kMaxCount));
  app.add_option("--repeats", options.repeats, "25 on devices, else 5")
      ->check(whole_number(1, kMaxCount));
  app.add_option("--warm-up", options.warm_up, "calls before each repeat; 2 on devices, else 10")
      ->check(whole_number(0, kMaxCount));
  app.add_option("--link-gbs", options.link_gbs, "one rank's links, one way; measured by default")
      ->check(number(0, kUnbounded, true));
  app.add_option("--memory-gbs", options.memory_gbs, "one rank's memory; measured by default")
      ->check(number(0, kUnbounded, true));
}

void add_outputs(CLI::App& app, BoundaryBench& options) {
  add_report_options(app, options, "Options");
  app.add_flag("--wide", options.wide, "every column of the table, in lines of any length");
  add_file_option(
      app, "--check", options.baseline_path,
      "end with 1 where a ratio is worse than in this JSON, or in this folder's for the device");
  app.add_option("--tolerance", options.tolerance_percent, "of --check, in per cent")
      ->capture_default_str()
      ->check(number(0, kUnbounded));
  app.add_flag("--sweep-variants", options.sweep_variants,
               "time every choice of kernels instead of the arms");
  add_file_option(app, "--tune", options.tune_path,
                  "sweep, and write the best choices into this file of tables");
}

Status read(const Words& words, BoundaryBench& options) {
  const auto refuse = [](const std::string& option, const std::string& found,
                         const std::string& accepted) {
    return Status::error(Code::kInvalidArgument,
                         "bench: " + option + " is \"" + found + "\"; accepted are " + accepted);
  };
  const auto target = target_named(words.device);
  if (!target) return refuse("--target", words.device, "cuda, hip, cpu, emu32 and emu64");
  options.target = *target;
  const auto type = dtype_named(words.dtype);
  if (!type || (*type != DType::kBF16 && *type != DType::kF16))
    return refuse("--dtype", words.dtype, "bf16 and f16");
  options.dtype = *type;
  if (!words.rows.empty()) {
    TENON_ASSIGN(options.rows, parse_numbers("--rows", words.rows, words.around));
  }
  if (!words.hidden.empty()) {
    TENON_ASSIGN(options.hidden, parse_numbers("--hidden", words.hidden));
  }
  options.around = words.around;
  options.mode = words.mode == "graph"   ? Mode::kGraph
                 : words.mode == "eager" ? Mode::kEager
                                         : Mode::kAuto;
  for (const Inputs each : {Inputs::kNormal, Inputs::kOutliers, Inputs::kCancelling})
    if (words.inputs == name(each)) options.inputs = each;
  options.warm = words.l2 != "cold";
  options.cold = words.l2 != "warm";
  return Status::ok();
}

Command add_bench_boundary(CLI::App& bench) {
  auto options = std::make_shared<BoundaryBench>();
  auto words = std::make_shared<Words>();
  CLI::App* app = bench.add_subcommand("boundary", "three kernels, two, one, one with bf16 out");
  add_shapes(*app, *options, *words);
  add_method(*app, *options, *words);
  add_outputs(*app, *options);
  app->footer("\n" + key_text() +
              "\nCtrl-C ends the run: what was measured until then is printed and written.");
  const auto exit_code = std::make_shared<int>(0);
  return {app,
          [options, words, exit_code] {
            TENON_TRY(read(*words, *options));
            return run(*options, exit_code.get());
          },
          exit_code};
}

}  // namespace

Command add_bench(CLI::App& parent) {
  CLI::App* bench = parent.add_subcommand(
      "bench", "time a part, checked against its oracle, an engine, or a server");
  bench->require_subcommand(1);
  auto parts = std::make_shared<std::vector<Command>>();
  parts->push_back(add_bench_boundary(*bench));
  parts->push_back(add_bench_decode(*bench));
  parts->push_back(add_bench_prefill(*bench));
  parts->push_back(add_bench_ops(*bench));
  parts->push_back(add_bench_serve(*bench));
  auto exit_code = std::make_shared<int>(0);
  return {bench,
          [parts, exit_code] {
            for (const Command& each : *parts) {
              if (!each.app->parsed()) continue;
              TENON_TRY(each.run());
              if (each.exit_code != nullptr) *exit_code = *each.exit_code;
            }
            return Status::ok();
          },
          exit_code};
}

}  // namespace tenon::apps
