#!/usr/bin/env python3
"""Every header compiles alone. Runs as the test policy.headers.

A header whose source includes it first has been compiled alone by the build; only the others are compiled
here. bindings/c/tenon.h is compiled as C99, headers of kernels for the cpu target. Those of bindings/python need
nanobind, which only a build of the package has.
"""
import concurrent.futures
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU = ["-DTENON_TARGET=cpu", "-DTENON_WAVE=1", '-DTENON_DEVICE_HEADER="tenon/device/cpu/device.cuh"']


def compile_alone(compiler, header):
    path = header.relative_to(ROOT).as_posix()
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-fsyntax-only", "-I", str(ROOT), *CPU,
               "-x", "c++", "-"]
    if path.endswith("tenon.h"):
        command = [compiler, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-fsyntax-only", "-I",
                   str(ROOT), "-x", "c", "-"]
    found = subprocess.run(command, input=f'#include "{path}"\n', capture_output=True, text=True,
                           check=False)
    return path, found.returncode, found.stderr


def first_of_its_source(header):
    source = header.with_suffix(".cc")
    if not source.exists():
        return False
    first = next((line for line in source.read_text().splitlines() if line.startswith("#include")), "")
    return first == f'#include "{header.relative_to(ROOT).as_posix()}"'


def main():
    compiler = sys.argv[1] if len(sys.argv) > 1 else "c++"
    # What lies in a target's folder under device/ is no header of its own: device/device.cuh brings it in.
    headers = [p for p in sorted((ROOT / "tenon").rglob("*.h"))
               if p.parent.parent != ROOT / "tenon/device" and not first_of_its_source(p)]
    headers += sorted((ROOT / "bindings/c").rglob("*.h"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda header: compile_alone(compiler, header), headers))
    bad = [result for result in results if result[1] != 0]
    for path, _, errors in bad:
        print(f"{path} does not compile alone:\n{errors}")
    print(f"{len(results)} headers, {len(bad)} do not compile alone")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
