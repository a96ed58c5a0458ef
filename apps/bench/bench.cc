// tenon bench: the command line of the benchmarks.
#include <CLI/CLI.hpp>

#include "apps/bench/boundary.h"
#include "apps/commands.h"
#include "apps/options.h"

namespace tenon::apps {

Command add_bench(CLI::App& parent) {
  auto options = std::make_shared<BoundaryBench>();
  auto device = std::make_shared<std::string>("cpu");
  auto dtype = std::make_shared<std::string>("bf16");
  CLI::App* bench = parent.add_subcommand("bench", "time a part, checked against its oracle");
  bench->require_subcommand(1);
  CLI::App* app = bench->add_subcommand("boundary", "three kernels, two, one, one with bf16 out");
  app->add_option("--rows", options->rows, "rows, 1 to 8192")->delimiter(',');
  app->add_option("--hidden", options->hidden, "widths, multiples of 128")->delimiter(',');
  app->add_option("--tp", options->tp, "ranks, 1 to 8")->capture_default_str();
  app->add_option("--device", *device, "target of tenon env")->capture_default_str();
  app->add_option("--dtype", *dtype, "bf16 or f16")->capture_default_str();
  app->add_option("--variant", options->variant, "of the fused arms: one_shot, two_shot");
  app->add_option("--iterations", options->iterations)
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount));
  app->add_option("--repeats", options->repeats)
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount));
  app->add_option("--warm-up", options->warm_up)
      ->capture_default_str()
      ->check(whole_number(0, kMaxCount));
  app->add_option("--csv", options->csv_path, "also write the table as CSV");
  app->add_option("--json-file", options->json_path, "also write the results as JSON");
  app->add_flag("--json", options->json_to_stdout, "print one JSON object and nothing else");
  return {bench, [options, device, dtype] {
            const auto target = target_named(*device);
            if (!target)
              return Status::error(Code::kInvalidArgument,
                                   "bench: --device is \"" + *device +
                                       "\"; accepted are cuda, hip, cpu, emu32 and emu64");
            options->target = *target;
            const auto type = dtype_named(*dtype);
            if (!type || (*type != DType::kBF16 && *type != DType::kF16))
              return Status::error(Code::kInvalidArgument, "bench: --dtype is \"" + *dtype +
                                                               "\"; accepted are bf16 and f16");
            options->dtype = *type;
            return run(*options);
          }};
}

}  // namespace tenon::apps
