#!/usr/bin/env python3
"""examples/06_serve starts a server, streams an answer and ends it: nothing of it is left."""
import subprocess
import sys
import unittest

from support import QUESTION, ROOT, TENON, run_json


class Example(unittest.TestCase):
    def test_prints_the_answer_of_the_model(self):
        example = ROOT / "examples/06_serve/serve.py"
        self.assertIn(f'"{QUESTION}"', example.read_text())
        found = subprocess.run([sys.executable, example, TENON], capture_output=True, text=True, timeout=300)
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertEqual(found.stdout, run_json("--tp", "2")["text"] + "\n")

    def test_a_server_that_cannot_start_is_told(self):
        example = ROOT / "examples/06_serve/serve.py"
        found = subprocess.run([sys.executable, example, TENON, "/nowhere"], capture_output=True, text=True)
        self.assertEqual((found.returncode, found.stdout), (1, ""))
        self.assertIn("ended with", found.stderr)


if __name__ == "__main__":
    unittest.main()
