#!/usr/bin/env python3
"""Reads the assembly of HIP kernels (gfx942, gfx950) and checks what can be known without the device.

Every kernel: registers, shared and scratch memory within what EXPECTED allows it; roundings as
tenon/core/fp8.h has them, quotients and square roots rounded correctly; no calls; a wait wherever caches are
written back and before every barrier.
Kernels that round or talk to other ranks: the instructions that EXPECTED names.

usage: check_isa.py FILE.s ...
"""

import collections
import re
import sys

LANE_VGPRS = 512  # of a lane of a compute unit's SIMD; half of them where 512 threads must fit, and so on
SHARED_BYTES = 64 * 1024  # of a block, on gfx942

# A kernel of the file: the name in its source, and what its mangled name says of the instance.
Kernel = collections.namedtuple("Kernel", "arch symbol name type numbers facts modes code")
# Something that must be in the code of a kernel, or (wanted is False) must not.
Sign = collections.namedtuple("Sign", "meaning pattern wanted", defaults=(True,))


def fp8_signs(kernel):
    """Instances for the usual call (true in their names) make e4m3fn, which gfx942 has no instruction for."""
    if kernel.arch == "gfx942" and "Lb1E" in kernel.symbol:
        return [Sign("e4m3fn must not be made by an instruction for e4m3fnuz", r"v_cvt_pk_fp8_f32", False)]
    return [Sign("values become fp8 codes by instruction", r"v_cvt_pk_fp8_f32")]


def half_signs(kernel):
    """gfx942 rounds to bf16 by integers. Sums of two halves may be one addition: the same bits."""
    pattern = {
        ("gfx942", "f16"): r"v_cvt_f16_f32|v_pk_add_f16",
        ("gfx950", "f16"): r"v_cvt_pk_f16_f32|v_pk_add_f16",
        ("gfx950", "bf16"): r"v_cvt_pk_bf16_f32",
    }.get((kernel.arch, kernel.type))
    return [Sign(f"values become {kernel.type} by instruction", pattern)] if pattern else []


FLAG_SIGNS = (
    Sign("an acquire drops what caches hold", r"buffer_inv sc0 sc1"),
    Sign("a release writes caches back", r"buffer_wbl2 sc0 sc1"),
)


def flag_signs(_):
    return FLAG_SIGNS


def push_signs(_):
    return [Sign("data is stored past every cache", r"global_store_dwordx2 .* sc0 sc1")]


def slot_signs(kernel):
    """Data that is its own flag. numbers[-1] of these kernels is the number of ranks, 1 is no team."""
    if kernel.numbers and kernel.numbers[-1] == 1:
        return []
    polled = Sign("data that is its own flag is polled past every cache", r"global_load_dwordx2 .* sc0 sc1")
    return [*push_signs(kernel), polled, *FLAG_SIGNS]


def ranked_signs(kernel):
    """The same for kernels whose last number says something else."""
    return slot_signs(kernel._replace(numbers=()))


E4M3, E4M3_FNUZ = 3, 4  # enum class DType


def own_fp8_signs(kernel):
    """gfx942 makes e4m3fnuz alone, gfx950 makes e4m3fn and this library fnuz of it."""
    by_instruction = (E4M3_FNUZ,) if kernel.arch == "gfx942" else (E4M3, E4M3_FNUZ)
    made = kernel.numbers[0] in by_instruction
    what = "becomes codes by instruction" if made else "must not be made by an instruction for another type"
    return [Sign(f"DType {kernel.numbers[0]} {what}", r"v_cvt_pk_fp8_f32", made)]


# threads: that must fit on a compute unit together, so that registers must be few. None: one block.
# shared, scratch: bytes at most. spilled: vector registers at most. signs: functions of the kernel.
Expected = collections.namedtuple(
    "Expected", "threads shared scratch spilled signs", defaults=(None, SHARED_BYTES, 0, 0, ())
)


def division_signs(_):
    return [Sign("quotients are rounded once", r"v_div_fixup_f32")]


def norm_signs(kernel):
    return [*division_signs(kernel), Sign("there is a square root", r"v_sqrt_f32")]


QUANTS = (fp8_signs, half_signs, division_signs)
NORMS = (*QUANTS, norm_signs)
FUSED = (*NORMS, slot_signs)


def is_largest(kernel):
    return kernel.numbers == (4, 8)  # vectors of a thread, ranks: does not quite fit


def two_shot(kernel):
    scratch, spilled = (108, 26) if is_largest(kernel) else (0, 0)
    return Expected(512, 20 * 1024, scratch, spilled, FUSED)


