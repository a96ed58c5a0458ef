#!/usr/bin/env python3
"""deploy/: the unit, the example of options and the container's recipe fit the program: deploy_test.py PATH_TO_TENON.
No container is built here."""
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from serve_support import Server
from support import MODEL, ROOT, TENON

DEPLOY = ROOT / "deploy"


class Unit(unittest.TestCase):
    def verify(self, text):
        with tempfile.TemporaryDirectory() as name:
            unit = pathlib.Path(name) / "tenon.service"
            unit.write_text(text)
            done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        # What it says of units that this machine has besides is not meant.
        return done.returncode, "\n".join(line for line in done.stderr.splitlines() if "tenon" in line)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze")
    def test_systemd_takes_it(self):
        text = (DEPLOY / "tenon.service").read_text().replace("/usr/local/bin/tenon", TENON)
        self.assertIn(TENON, text)
        code, said = self.verify(text.replace("RestartSec", "RestartSecond"))
        if "RestartSecond" not in said:
            self.skipTest(f"systemd-analyze cannot verify here: {said}")
        self.assertEqual(self.verify(text), (0, ""))

    def test_it_waits_longer_than_the_server(self):
        unit = (DEPLOY / "tenon.service").read_text()
        drain = int(re.search(r"^drain-seconds = (\d+)$", (DEPLOY / "tenon.toml").read_text(), re.M)[1])
        self.assertGreater(int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1]), drain + 5)


class Options(unittest.TestCase):
    def test_the_example_is_taken(self):
        server = Server("--config", str(DEPLOY / "tenon.toml"), "--model", MODEL, "--target", "cpu", "--max-context",
                        "256", "--cache-tokens", "4096")
        self.addCleanup(server.stop)
        self.assertEqual(server.get("/v1/models").json()["data"][0]["id"], "qwen3.5")
        self.assertEqual(server.metric("tenon_max_batch"), 64)


class Container(unittest.TestCase):
    TEXT = (DEPLOY / "Dockerfile").read_text()

    def test_what_it_copies_is_there(self):
        copied = re.findall(r"^COPY (?!--from)(\S+) ", self.TEXT, re.M)
        self.assertTrue(copied)
        for each in copied:
            self.assertTrue((ROOT / each).exists(), each)

    @unittest.skipUnless(shutil.which("dpkg-query"), "no dpkg")
    def test_its_packages_have_what_the_program_needs(self):
        named = re.search(r"--no-install-recommends ([a-z0-9. +-]+) \\\n", self.TEXT.split("\nFROM", 1)[1])[1].split()
        linked = subprocess.run(["ldd", TENON], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"^\s*(\S+) => /", linked, re.M))
        there = {"libc.so.6", "libm.so.6", "libgcc_s.so.1"}  # in the image, or required by libstdc++6
        for package in named:
            files = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True, check=True).stdout
            own = {pathlib.Path(line).name for line in files.splitlines()}
            if package != "libstdc++6":  # may be linked into the program
                self.assertTrue(own & needed, f"nothing of {package} is needed")
            there |= own
        self.assertEqual(needed - there, set())


if __name__ == "__main__":
    unittest.main()
