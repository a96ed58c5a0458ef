"""The installed library serves a program outside of the tree: usage: example_test.py BUILD_FOLDER.

`cmake --install` into an empty folder, then examples/ configured, built and run against nothing but that
folder, by CMake and, for C, by pkg-config. The program makes a boundary; what it links must not hold the ops
that a boundary does not use.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = sys.argv.pop(1)
NEEDED = {"fused_allreduce_rmsnorm_quant", "rmsnorm"}


def run(*command, cwd=None):
    found = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if found.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {found.stdout}{found.stderr}")
    return found.stdout


def cached(name):
    text = pathlib.Path(BUILD, "CMakeCache.txt").read_text()
    return re.search(rf"^{name}:\w+=(.*)$", text, re.M).group(1)


class Example(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        folder = pathlib.Path(cls.scratch.name)
        cls.prefix, build = folder / "prefix", folder / "build"
        run("cmake", "--install", BUILD, "--prefix", cls.prefix)
        source = shutil.copytree(ROOT / "examples", folder / "examples")
        sanitize = cached("TENON_SANITIZE")
        flags = [f"-DCMAKE_{each}_FLAGS=-fsanitize={sanitize}" for each in ("C", "CXX")] if sanitize else []
        run("cmake", "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={cls.prefix}",
            f"-DCMAKE_CXX_COMPILER={cached('CMAKE_CXX_COMPILER')}", *flags)
        run("cmake", "--build", build)
        cls.build, cls.program = build, build / "boundary"

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def test_headers_alone_are_among_the_headers(self):
        found = {each.suffix for each in (self.prefix / "include/tenon").rglob("*") if each.is_file()}
        self.assertEqual(found, {".h", ".def", ".cuh"})

    def test_boundary(self):
        self.assertEqual(run(self.program), "ok\nok\n")
        self.assertEqual(run(self.build / "boundary_c"), "ok\nok\n")

    def test_own_kernel(self):
        for target in cached("TENON_TARGETS").split(";"):
            if target not in ("cuda", "hip"):  # which this machine may lack
                self.assertEqual(run(self.build / "own_kernel", target), 2 * "the bits of the reference\n", target)
        refused = subprocess.run([self.build / "own_kernel", "tpu"], capture_output=True, text=True)
        self.assertEqual(refused.returncode, 2)

    def test_processes(self):
        lines = sorted(run(self.build / "processes", "3").splitlines())
        self.assertEqual([line.split(": ")[1] for line in lines], ["residual 3", "residual 6", "residual 9"] * 3)
        self.assertEqual(len({line.split(",")[0] for line in lines}), 3)
        lost = subprocess.run([self.build / "processes", "3", "lose"], capture_output=True, text=True, timeout=60)
        self.assertEqual(lost.returncode, 1)
        self.assertEqual(len(re.findall(r"^.*\brank 2\b.*$", lost.stderr, re.M)), 2, lost.stderr)

    def test_links_the_ops_of_a_boundary_and_nothing_else(self):
        ops = re.findall(r"^TENON_OP\((\w+), ops/", (ROOT / "tenon/core/ops.def").read_text(), re.M)
        names = [*ops, "layers", "models", "runtime", "serve", "jinja"]
        found = re.findall(r"tenon::(?:\w+::)?(" + "|".join(names) + ")::", run("nm", "-C", self.program))
        self.assertEqual(set(found), NEEDED)

    def test_installs_what_is_needed_and_no_more(self):
        files = {path.relative_to(self.prefix).as_posix() for path in self.prefix.rglob("*") if path.is_file()}
        self.assertIn("include/tenon/boundary/boundary.h", files)
        self.assertIn("include/tenon.h", files)
        self.assertTrue(any(name.endswith("/LICENSE") for name in files))
        self.assertFalse([name for name in files if name.endswith((".cc", ".cu", ".in"))])
        self.assertTrue(os.access(self.prefix / "bin/tenon", os.X_OK))

    def compile_by_pkg_config(self, prefix):
        where = dict(os.environ, PKG_CONFIG_PATH=next(prefix.rglob("pkgconfig")))
        asked = ["pkg-config", "--cflags", "--libs", "tenon"]
        words = subprocess.run(asked, env=where, check=True, capture_output=True, text=True).stdout.split()
        program = prefix / "boundary_by_pkg_config"
        sanitize = cached("TENON_SANITIZE")
        run(cached("CMAKE_C_COMPILER"), "-std=c99", "-pedantic", "-Wall", "-Werror",
            *([f"-fsanitize={sanitize}"] if sanitize else []), ROOT / "examples/04_c/boundary.c", *words, "-lpthread",
            f"-Wl,-rpath,{next(prefix.rglob('libtenon.so')).parent}", "-o", program)
        self.assertEqual(run(program), "ok\nok\n")
        return subprocess.run(["pkg-config", "--modversion", "--variable=abi", "tenon"], env=where, check=True,
                              capture_output=True, text=True).stdout

    def test_pkg_config_serves_c99_and_the_folder_may_move(self):
        self.assertIn("1", self.compile_by_pkg_config(self.prefix))
        moved = pathlib.Path(self.scratch.name) / "moved"
        shutil.copytree(self.prefix, moved, symlinks=True)
        self.compile_by_pkg_config(moved)

    def configure(self, name, lines):
        folder = pathlib.Path(self.scratch.name) / name
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(outside LANGUAGES C CXX)\n" + lines)
        return subprocess.run(["cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build",
                               f"-DCMAKE_PREFIX_PATH={self.prefix}"], capture_output=True, text=True)

    def test_components(self):
        lone = self.configure("lone", "find_package(tenon 0.1 REQUIRED COMPONENTS c)\n"
                              "if(TARGET OpenSSL::Crypto)\nmessage(FATAL_ERROR \"C needs no OpenSSL\")\nendif()\n"
                              "if(NOT TARGET tenon::c)\nmessage(FATAL_ERROR \"no tenon::c\")\nendif()\n")
        self.assertEqual(lone.returncode, 0, lone.stderr)
        unknown = self.configure("unknown", "find_package(tenon REQUIRED COMPONENTS boundary kitchen)\n")
        self.assertNotEqual(unknown.returncode, 0)
        words = " ".join(unknown.stderr.split())
        self.assertIn('tenon has no component "kitchen"; this installation has core, text,', words)
        optional = self.configure("optional", "find_package(tenon REQUIRED COMPONENTS boundary "
                                  "OPTIONAL_COMPONENTS kitchen)\n")
        self.assertEqual(optional.returncode, 0, optional.stderr)
        other = self.configure("other", "find_package(tenon 0.2 REQUIRED)\n")
        self.assertNotEqual(other.returncode, 0)


if __name__ == "__main__":
    unittest.main()