def two_shot_row(kernel):
    # Packed words of four ranks and more take 36 bytes, without a spilled vector register.
    packed = "Packed" in kernel.symbol and kernel.numbers[-1] >= 4
    return Expected(512, 20 * 1024, 36 if packed else 0, 0, FUSED)


def one_shot_row(kernel):
    return Expected(512, 256, 36 if is_largest(kernel) else 0, signs=FUSED)


# By op and kernel. Kernels that are not here may do nothing special and use no scratch memory.
EXPECTED = {
    ("fused_allreduce_rmsnorm_quant", "one_shot_row_kernel"): one_shot_row,
    ("fused_allreduce_rmsnorm_quant", "one_shot_kernel"): Expected(512, 256, signs=FUSED),
    ("fused_allreduce_rmsnorm_quant", "two_shot_kernel"): two_shot,
    ("fused_allreduce_rmsnorm_quant", "two_shot_long_kernel"): two_shot,
    ("fused_allreduce_rmsnorm_quant", "two_shot_row_kernel"): two_shot_row,
    # Likewise, in some forms.
    ("fused_allreduce_rmsnorm_quant", "two_shot_rows_kernel"): Expected(512, 20 * 1024, 36, 0, FUSED),
    ("rmsnorm", "row_kernel"): Expected(1024, 256, signs=NORMS),
    ("fp8_quant", "segment_kernel"): Expected(1024, 0, signs=QUANTS),
    ("all_reduce", "all_reduce_kernel"): Expected(1024, 0, signs=(half_signs, ranked_signs)),
    ("all_gather", "all_gather_kernel"): Expected(512, 256, signs=(flag_signs,)),
    ("ranked_sum", "vectors_kernel"): Expected(1024, 0, signs=(half_signs,)),
    ("probe", "exchange_kernel"): Expected(1024, 256, signs=(slot_signs,)),
    ("probe", "ping_kernel"): Expected(1024, 256, signs=(slot_signs,)),
    ("probe", "push_kernel"): Expected(1024, 256, signs=(push_signs,)),
    ("vec_test", "fp8_kernel"): Expected(signs=(own_fp8_signs,)),
    ("vec_test", "round_trip_kernel"): Expected(signs=(half_signs,)),
    # A few values beyond its registers.
    ("gated_delta_net", "recurrent_kernel"): Expected(scratch=32),
}

# Round to nearest even, keep denormals, overflow f16 to infinity: what core/fp8.h does. Blocks stay on
# one compute unit, on which sync_block() relies.
MODES = {
    "float_round_mode_32": 0,
    "float_round_mode_16_64": 0,
    "float_denorm_mode_32": 3,
    "float_denorm_mode_16_64": 3,
    "fp16_overflow": 0,
    "tg_split": 0,
}
NEVER = (
    Sign("rounds towards zero", r"v_cvt_pkrtz", False),
    Sign("calls a function", r"s_swappc_b64", False),
    Sign("one over a square root, in one instruction that is not rounded correctly", r"v_rsq_f32", False),
)
# What the device computes roughly, and what makes it right: as many of the second as of the first, at least.
# A quotient of 64-bit integers begins with a reciprocal too, scaled by this constant, and is then corrected
# in integers.
MADE_RIGHT = (
    ("v_rcp_f32", "v_div_fixup_f32|v_mul_f32_e32 v\\d+, 0x5f7ffffc", "a quotient"),
    ("v_sqrt_f32", "v_cmp_class_f32", "a square root"),
)


def source_name(symbol):
    """The last part of a mangled nested name: "_ZN5tenon3hip1aL8b_kernelI..." is b_kernel."""
    at, name = 3, symbol
    while part := re.match(r"L?(\d+)", symbol[at:]):
        begin = at + part.end()
        at = begin + int(part.group(1))
        name = symbol[begin:at]
    return name


def kernels(text, arch):
    """Every kernel of a file: what the metadata, the directives and the code say of it."""
    metadata = text.partition(".amdgpu_metadata")[2].partition(".end_amdgpu_metadata")[0]
    for block in re.split(r"\n  - ", metadata)[1:]:
        # The first line of a block carries a key too.
        facts = dict(re.findall(r"\n    \.(\w+):[ \t]+(\S+)", "\n    " + block))
        symbol = facts.get("name")
        if symbol is None:
            continue
        directives = text.partition(f".amdhsa_kernel {symbol}\n")[2].partition(".end_amdhsa_kernel")[0]
        modes = {key: int(value) for key, value in re.findall(r"\.amdhsa_(\w+) (\d+)\n", directives)}
        body = text.partition(f"\n{symbol}:")[2].partition(".Lfunc_end")[0]
        code = [line.partition(";")[0].strip() for line in body.split("\n")[1:]]
        element = re.search(r"INS_\d+(bf16|f16)E", symbol)
        numbers = tuple(int(each) for each in re.findall(r"(?:Li|DTypeE)(\d+)E", symbol))
        yield Kernel(
            arch,
            symbol,
            source_name(symbol),
            element.group(1) if element else None,
            numbers,
            facts,
            modes,
            [line for line in code if line and not line.startswith(".") or line.endswith(":")],
        )


