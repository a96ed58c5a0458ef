#!/usr/bin/env python3
"""Ranks as the rest of the machine sees them, and what is said while a model loads:
ranks_test.py PATH_TO_TENON. Needs checkpoints/tiny.
"""
import os
import pathlib
import pty
import re
import subprocess
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else str(ROOT / "build/cpu/apps/tenon")
GOES_ON = ["run", "--prompt", "Tom", "--ignore-eos", "--max-new-tokens", "2000", "--tp", "4"]
ONCE = ["run", "--prompt", "Tom", "--max-new-tokens", "1"]


def eventually(found, seconds=20):
    """What found() gives, as soon as it is true."""
    until = time.monotonic() + seconds
    while not (answer := found()) and time.monotonic() < until:
        time.sleep(0.02)
    return answer


class Names(unittest.TestCase):
    WANTED = {f"tenon rank {rank}/4" for rank in (1, 2, 3)}

    def start(self, *options):
        process = subprocess.Popen([TENON, *GOES_ON, *options], cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return pathlib.Path(f"/proc/{process.pid}/task")

    def test_processes(self):
        tasks = self.start("--processes")
        children = tasks / tasks.parent.name / "children"

        def read(name):
            return {pathlib.Path(f"/proc/{child}/{name}").read_text().split("\0")[0].strip()
                    for child in children.read_text().split()}

        self.assertTrue(eventually(lambda: read("comm") == self.WANTED), read("comm"))
        self.assertEqual(read("cmdline"), self.WANTED)

    def test_threads(self):
        tasks = self.start()

        def names():
            return {path.read_text().strip() for path in tasks.glob("*/comm")}

        self.assertTrue(eventually(lambda: self.WANTED <= names()), names())


class Loading(unittest.TestCase):
    def on_terminal(self, *options):
        leader, follower = pty.openpty()
        process = subprocess.Popen([TENON, *ONCE, *options], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=follower)
        os.close(follower)
        seen = b""
        try:
            while piece := os.read(leader, 65536):
                seen += piece
        except OSError:  # the other end is closed
            pass
        os.close(leader)
        self.assertEqual(process.wait(), 0, seen)
        return seen.decode()

    def test_elsewhere_one_line_and_one_speaker(self):
        for mode in ([], ["--processes"]):
            done = subprocess.run([TENON, *ONCE, *mode], cwd=ROOT,
                                  capture_output=True, text=True, check=True)
            lines = [line for line in done.stderr.splitlines() if re.match("load", line)]
            self.assertRegex("\n".join(lines), r"\A(loading .* left\n)*loaded [\d.]+ MB in [\d.]+ s.*\Z")

    def test_a_terminal_has_one_line_that_goes_away(self):
        for mode in ([], ["--processes"]):
            seen = self.on_terminal(*mode)
            lines = re.findall(r"loading [^\r]*", seen)
            self.assertTrue(lines, seen)
            self.assertRegex(lines[0], r"^loading [\d.]+ [kM]?B of [\d.]+ MB, \d+ %")
            self.assertLess(len(lines), 30, "one for each tenth of a second, not for each tensor")
            while_loading, afterwards = seen[:seen.rindex(lines[-1])], seen[seen.rindex(lines[-1]):]
            self.assertNotIn("\n", while_loading)
            self.assertRegex(afterwards, r"\Aloading [^\r]*\r +\r")


if __name__ == "__main__":
    unittest.main()
