"""examples/05_python prints what its README says."""
from inside import NUMPY, ROOT, enter_package

enter_package(__file__, NUMPY, "mypy==2.4.1")

import subprocess  # noqa: E402
import sys  # noqa: E402
import unittest  # noqa: E402


class Example(unittest.TestCase):
    def test_prints_the_bits(self):
        found = subprocess.run([sys.executable, ROOT / "examples/05_python/boundary.py"], capture_output=True,
                               text=True, timeout=60)
        expected = str([("0x4000", "0x3f80", "0x7e")] * 2) + "\n"
        self.assertEqual((found.returncode, found.stdout), (0, expected), found.stderr)


if __name__ == "__main__":
    unittest.main()
