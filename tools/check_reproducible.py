#!/usr/bin/env python3
"""Two builds of one commit are the same bytes: check_reproducible.py [--targets NAME ...] [--jobs N].

Clones the commit of this tree into two folders with names of different length, builds the preset "package" in
both without a compiler cache, and compares what comes out. Without --targets the three Debian packages, which
takes two whole builds; --targets tenon_c compares the shared library for C alone.
"""
import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATTERNS = ("*.deb", "**/libtenon*.so.*", "**/libtenon*.a", "apps/tenon")


def run(*command, cwd=None, env=None):
    found = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    if found.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {found.stdout}{found.stderr}")
    return found.stdout


def build(tree, targets, jobs, epoch):
    run("git", "clone", "-q", "--no-hardlinks", ROOT, tree)
    environment = dict(os.environ, SOURCE_DATE_EPOCH=epoch, CCACHE_DISABLE="1")
    run("cmake", "--preset", "package", cwd=tree, env=environment)
    run("cmake", "--build", "build/package", "-j", jobs, *(["--target", *targets] if targets else []), cwd=tree,
        env=environment)
    if not targets:
        run("cpack", "--config", "CPackConfig.cmake", cwd=tree / "build/package", env=environment)
    folder = tree / "build/package"
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in PATTERNS for path in folder.glob(pattern)
            if path.is_file() and not path.is_symlink() and "_CPack_Packages" not in path.parts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=[])
    parser.add_argument("--jobs", default=os.cpu_count())
    asked = parser.parse_args()
    epoch = run("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as scratch:
        first, second = (build(pathlib.Path(scratch) / name, asked.targets, asked.jobs, epoch)
                         for name in ("a", "another_folder/of_a_longer_name"))
    if not first or first.keys() != second.keys():
        sys.exit(f"the builds have {sorted(map(str, first))} and {sorted(map(str, second))}")
    for path in sorted(first):
        print("same" if first[path] == second[path] else "DIFFERENT", path)
    return 0 if first == second else 1


if __name__ == "__main__":
    sys.exit(main())
