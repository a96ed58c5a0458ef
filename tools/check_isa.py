#!/usr/bin/env python3
"""Reads the assembly of HIP kernels (gfx942, gfx950) and checks what can be known without the device.

Every kernel: no dynamic stack, shared memory and registers within the device's limits. Kernels on the
boundary's path: little or no scratch memory. Kernels that talk to other ranks: the accesses that peers
watch really carry system scope.

usage: check_isa.py FILE.s ...
"""

import re
import sys

MAX_SHARED_BYTES = 64 * 1024  # of a block, on gfx942
MAX_VGPRS = 512  # of a lane, accumulation registers included

# Bytes of scratch a lane may use in the kernels that every decode step passes through. The fused ones
# spill scalar registers (the team's addresses) into a few words; the others spill nothing.
MAX_SCRATCH_BYTES = {
    "fused_allreduce_rmsnorm_quant": 128,
    "rmsnorm": 0,
    "fp8_quant": 0,
    "collectives": 0,
}
# Instances for blocks too small for their row keep up to 32 vectors in scratch by design.
ARRAY_INSTANCE = re.compile(r"ELi32E")
ARRAY_SCRATCH_BYTES = 1024
MAX_SPILLED_VGPRS = 8

# What must appear in a file's code, as (what it shows, pattern). System scope is "sc0 sc1".
SYSTEM_SCOPE = (
    ("data that is its own flag is stored past every cache", r"global_store_dwordx2 .* sc0 sc1"),
    ("data that is its own flag is polled past every cache", r"global_load_dwordx2 .* sc0 sc1"),
    ("an acquire drops what caches hold", r"buffer_inv sc0 sc1"),
    ("a release writes caches back", r"buffer_wbl2 sc0 sc1"),
)
MUST_CONTAIN = {
    "fused_allreduce_rmsnorm_quant": SYSTEM_SCOPE,
    "collectives": SYSTEM_SCOPE,
}


def kernels(text):
    """The metadata of each kernel, as the assembler directives' YAML spells it."""
    metadata = text.partition(".amdgpu_metadata")[2].partition(".end_amdgpu_metadata")[0]
    for block in re.split(r"\n  - ", metadata)[1:]:
        found = {}
        for key in (
            "name",
            "private_segment_fixed_size",
            "group_segment_fixed_size",
            "vgpr_count",
            "vgpr_spill_count",
            "uses_dynamic_stack",
        ):
            match = re.search(rf"\n    \.{key}:\s+(\S+)", block)
            if match:
                found[key] = match.group(1)
        if "name" in found:
            yield found


def check(path):
    """Complaints about one file, and how many kernels it has."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    base, arch = path.rsplit("/", 1)[-1].removesuffix(".s").rsplit(".", 1)
    stem = base.rsplit(".", 1)[-1]
    complaints = []
    num_kernels = 0
    for kernel in kernels(text):
        num_kernels += 1
        name = kernel["name"]

        def limit(key, most):
            value = int(kernel.get(key, "0"))
            if value > most:
                complaints.append(f"{arch} {name}: {key} is {value}, at most {most} is accepted")

        limit("group_segment_fixed_size", MAX_SHARED_BYTES)
        limit("vgpr_count", MAX_VGPRS)
        if kernel.get("uses_dynamic_stack") == "true":
            complaints.append(f"{arch} {name}: uses a dynamic stack (recursion or a call by pointer)")
        if stem in MAX_SCRATCH_BYTES:
            holds_arrays = ARRAY_INSTANCE.search(name) is not None
            limit(
                "private_segment_fixed_size",
                ARRAY_SCRATCH_BYTES if holds_arrays else MAX_SCRATCH_BYTES[stem],
            )
            limit("vgpr_spill_count", MAX_SPILLED_VGPRS if MAX_SCRATCH_BYTES[stem] else 0)
    if num_kernels == 0:
        complaints.append(f"{path}: no kernel was emitted")
    for what, pattern in MUST_CONTAIN.get(stem, ()):
        if not re.search(pattern, text):
            complaints.append(f"{arch} {stem}: nothing matches {pattern!r} ({what})")
    return complaints, num_kernels


def main(paths):
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    failed = []
    total = 0
    for path in paths:
        complaints, num_kernels = check(path)
        failed += complaints
        total += num_kernels
    for complaint in failed:
        print(f"check_isa: {complaint}", file=sys.stderr)
    if not failed:
        print(f"check_isa: {total} kernels in {len(paths)} files are as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
