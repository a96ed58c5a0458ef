#!/usr/bin/env python3
"""The program while some allocations fail: memory_test.py PATH_TO_TENON PATH_TO_SCARCE_MEMORY.

Whatever fails, nothing hangs and nothing ends by a signal: a start ends with success or with one
sentence, and of a server every request ends, after which it serves again or has ended with one
sentence. Needs checkpoints/tiny. TEST_SEED=N fails others than 1 does; what threads share decides
as well.
"""
import mmap
import os
import pathlib
import signal
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

DEADLINE, SOON = 120, 60  # seconds: of ranks, and of what ends though others have ended
SEED = int(os.environ.get("TEST_SEED", "1"))
EVERY_MODE = ([], ["--tp", "4"], ["--processes"], ["--processes", "--tp", "4"])


@unittest.skipIf(support.SANITIZED, "sanitizers have their own operator new")
class Scarce(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = pathlib.Path(folder.name) / "control"
        file.write_bytes(bytes(16))
        with open(file, "r+b") as opened:
            self.control = mmap.mmap(opened.fileno(), 16)
        self.addCleanup(self.control.close)
        self.environment = {"SCARCE_MEMORY": str(file), "LD_PRELOAD": SCARCE_MEMORY}
        self.seed = SEED

    def let_fail(self, chance, rank=0):
        """Returns what a message should say."""
        self.seed += 1
        self.control[:8] = struct.pack("=II", min(int(chance * 2**32), 2**32 - 1), self.seed)
        self.control[12:] = struct.pack("=I", rank)
        return f"chance {chance}, seed {self.seed}"

    def failed(self):
        return struct.unpack("=I", self.control[8:12])[0]

    def one_sentence(self, complaint):
        self.assertRegex(complaint, r"\Atenon: .*\n\Z")


class Run(Scarce):
    def end(self, *options):
        """Exit code and complaint."""
        begin = time.monotonic()
        done = subprocess.run([support.TENON, "run", "--json", "--prompt", "Tom", "--max-new-tokens", "4",
                               "--deadline-ms", str(DEADLINE * 1000), *options], capture_output=True, text=True,
                              cwd=support.ROOT, timeout=2 * DEADLINE, check=False,
                              env={**os.environ, **self.environment})
        self.assertLess(time.monotonic() - begin, SOON, done.stderr)
        self.assertIn(done.returncode, (0, 1), done.stderr)
        if done.returncode == 1:
            self.one_sentence(done.stderr)
        return done.returncode, done.stderr

    def test_one_sentence_and_soon(self):
        codes = set()
        for chance in (1e-6, 1e-5, 3e-5, 1e-4, 1e-3):
            for options in EVERY_MODE:
                with self.subTest(self.let_fail(chance), options=options):
                    codes.add(self.end(*options)[0])
        self.assertGreater(self.failed(), 0)
        self.assertIn(1, codes)

    def test_a_rank_that_ends_before_it_connects(self):
        self.let_fail(1, rank=2)
        code, complaint = self.end("--processes", "--tp", "4")
        self.assertEqual(code, 1)
        self.assertIn("to connect: the process of rank 2 ended with exit code 1", complaint)


class Serve(Scarce):
    def start(self, *options):
        """The server, or None where it has ended with one sentence."""
        try:
            return serve.Server("--quiet", "--deadline-ms", str(DEADLINE * 1000), *options,
                                environment=self.environment)
        except serve.NotServed as ended:
            self.assertEqual(ended.code, 1, ended)
            self.one_sentence(str(ended))
            return None

    def test_starts(self):
        began = []
        for chance in (1e-6, 1e-5, 1e-5, 1e-4, 1e-3):
            for options in EVERY_MODE:
                with self.subTest(self.let_fail(chance), options=options):
                    server = self.start(*options)
                    began.append(server is not None)
                    if server is not None:
                        self.let_fail(0)
                        self.assertEqual(server.stop(), -signal.SIGTERM)
        self.assertIn(False, began)

    def ask(self, server, number, ended):
        """A request that ends in whatever way, but ends."""
        try:
            client = server.client(timeout=SOON)
            self.addCleanup(client.close)
            client.ask("POST", "/v1/chat/completions", serve.chat(max_tokens=30, stream=number % 2 == 0))
            ended.append(client.read().status)
        except TimeoutError:
            ended.append("hangs")
        except (OSError, EOFError, ValueError):
            ended.append("closed")

    @staticmethod
    def serves(server):
        try:
            return server.post("/v1/chat/completions", serve.chat(max_tokens=2)).status == 200
        except (OSError, EOFError):
            return False

    def test_every_request_ends(self):
        server = None
        for chance in (3e-5, 1e-4, 3e-4, 3e-4, 1e-3, 1e-3, 1e-2):
            if server is None:
                server = self.start()
            told = self.let_fail(chance)
            ended, asking = [], []
            for number in range(24):
                asking.append(threading.Thread(target=self.ask, args=(server, number, ended)))
                asking[-1].start()
            for each in asking:
                each.join()
            self.let_fail(0)
            self.assertEqual(len(ended), 24, told)
            self.assertNotIn("hangs", ended, (told, server.log))
            until = time.monotonic() + SOON
            while not self.serves(server) and server.process.poll() is None:
                self.assertLess(time.monotonic(), until, (told, ended, server.log))
            if server.process.poll() is None:
                continue
            self.assertEqual(server.stop(), 1, (told, server.log))
            self.assertRegex(server.log[-1], "^tenon: .*the host has no more memory$", told)
            server = None
        if server is not None:
            server.stop()
        self.assertGreater(self.failed(), 0)


if __name__ == "__main__":
    unittest.main()
