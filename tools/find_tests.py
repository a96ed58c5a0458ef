#!/usr/bin/env python3
"""What `./x test NAME` means: find_tests.py NAME prints what to build and what to run.

First line: the targets to build. Every further line: the arguments of one run of ctest. A NAME is
a floor (comm), a test executable (core_env_test, or a part of its name), or a regular expression
that matches names of tests (Env.ReadsEveryKnob, policy.layers). One that matches nothing is
refused with what is accepted. Reads the sources, so that nothing has to be built to find a name.
ctest's labels are the names of the executables (tests/CMakeLists.txt), which begin with the floor.
"""
import difflib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST = re.compile(r"^(TEST|TEST_F|TEST_P)\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.M)
INSTANCE = re.compile(r"^INSTANTIATE_TEST_SUITE_P\(\s*(\w*)\s*,\s*(\w+)\s*,", re.M)
ADDED = re.compile(r"add_test\(\s*NAME\s+(?P<floor>apps|install|policy)\.(?P<name>\w+)")
LISTED = re.compile(r"set\((apps|python)_tests([^)]*)\)")

# What scripts run, by their floor or name.
NEEDED = {"apps": {"tenon"}, "apps.memory": {"scarce_memory"}, "install": {"tenon"}, "python": {"tenon_python", "python_oracle"}}


def executables():
    """{executable: (floor, names of its tests)}"""
    found = {}
    for path in sorted((ROOT / "tests").glob("*/*_test.cc")):
        text = path.read_text()
        prefixes = {}
        for prefix, suite in INSTANCE.findall(text):
            prefixes.setdefault(suite, []).append(prefix + "/" if prefix else "")
        names = [f"{prefix}{suite}.{name}" for kind, suite, name in TEST.findall(text)
                 for prefix in (prefixes.get(suite, []) if kind == "TEST_P" else [""])]
        found[f"{path.parent.name}_{path.stem}"] = (path.parent.name, names)
    return found


def scripts():
    """{name of a test that is a script: floor}"""
    text = (ROOT / "tests/CMakeLists.txt").read_text()
    found = {f"{match['floor']}.{match['name']}": match["floor"] for match in ADDED.finditer(text)}
    for floor, names in LISTED.findall(text):
        found.update({f"{floor}.{name}": floor for name in names.split()})
    return found


def any_of(names):
    return "^(" + "|".join(sorted(re.escape(name) for name in names)) + ")$"


def find(wanted):
    """(targets, runs), both empty when the name means nothing."""
    built, added = executables(), scripts()
    floors = {floor for floor, _ in built.values()} | set(added.values())
    if wanted in floors:
        targets = {name for name, (floor, _) in built.items() if floor == wanted}
        runs = [["-L", f"^{wanted}(_|$)"]]
    elif wanted in built:
        targets, runs = {wanted}, [["-L", any_of([wanted])]]
    else:
        try:
            # A test with parameters is called Suite.Name/VALUE; the source does not know the values.
            matches = re.compile(re.sub(r"(\.\w+)/[^/]*$", r"\1", wanted)).search
        except re.error as error:
            raise SystemExit(f"x: test: \"{wanted}\" is no regular expression: {error}") from error
        whole = {name for name in built if matches(name)}
        some = {name for name, (_, tests) in built.items()
                if name not in whole and any(matches(test) for test in tests)}
        others = {name for name in added if matches(name)}
        targets = whole | some
        runs = [["-L", any_of(whole)]] if whole else []
        runs += [["-R", wanted, "-L", any_of(some)]] if some else []
        runs += [["-R", any_of(others)]] if others else []
        for name in others:
            targets = targets | NEEDED.get(added[name], set()) | NEEDED.get(name, set())
    if wanted in floors:
        for name in [wanted] + [name for name, floor in added.items() if floor == wanted]:
            targets = targets | NEEDED.get(name, set())
    return sorted(targets), runs


def refuse(wanted):
    built, added = executables(), scripts()
    names = [*built, *added, *(test for _, tests in built.values() for test in tests)]
    near = difflib.get_close_matches(wanted, names, n=3)
    floors = sorted({floor for floor, _ in built.values()} | set(added.values()))
    print(f"x: test: nothing is called \"{wanted}\"" +
          (f"; near it are {', '.join(near)}" if near else ""), file=sys.stderr)
    print(f"x: accepted are a floor ({', '.join(floors)}), full, asan, tsan,", file=sys.stderr)
    print("x: a test executable (core_env_test) or the name of a test (Env.ReadsEveryKnob), each "
          "whole or in part", file=sys.stderr)
    sys.exit(2)


def main():
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit("usage: find_tests.py NAME")
    targets, runs = find(sys.argv[1])
    if not runs:
        refuse(sys.argv[1])
    print(" ".join(targets))
    for run in runs:
        print(" ".join(run))


if __name__ == "__main__":
    main()
