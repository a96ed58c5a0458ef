#!/usr/bin/env python3
"""Scaffolds: ./x new op NAME makes the op's folder, its test and its line in core/ops.def."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

HEADER = """// NAME: the formula in two or three lines, shapes, who calls it.
//   out[i] = …
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::NAME {

extern const Op kOp;

struct Args {
  TensorView in;   // [rows, width] bf16
  TensorView out;  // [rows, width] bf16
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::NAME
"""

SOURCE = """// What NAME accepts and costs; its kernels are in NAME.cu.
#include "tenon/ops/NAME/NAME.h"

namespace tenon::NAME {

Status check(const Args& args) {
  Dims dims;
  TENON_TRY(match("NAME: in", args.in, {DType::kBF16}, {"rows", "width"}, dims));
  TENON_TRY(match("NAME: out", args.out, {DType::kBF16}, {"rows", "width"}, dims));
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  return {.memory_bytes = static_cast<double>(args.in.bytes() + args.out.bytes())};
}

}  // namespace tenon::NAME

#define TENON_OP_NAME NAME
#define TENON_OP_VARIANTS "tenon/ops/NAME/built_variants.def"
#include "tenon/device/op_table.inc"
"""

KERNELS = """// The kernels of NAME, and how its variants launch them.
#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/NAME/NAME.h"

namespace tenon::TENON_TARGET::NAME {
namespace {

using Args = tenon::NAME::Args;

struct KernelArgs {
  const bf16* in;
  bf16* out;
  std::int64_t in_stride, out_stride;  // elements
  int rows, width;
};

// One block per row. The plan may have been made for more rows than the call has.
TENON_KERNEL rows_kernel(KernelArgs args) {
  for (int row = block_id(); row < args.rows; row += grid_blocks())
    for (int i = thread_id(); i < args.width; i += block_threads())
      args.out[row * args.out_stride + i] = args.in[row * args.in_stride + i];
}

// Yes with what will be launched, or a sentence that says why not.
Status supports(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.out.shape[0]);
  shape.threads = kWave == 1 ? 1 : 128;
  recipe->launch("rows_kernel", shape);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const KernelArgs to{args.in.as<const bf16>(),
                      args.out.as<bf16>(),
                      args.in.stride[0],
                      args.out.stride[0],
                      static_cast<int>(args.out.shape[0]),
                      static_cast<int>(args.out.shape[1])};
  return tenon::launch(stream, recipe.launches.front().shape, rows_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::NAME
"""

VARIANTS = """// What the lines mean: docs/add-an-op.md.
TENON_VARIANT(rows, all, NAME.cu, , reference)
"""

TEST = """// NAME against a reading of its header in doubles, on every built target and variant.
#include "tenon/ops/NAME/NAME.h"

#include <gtest/gtest.h>

#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/op_suite.h"

namespace tenon::NAME {
namespace {

using test::DeviceFixture;
using test::Way;

struct Problem {
  int rows = 3, width = 40;
  std::vector<bf16> in;  // [rows, width]
};

Problem make_problem(int rows, int width) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Problem problem{rows, width, {}};
  for (int i = 0; i < rows * width; ++i) problem.in.push_back(to_bf16(normal(random)));
  return problem;
}

Args put(DeviceFixture& fixture, const Problem& problem) {
  Args args;
  args.in = fixture.put(problem.in, DType::kBF16, {problem.rows, problem.width});
  args.out = fixture.blank(DType::kBF16, {problem.rows, problem.width});
  return args;
}

std::vector<bf16> run_way(const Problem& problem, const Way& way) {
  DeviceFixture fixture(way.target);
  const Args args = put(fixture, problem);
  test::run_forced(fixture, args, way.variant);
  return fixture.get<bf16>(args.out);
}

// The formula of NAME.h, in doubles.
double oracle(double in) { return in; }

void expect_oracle(const Problem& problem, const std::vector<bf16>& out) {
  ASSERT_EQ(out.size(), problem.in.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    ASSERT_EQ(to_float(out[i]), oracle(to_float(problem.in[i]))) << "element " << i;
}

TEST(SUITE, MatchesTheOracle) {
  test::for_each_way(kOp, [](const Way& way) {
    for (const int rows : {0, 1, 3})
      for (const int width : {1, 40, 300}) {
        const Problem problem = make_problem(rows, width);
        expect_oracle(problem, run_way(problem, way));
      }
  });
}

TEST(SUITE, ARowDoesNotDependOnTheOthers) {
  const Problem all = make_problem(7, 40);
  test::for_each_way(kOp, [&](const Way& way) {
    test::expect_rows_alone_equal_together(all.rows, [&](const std::vector<int>& rows) {
      Problem some{static_cast<int>(rows.size()), all.width, {}};
      for (const int row : rows)
        some.in.insert(some.in.end(), all.in.begin() + row * all.width,
                       all.in.begin() + (row + 1) * all.width);
      std::vector<test::RowBytes> found(rows.size());
      test::append_rows(found, run_way(some, way));
      return found;
    });
  });
}

TEST(SUITE, PlanServesFewerRows) {
  const Problem many = make_problem(9, 40), few = make_problem(2, 40);
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const Plan made = test::plan_forced(fixture, put(fixture, many), way.variant);
    const Args args = put(fixture, few);
    test::run_plan(fixture, made, args);
    expect_oracle(few, fixture.get<bf16>(args.out));
  });
}

TEST(SUITE, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  test::expect_refusals(kOp, put(fixture, make_problem(3, 40)),
                        {{[](Args& a) { a.in.dtype = DType::kF16; }, "must be of type bf16"},
                         {[](Args& a) { a.out.shape[0] = 2; }, "out is bf16 [2, 40]"}});
}

}  // namespace
}  // namespace tenon::NAME
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"made {path.relative_to(ROOT)}")


def named(template, name):
    return re.sub(r"\bNAME\b", name, template).replace("SUITE", name.title().replace("_", ""))


def new_op(name):
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        sys.exit(f'new op: "{name}" is not snake_case')
    folder = ROOT / "tenon/ops" / name
    if folder.exists():
        sys.exit(f"new op: {folder.relative_to(ROOT)} exists already")
    write(folder / f"{name}.h", named(HEADER, name))
    write(folder / f"{name}.cc", named(SOURCE, name))
    write(folder / f"{name}.cu", named(KERNELS, name))
    write(folder / "variants.def", named(VARIANTS, name))
    write(ROOT / f"tests/ops/{name}_test.cc", named(TEST, name))
    with open(ROOT / "tenon/core/ops.def", "a", encoding="utf-8") as ops:
        ops.write(f"TENON_OP({name}, ops/{name})\n")
    print(f"added {name} to tenon/core/ops.def; next: tenon/ops/{name}/{name}.cu (docs/add-an-op.md)")


def main():
    if len(sys.argv) != 3 or sys.argv[1] != "op":
        sys.exit("usage: ./x new op NAME")
    new_op(sys.argv[2])


if __name__ == "__main__":
    main()
