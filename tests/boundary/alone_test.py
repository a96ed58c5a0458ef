#!/usr/bin/env python3
"""A program that uses the boundary links no op but the boundary's own: alone_test.py PROGRAM NM."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OWN = {"fused_allreduce_rmsnorm_quant", "rmsnorm"}


def main(program, nm):
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    print(ran.stdout, ran.stderr, sep="", end="")
    if ran.returncode != 0 or ran.stdout != "ran\nran\n":
        return 1
    symbols = subprocess.run([nm, "-C", program], capture_output=True, text=True, check=True).stdout
    lines = (ROOT / "tenon/core/ops.def").read_text(encoding="utf-8")
    ops = set(re.findall(r"^TENON_OP\((\w+), ops/", lines, re.M))
    linked = {op for op in ops if re.search(rf"\btenon::(?:\w+::)?{op}::", symbols)}
    for op in sorted(linked - OWN):
        print(f"the program links the op {op}")
    for op in sorted(OWN - linked):
        print(f"the program does not link {op}, so this test looks at nothing")
    for folder in ("layers", "models", "runtime", "jinja"):
        if re.search(rf"\btenon::{folder}::", symbols):
            print(f"the program links tenon::{folder}")
            return 1
    return 0 if linked == OWN else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