def touches_memory(line):
    return re.match(r"(global|flat|buffer|scratch)_", line) is not None


def waits(line):
    return line.startswith("s_waitcnt") and "vmcnt(0)" in line


def unwaited(code):
    """Where a wait for the wave's stores is missing."""
    for at, line in enumerate(code):
        if line.startswith("buffer_wbl2"):
            steps, where = code[at + 1 :], "after"
        elif line.startswith("s_barrier"):
            steps, where = code[at - 1 :: -1] if at > 0 else [], "before"
        else:
            continue
        for step in steps:
            if waits(step):
                break
            if touches_memory(step) or step.endswith(":") or re.match(r"s_c?branch|s_barrier|s_endpgm", step):
                yield f"no s_waitcnt vmcnt(0) {where} {line} (next to it: {step})"
                break
        else:
            yield f"no s_waitcnt vmcnt(0) {where} {line}"


def complaints_of(kernel, expected):
    def most(fact, limit):
        value = int(kernel.facts.get(fact, "0"))
        if value > limit:
            yield f"{fact} is {value}, at most {limit} is accepted"

    threads = expected.threads or int(kernel.facts.get("max_flat_workgroup_size", "1024"))
    yield from most("vgpr_count", min(LANE_VGPRS, LANE_VGPRS * 256 // threads))
    yield from most("group_segment_fixed_size", expected.shared)
    yield from most("private_segment_fixed_size", expected.scratch)
    yield from most("vgpr_spill_count", expected.spilled)
    if kernel.facts.get("uses_dynamic_stack") == "true":
        yield "uses a dynamic stack (recursion or a call by pointer)"
    for mode, wanted in MODES.items():
        if kernel.modes.get(mode) != wanted:
            yield f"{mode} is {kernel.modes.get(mode)}, must be {wanted}"
    if not kernel.code:
        yield "its code was not found"
    code = "\n".join(kernel.code)
    for sign in (*NEVER, *(sign for signs in expected.signs for sign in signs(kernel))):
        if (re.search(sign.pattern, code) is not None) != sign.wanted:
            found = "nothing matches" if sign.wanted else "there is a match of"
            yield f"{found} {sign.pattern!r} ({sign.meaning})"
    for rough, fixed, what in MADE_RIGHT:
        of_rough, of_fixed = (sum(bool(re.match(each, line)) for line in kernel.code) for each in (rough, fixed))
        if of_rough > of_fixed:
            yield f"{of_rough} {rough} but {of_fixed} {fixed.partition('|')[0]}: {what} is not rounded correctly"
    yield from unwaited(kernel.code)


def op_and_arch(path):
    """tenon.ops.rope.rope.gfx942.s is of the op rope, tests.device.vec_test.gfx942.s of vec_test."""
    base, arch = path.rsplit("/", 1)[-1].removesuffix(".s").rsplit(".", 1)
    parts = base.split(".")
    return parts[-2 if parts[0] == "tenon" else -1], arch


def check(path):
    """Complaints about one file, which kernels of which op it has, and how many."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    op, arch = op_and_arch(path)
    found = list(kernels(text, arch))
    complaints = [] if found else [f"{path}: no kernel was emitted"]
    for kernel in found:
        expected = EXPECTED.get((op, kernel.name), Expected())
        if callable(expected):
            expected = expected(kernel)
        complaints += [f"{arch} {kernel.symbol}: {each}" for each in complaints_of(kernel, expected)]
    return complaints, {(op, arch, kernel.name) for kernel in found}, len(found)


def missing(found):
    """Complaints about kernels that EXPECTED names of an op that was given, and that none of its files has."""
    for given, arch in sorted({(op, arch) for op, arch, _ in found}):
        for op, name in EXPECTED:
            if op == given and (op, arch, name) not in found:
                yield f"{arch} {op}: there is no {name}; EXPECTED names it"


def main(paths):
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    failed = []
    total = 0
    seen = set()
    for path in paths:
        complaints, found, num_kernels = check(path)
        failed += complaints
        seen |= found
        total += num_kernels
    failed += missing(seen)
    for complaint in failed:
        print(f"check_isa: {complaint}", file=sys.stderr)
    if not failed:
        print(f"check_isa: {total} kernels in {len(paths)} files are as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
