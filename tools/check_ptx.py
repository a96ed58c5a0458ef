#!/usr/bin/env python3
"""Reads the PTX of CUDA kernels that may start early and checks that each waits first.

A kernel launched with LaunchShape::early may run beside the kernels before it on its stream. On every way
through it, griddepcontrol.wait must come before the first access to memory that others see (prefetches read
nothing and are allowed, and so are copies into shared memory and load_constant(), which then must read what no
kernel writes, weights, or what was complete before: docs/targets.md), before griddepcontrol.launch_dependents, and before its end: only so
is all that came before a kernel over when the next one goes on. A trap is no end: nothing goes on after it. Which files have such kernels is read from the sources: those
that set `early`; every kernel of them is looked at.

Where a whole wave takes words of a mailbox, its lanes must meet before they clear: such kernels need a
bar.warp.sync.

usage: check_ptx.py FILE.ptx ...     each named after its source, as nvcc --keep names it
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETS_EARLY = re.compile(r"\b(?:shape->|shape\.)early = ")

# Accesses in one of these spaces are nobody else's business.
OWN_SPACES = {"param", "shared", "local", "const"}
ACCESSES = {"ld", "ldu", "st", "atom", "red", "cp", "multimem", "tex", "tld4", "suld", "sust", "sured", "wmma",
            "discard", "applypriority", "call", "brx"}
# Forms of them that read and write nothing.
HARMLESS = {"prefetch", "wait_all", "wait_group", "commit_group"}
# What load_constant() of tenon/device becomes, and nothing else.
CONSTANT = "ld.global.nc.L1::no_allocate."

# Kernel name, and of its instances those whose symbol matches: they must have such an instruction.
MEETS = "bar.warp.sync"
SIGNS = (
    # One vector for each lane, and peers: bf16 or f16, either wire, kMaxRun 1, kRanks above 1.
    (re.compile(r"(one_shot|two_shot)(_rows?|_long|_split)?_kernelI.*Li1ELi[2-9]E"), MEETS, "lanes meet before they clear"),
    (re.compile(r"all_reduce_kernelI"), MEETS, "lanes meet before they clear"),
)


def kernels(text):
    """Every kernel of a file: its symbol and its instructions, in which labels are strings that end in a colon."""
    for entry in re.finditer(r"^(?:\.visible )?\.entry (\w+)\(.*?^\{\n(.*?)^\}", text, re.M | re.S):
        code = []
        for line in entry.group(2).split("\n"):
            line = line.partition("//")[0].strip()
            while label := re.match(r"([$\w]+):", line):
                code.append(label.group(0))
                line = line[label.end() :].strip()
            code += [each.strip() for each in line.split(";") if each.strip() not in ("", "{", "}")]
        yield entry.group(1), code


def touches_memory(opcode):
    if opcode.startswith(CONSTANT):
        return False
    parts = opcode.split(".")
    spaces = {part.partition("::")[0] for part in parts[1:]}
    return parts[0] in ACCESSES and not spaces & (OWN_SPACES | HARMLESS)


def unwaited(code):
    """What a thread may do before it has waited, or instead of it."""
    labels = {step[:-1]: at for at, step in enumerate(code) if step.endswith(":")}
    seen, ways = set(), [0]
    while ways:
        at = ways.pop()
        while at not in seen:
            seen.add(at)
            if at >= len(code):
                yield "it may end before it has waited"
                break
            step = code[at]
            guarded, step = step.startswith("@"), re.sub(r"^@!?%\w+\s+", "", step)
            opcode, _, rest = step.partition(" ")
            if step.endswith(":") or step.startswith("."):
                pass
            elif opcode == "griddepcontrol.wait":
                if not guarded:
                    break
            elif opcode == "griddepcontrol.launch_dependents":
                yield "it lets the next kernel start before it has waited"
            elif opcode in ("ret", "exit", "trap"):
                if opcode != "trap":
                    yield "it may end before it has waited"
                if not guarded:
                    break
            elif opcode in ("bra", "bra.uni"):
                ways.append(labels[rest.strip()])
                if not guarded:
                    break
            elif touches_memory(opcode):
                yield f"it touches memory before it has waited: {step}"
            at += 1


def complaints_of(symbol, code):
    if not code:
        yield "its code was not found"
    elif not any(step.startswith("griddepcontrol.wait") for step in code):
        yield "it never waits for the kernel before it"
    else:
        yield from dict.fromkeys(unwaited(code))
    for pattern, instruction, meaning in SIGNS:
        if pattern.search(symbol) and not any(instruction in step for step in code):
            yield f"there is no {instruction} ({meaning})"


def early_sources():
    """Files that set `early`, from the root; of a .cuh the kernel files that include it, however far down."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
             for path in sorted((ROOT / "tenon").rglob("*")) if path.suffix in (".cu", ".cuh", ".cc", ".h")}
    early = {path for path, text in texts.items() if SETS_EARLY.search(text)}
    found = set()
    while early:
        path = early.pop()
        if not path.endswith(".cuh"):
            found.add(path)
            continue
        line = f'#include "{path}"'
        early |= {other for other, text in texts.items() if line in text and other.endswith((".cu", ".cuh"))}
    return sorted(found)


def check(paths, sources):
    """Complaints about PTX made from the files that set `early`, and how many kernels they have."""
    complaints, total = [], 0
    given = {pathlib.Path(path).stem for path in paths}
    for source in sources:
        if not source.endswith(".cu"):
            complaints.append(f"{source} sets early; only kernel files (.cu, .cuh) may: it is then known whose launch it is")
        elif pathlib.Path(source).stem not in given:
            complaints.append(f"{source} sets early, and its PTX was not given")
    for path in paths:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        found = list(kernels(text))
        if not found:
            complaints.append(f"{path}: no kernel was found")
        total += len(found)
        complaints += [f"{symbol}: {each}" for symbol, code in found for each in complaints_of(symbol, code)]
    return complaints, total


def main(arguments):
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    complaints, total = check(arguments, list(early_sources()))
    for complaint in complaints:
        print(f"check_ptx: {complaint}", file=sys.stderr)
    if not complaints:
        print(f"check_ptx: {total} kernels of {len(arguments)} files wait before they touch memory")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
