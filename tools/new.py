#!/usr/bin/env python3
"""Scaffolds: ./x new op NAME makes the op's folder, its test and its line in ops.def."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

HEADER = """// NAME: the formula in two or three lines, shapes, who calls it.
//   out[i] = …
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/ops/registry.h"

namespace tenon::NAME {

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
  return choose(Op::NAME, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  return {.memory_bytes = static_cast<double>(args.in.bytes() + args.out.bytes())};
}

}  // namespace tenon::NAME
"""

TEST = """// NAME against the plainest oracle, on every built target and variant.
#include "tenon/ops/NAME/NAME.h"

#include <gtest/gtest.h>

TEST(NAME, MatchesOracle) { FAIL() << "write the oracle first"; }
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"made {path.relative_to(ROOT)}")


def new_op(name):
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        sys.exit(f'new op: "{name}" is not snake_case')
    folder = ROOT / "tenon/ops" / name
    if folder.exists():
        sys.exit(f"new op: {folder.relative_to(ROOT)} exists already")
    write(folder / f"{name}.h", HEADER.replace("NAME", name))
    write(folder / f"{name}.cc", SOURCE.replace("NAME", name))
    write(ROOT / f"tests/ops/{name}_test.cc", TEST.replace("NAME", name))
    with open(ROOT / "tenon/ops/ops.def", "a", encoding="utf-8") as ops:
        ops.write(f"TENON_OP({name})\n")
    print(f"added {name} to tenon/ops/ops.def; next: tenon/ops/{name}/{name}.cu (docs/add-an-op.md)")


def main():
    if len(sys.argv) != 3 or sys.argv[1] != "op":
        sys.exit("usage: ./x new op NAME")
    new_op(sys.argv[2])


if __name__ == "__main__":
    main()
