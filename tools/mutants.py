#!/usr/bin/env python3
"""Breaks one line of the exchange or of the boundary at a time and shows which breaks no test notices.

Works on a copy of the tree, with a build of its own there; slow, so CI only asks whether every pattern still
matches (--list). Exits with 1 when a mutant survives that should not, with 2 when a pattern matches nothing.

usage: mutants.py [--list] [--only REGEX] [--scratch FOLDER]

  --list     names the mutants and runs nothing
  --only     only mutants whose name matches
  --scratch  where the copy is (build/mutants); it stays there, so that the next run builds less
"""

import argparse
import collections
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESET = "cpu"
TEST_SECONDS = 300
COMPILER = "the compiler, so it tells nothing"

# A test program and which of its tests. `own`: it compiles the mutated files itself, so that its object is all
# that must be built.
Test = collections.namedtuple("Test", "program filter own", defaults=("*", False))
WAVES = Test("ops_weak_waves_test", "SoundWaves.*", True)
WIDTH_ONE = Test("ops_negative_controls_test", "SoundProtocol.*", True)
FUSED = Test("ops_fused_allreduce_rmsnorm_quant_test")
PROTOCOL = Test("ops_fused_protocol_test")
COLLECTIVES = Test("comm_collectives_test")
WAIT, FAILURE, COMMUNICATOR = Test("comm_wait_test"), Test("comm_failure_test"), Test("comm_communicator_test")
BOUNDARY = Test(r"boundary_(?!matrix)\w+_test")

EXCHANGE = (WAVES, WIDTH_ONE)
OP = "tenon/ops/fused_allreduce_rmsnorm_quant"

# Every match of `pattern` in one of `files` is a mutant: it becomes `new`, in which \\1 is the first group.
# `survives`: why no test can notice, where that is so.
Kind = collections.namedtuple("Kind", "what files pattern new tests survives", defaults=(None,))

