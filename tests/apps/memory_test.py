#!/usr/bin/env python3
"""The program while some allocations fail: memory_test.py PATH_TO_TENON PATH_TO_SCARCE_MEMORY.

Whatever fails, nothing hangs and nothing ends by a signal: a start ends with success or with one
sentence, and of a server every request ends, after which it serves again or has ended with one
sentence. Needs checkpoints/tiny.
"""
import mmap
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SCARCE_MEMORY = sys.argv.pop() if len(sys.argv) > 2 else ""
import serve_support as serve
import support

SOON = 20  # seconds; the deadline of ranks is 30


@unittest.skipIf(support.SANITIZED, "sanitizers have their own operator new")
class Scarce(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = pathlib.Path(folder.name) / "control"
        file.write_bytes(bytes(8))
        with open(file, "r+b") as opened:
            self.control = mmap.mmap(opened.fileno(), 8)
        self.addCleanup(self.control.close)
        self.environment = {"SCARCE_MEMORY": str(file), "LD_PRELOAD": SCARCE_MEMORY}

    def let_fail(self, chance):
        self.control[:4] = struct.pack("=I", int(chance * 2**32))

    def failed(self):
        return struct.unpack("=I", self.control[4:])[0]


class Run(Scarce):
    def test_one_sentence_and_soon(self):
        codes = set()
        for chance in (1e-6, 1e-5, 3e-5, 1e-4, 1e-3):
            for options in ([], ["--tp", "4"], ["--processes"], ["--processes", "--tp", "4"]):
                with self.subTest(chance=chance, options=options):
                    self.let_fail(chance)
                    begin = time.monotonic()
                    done = subprocess.run([support.TENON, "run", "--json", "--prompt", "Tom", "--max-new-tokens", "4",
                                           "--deadline-ms", "30000", *options], capture_output=True, text=True,
                                          cwd=support.ROOT, timeout=120, check=False,
                                          env={**os.environ, **self.environment})
                    self.assertLess(time.monotonic() - begin, SOON, done.stderr)
                    self.assertIn(done.returncode, (0, 1), done.stderr)
                    if done.returncode == 1:
                        self.assertRegex(done.stderr, r"\Atenon: .*\n\Z")
                    codes.add(done.returncode)
        if self.failed() == 0:
            self.skipTest("the program has an operator new of its own")
        self.assertIn(1, codes)


class Serve(Scarce):
    def setUp(self):
        super().setUp()
        self.server = None
        self.addCleanup(lambda: self.server and self.server.stop())

    def start(self):
        os.environ.update(self.environment)
        try:
            self.server = serve.Server("--quiet")
        finally:
            for name in self.environment:
                del os.environ[name]

    def ask(self, number, ended):
        """A request that ends in whatever way, but ends."""
        try:
            client = self.server.client(timeout=SOON)
            self.addCleanup(client.close)
            client.ask("POST", "/v1/chat/completions", serve.chat(max_tokens=30, stream=number % 2 == 0))
            ended.append(client.read().status)
        except TimeoutError:
            ended.append("hangs")
        except (OSError, EOFError, ValueError):
            ended.append("closed")

    def serves(self):
        try:
            return self.server.post("/v1/chat/completions", serve.chat(max_tokens=2)).status == 200
        except (OSError, EOFError):
            return False

    def test_every_request_ends(self):
        for chance in (3e-5, 1e-4, 3e-4, 3e-4, 1e-3, 1e-3, 1e-2):
            if self.server is None:
                self.start()
            self.let_fail(chance)
            ended, asking = [], []
            for number in range(24):
                asking.append(threading.Thread(target=self.ask, args=(number, ended)))
                asking[-1].start()
            for each in asking:
                each.join()
            self.let_fail(0)
            self.assertEqual(len(ended), 24)
            self.assertNotIn("hangs", ended, (chance, self.server.log))
            until = time.monotonic() + SOON
            while not self.serves() and self.server.process.poll() is None:
                self.assertLess(time.monotonic(), until, (chance, ended, self.server.log))
            if self.server.process.poll() is None:
                continue
            self.assertEqual(self.server.stop(), 1, (chance, self.server.log))
            self.assertRegex(self.server.log[-1], "^tenon: .*the host has no more memory$", chance)
            self.server = None
        if self.failed() == 0:
            self.skipTest("the program has an operator new of its own")


if __name__ == "__main__":
    unittest.main()
