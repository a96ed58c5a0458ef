"""The installed library serves a program outside of the tree: usage: example_test.py BUILD_FOLDER.

`cmake --install` into an empty folder, then examples/ configured, built and run against nothing but that
folder. The program makes a boundary; what it links must not hold the ops that a boundary does not use.
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
        cls.program, cls.program_c = build / "boundary", build / "boundary_c"

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def test_runs(self):
        self.assertEqual(run(self.program), "ok\nok\n")
        self.assertEqual(run(self.program_c), "ok\nok\n")

    def test_links_the_ops_of_a_boundary_and_nothing_else(self):
        ops = re.findall(r"^TENON_OP\((\w+), ops/", (ROOT / "tenon/core/ops.def").read_text(), re.M)
        names = [*ops, "layers", "models", "runtime", "serve", "jinja"]
        found = re.findall(r"tenon::(?:\w+::)?(" + "|".join(names) + ")::", run("nm", "-C", self.program))
        self.assertEqual(set(found), NEEDED)

    def test_installs_what_is_needed_and_no_more(self):
        files = {path.relative_to(self.prefix).as_posix() for path in self.prefix.rglob("*") if path.is_file()}
        self.assertIn("include/tenon/boundary/boundary.h", files)
        self.assertIn("include/tenon.h", files)
        written = next(self.prefix.rglob("tenon.pc")).read_text()
        self.assertIn(f"prefix={self.prefix}\n", written)
        self.assertTrue(any(name.endswith("/LICENSE") for name in files))
        self.assertFalse([name for name in files if name.endswith((".cc", ".cu", ".in"))])
        self.assertTrue(os.access(self.prefix / "bin/tenon", os.X_OK))


if __name__ == "__main__":
    unittest.main()