SLOTS, WAITS, SPIN = ("tenon/comm/device/exchange.cuh",), ("tenon/comm/device/wait.cuh",), ("tenon/device/sync.cuh",)
REDUCE, GATHER = ("tenon/device/reduce.cuh",), ("tenon/comm/collectives/all_gather/all_gather.cu",)
SUM = ("tenon/comm/collectives/all_reduce/all_reduce.cuh",)
PARTS, WIRE, TWO_SHOT = (f"{OP}/parts.cuh",), (f"{OP}/wire.cuh",), (f"{OP}/two_shot.cuh",)
ALL_OF_OP = (*SLOTS, f"{OP}/one_shot.cuh", *TWO_SHOT, *PARTS)
COMM, LAYER = ("tenon/comm/communicator.cc",), ("tenon/boundary/boundary.cc", "tenon/boundary/boundary.h")
CHECK = (
    r"(?<=\n)( +)if \(((?:[^;{}]|\n)*?)\)(?: \[\[unlikely\]\])?\s+"
    r"(?=return (?:Status::error|refuse|disagree)\()"
)
FIELD = r'(?<=\n) +(?:\{"[^"]+", [^\n]*\},|visit\("[^"]+", \w+\);)(?=\n)'
CLEARED = r"(?:\{kNotArrived, kNotArrived\}|kNotArrived)"
SEEN_BY_ALL = "a visible store is visible to all on every machine and memory that we have; the C++ model asks for it"
FOR_SPEED = "it is there for speed; tools/check_ptx.py looks for it"
KINDS = (
    # --- the exchange. Barriers and fences of slots.h each have a rule.
    Kind("rule", SLOTS, r"bool (\w+) = true;", r"bool \1 = false;", EXCHANGE),
    Kind("rule", SLOTS, r"int (kLeastSteps) = tenon::kLeastSteps;", r"int \1 = 1;", EXCHANGE),
    Kind("rule", SLOTS, r"int (kSlots) = kNumSlots;", r"int \1 = 2;", EXCHANGE),
    Kind("rule", SLOTS, r"bool (kFencesCalls) = !kKernelsAreOrdered;", r"bool \1 = false;", (WIDTH_ONE,)),
    Kind("rule", SLOTS, r"bool (kOrdersHops) = !kKernelsAreOrdered;", r"bool \1 = false;", EXCHANGE, SEEN_BY_ALL),
    Kind("barrier", ALL_OF_OP, r"(?<=\n)( +)sync_block\(\);", r"\1{}", (*EXCHANGE, FUSED)),
    Kind("barrier of a norm", REDUCE, r"(sums\[rows_done .*\n +)sync_block\(\);", r"\1", (WAVES,)),
    Kind("clear", SLOTS, r"(if \(Protocol::kClears[^;]*\) )clear\(\w+(?:\(r\))?\);", r"\1{}", EXCHANGE),
    Kind("meeting of lanes", SLOTS, r"if \(whole_wave\) sync_wave\(\);", "", (WAVES,), FOR_SPEED),
    Kind("sentinel", SLOTS, r"word == kNotArrived \? 0x7fff7fffu : word", "word", EXCHANGE),
    Kind("sentinel of packed", WIRE, r"\(Protocol::kReplaces & !has_arrived\(parcel\.words\)\)", "0", EXCHANGE),
    Kind("clear of packed", WIRE, rf"(?<=\n)  store\d_relaxed\(place\.\w+, {CLEARED}\);", "", EXCHANGE),
    Kind("place of a rank", PARTS, r"(?<=== 2 \? 0 : )peer_index\(sender, args\.team\.rank\)", "0", EXCHANGE),
    Kind("peer", PARTS, r"(?<=kRanks == 2\) return )1 - team\.rank;", "team.rank;", EXCHANGE),
    Kind("order of a sum", SUM, r"(?<=unpack8<T>\(words\[)rank(?=\], addend\))", "size - rank", (COLLECTIVES,)),
    Kind("lost call", TWO_SHOT, r"call\.lost \|= \*lost_word != 0;.*", "", (PROTOCOL, FUSED)),
    # --- all_gather
    Kind("barrier of all_gather", GATHER, r"(?<=\n)( +)sync_block\(\);", r"\1{}", (COLLECTIVES,)),
    Kind("flag of all_gather", GATHER, r"== flag_of\(first \+ step\);", "!= 0;", (COLLECTIVES,)),
    Kind("generation of all_gather", GATHER, r"\(first \+ step\) % kGatherGenerations", "0u", (COLLECTIVES,)),
    Kind("chunk of all_gather", GATHER, r"(?<=begin = )step(?= \* args\.slot_bytes)", "0", (COLLECTIVES,)),
    Kind("vector behind the last whole one", GATHER, r"(?<=\n)  if \(whole < vectors [^\n]*", "", (COLLECTIVES,)),
    Kind("rows dealt to a rank", GATHER, r"(?<=made\.to\[rank\] = )rows_of\(rank\)", "own", (COLLECTIVES,)),
    Kind("place of dealt rows", GATHER, r"(?<=made\.from\[rank\] = \{)place(?= \* own\.bytes)", "0", (COLLECTIVES,)),
    # --- waits
    Kind("deadline", SPIN, r"if \(now - budget\.since > deadline_ns\) .*", "", (WAIT,)),
    Kind("look at the abort word", SPIN, r"if \(load_acquire\(abort_word\) != 0\) .*", "", (WAIT,)),
    Kind("word to the peers", WAITS, r"store_release\(word, 1u \+ [^;]*;", "{}", (WAIT, FAILURE)),
    Kind("who gave up first", WAITS, r" && load_acquire\(word\) == 0", "", (WAIT, FAILURE)),
    Kind("record of a fault", WAITS, r"store_release\(&fault\.ready, 1u\);", "", (WAIT, FAILURE)),
    Kind("field of a fault", WAITS, r"(?<=\n)    fault\.(\w+) = [^;]*;", "", (WAIT, FAILURE)),
    # --- agreement
    Kind("check", COMM, CHECK, r"\1if (false && (\2)) ", (COMMUNICATOR,)),
    Kind("check", LAYER, CHECK, r"\1if (false && (\2)) ", (BOUNDARY,)),
    Kind("field", LAYER, FIELD, "", (BOUNDARY,)),
)

Mutant = collections.namedtuple("Mutant", "name file begin end new tests survives")


