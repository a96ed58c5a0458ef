"""examples/05_python prints what its README says. Arguments as those of package_test.py."""
import os
import pathlib
import subprocess
import sys

from package_test import ROOT, SKIPPED, environment

package, folder = sys.argv[1:]
python = environment(pathlib.Path(folder))
if python is None:
    print("skipped: NumPy cannot be installed from PyPI")
    sys.exit(SKIPPED)
found = subprocess.run([python, ROOT / "examples/05_python/boundary.py"], env=dict(os.environ, PYTHONPATH=package),
                       capture_output=True, text=True, timeout=60)
expected = str([("0x4000", "0x3f80", "0x7e")] * 2) + "\n"
if (found.returncode, found.stdout) != (0, expected):
    sys.exit(f"{found.stdout}{found.stderr}\nexpected: {expected}")