def mutants_of(kind):
    for file in kind.files:
        path = ROOT / file
        if not path.exists():
            raise SystemExit(f"mutants: {kind.what}: there is no {file}")
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(kind.pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            what = " ".join(text[match.start() : match.end()].split())
            yield Mutant(f"{file}:{line} {kind.what}: {what[:70]}", file, match.start(), match.end(),
                         match.expand(kind.new), kind.tests, kind.survives)


def all_mutants():
    """Every mutant, and the kinds that match nothing."""
    found, stale = [], []
    for kind in KINDS:
        of_kind = list(mutants_of(kind))
        found += of_kind
        if not of_kind:
            stale.append(f"{kind.what}: nothing in {', '.join(kind.files)} matches {kind.pattern!r}")
    return found, stale


class Scratch:
    """A copy of the tree and its build."""

    def __init__(self, folder):
        self.root = pathlib.Path(folder).resolve()
        self.build = self.root / "build" / PRESET
        self.root.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            source, copy = ROOT / name, self.root / name
            if not source.is_file():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists() or copy.read_bytes() != source.read_bytes():
                shutil.copy(source, copy)
        if not (self.build / "build.ninja").exists():
            self.must("cmake", "--preset", PRESET)
        listing = self.must("ninja", "-C", self.build, "-t", "targets", "all")
        self.programs = sorted(set(re.findall(r"^tests/(\w+_test): \w*LINKER", listing, re.M)))

    def must(self, *command):
        ran = subprocess.run(list(map(str, command)), cwd=self.root, capture_output=True, text=True)
        if ran.returncode != 0:
            said = ran.stdout[-3000:] + ran.stderr[-3000:]
            raise SystemExit(f"mutants: {' '.join(map(str, command))} failed:\n{said}")
        return ran.stdout

    def named(self, test):
        found = [name for name in self.programs if re.fullmatch(test.program, name)]
        if not found:
            raise SystemExit(f"mutants: no test program is called {test.program}")
        return found

    def make(self, program, own):
        """Whether it could be built."""
        target = f"tests/{program}"
        if own:
            folder, _, stem = program.partition("_")
            target = f"tests/CMakeFiles/{program}.dir/{folder}/{stem}.cc.o"
        built = subprocess.run(["ninja", "-C", str(self.build), target], capture_output=True, text=True)
        if built.returncode == 0 and own:  # the libraries stay as they were
            steps = self.must("ninja", "-C", self.build, "-t", "commands", "-s", f"tests/{program}")
            link = steps.strip().split("\n")[-1]
            built = subprocess.run(["bash", "-c", link], cwd=self.build, capture_output=True, text=True)
        return built.returncode == 0

    def passes(self, program, which):
        command = [str(self.build / "tests" / program), f"--gtest_filter={which}", "--gtest_fail_fast"]
        ran = subprocess.Popen(command, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
        try:
            return ran.wait(TEST_SECONDS) == 0
        except subprocess.TimeoutExpired:
            os.killpg(ran.pid, signal.SIGKILL)
            ran.wait()
            return False

    def killer_of(self, mutant):
        """The first test that notices a mutant, or None."""
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: mutant.begin] + mutant.new + text[mutant.end :], encoding="utf-8")
        try:
            for test in mutant.tests:
                for program in self.named(test):
                    if not self.make(program, test.own):
                        return COMPILER
                    if not self.passes(program, test.filter):
                        return program
            return None
        finally:
            path.write_text(text, encoding="utf-8")


def run(mutants, folder):
    scratch = Scratch(folder)
    for test in sorted({test for mutant in mutants for test in mutant.tests}):
        for program in scratch.named(test):
            scratch.must("ninja", "-C", scratch.build, f"tests/{program}")
            if not scratch.passes(program, test.filter):
                raise SystemExit(f"mutants: {program} fails without any mutant")
    bad = []
    for mutant in mutants:
        began = time.monotonic()
        killer = scratch.killer_of(mutant)
        seconds = time.monotonic() - began
        survives = f"SURVIVES, as expected: {mutant.survives}" if mutant.survives else "SURVIVES"
        outcome = f"noticed by {killer}" if killer else survives
        print(f"{seconds:5.0f} s  {mutant.name}\n         {outcome}", flush=True)
        if (killer is None) != (mutant.survives is not None) or killer == COMPILER:
            bad.append(mutant.name)
    noun = "mutant" if len(mutants) == 1 else "mutants"
    print(f"mutants: {len(mutants)} {noun}, {len(bad)} not as expected" + "".join(f"\n  {name}" for name in bad))
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--scratch", default=ROOT / "build" / "mutants")
    options = parser.parse_args()
    mutants, stale = all_mutants()
    if stale:
        print("".join(f"mutants: {each}\n" for each in stale), end="", file=sys.stderr)
        return 2
    mutants = [each for each in mutants if re.search(options.only, each.name)]
    if options.list:
        print("".join(f"{each.name}\n" for each in mutants), end="")
        print(f"mutants: {len(mutants)} of {len(KINDS)} kinds")
        return 0
    return run(mutants, options.scratch)


if __name__ == "__main__":
    sys.exit(main())
