#!/usr/bin/env python3
"""tenon serve as ranks that a launcher starts (torchrun, srun, mpirun): serve_ranks_test.py TENON."""
import os
import signal
import subprocess
import unittest

from serve_support import Client, Server, chat, free_port, long_chat
from support import PATIENCE, ROOT, TENON, wait_until

CHAT = "/v1/chat/completions"


def launched(rank, port, *options):
    """What a launcher starts on each host: the same command, and variables that say which rank it is."""
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "TENON_SECRET": "a secret of this job alone"}
    return subprocess.Popen([TENON, "serve", "--tp", "2", "--quiet", *options], cwd=ROOT, text=True,
                            env={**os.environ, **world}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Launched(unittest.TestCase):
    def start(self, *options):
        self.port = free_port()
        meeting = free_port()
        self.ranks = [launched(rank, meeting, "--port", str(self.port), *options) for rank in range(2)]
        for each in self.ranks:
            self.addCleanup(each.communicate)
            self.addCleanup(each.kill)

    def serve(self, *options):
        self.start(*options)
        wait_until(lambda: self.ask("GET", "/health") == 200 or self.ended())
        self.assertEqual(self.ended(), [])

    def ended(self):
        """What ranks said that are over."""
        return [each.stderr.read() for each in self.ranks if each.poll() is not None]

    def ask(self, method, path, body=None):
        try:
            client = Client(self.port)
        except OSError:
            return None
        try:
            client.ask(method, path, body)
            self.answer = client.read()
            return self.answer.status
        except (OSError, EOFError):
            return None
        finally:
            client.close()

    def begin(self):
        client = Client(self.port)
        self.addCleanup(client.close)
        client.ask("POST", CHAT, long_chat(max_tokens=60, stream=True))
        client.until(b"data: ")
        return client

    def rest_of(self, client):
        text = b""
        try:
            while client.more():
                text, client.held = text + client.held, b""
        except ConnectionError:
            pass
        return (text + client.held).decode()

    def test_rank_0_serves_and_the_other_follows(self):
        self.serve()
        alone = Server("--tp", "2", "--quiet")
        self.addCleanup(alone.stop)
        asked = chat(max_tokens=12, temperature=0)
        self.assertEqual(self.ask("POST", CHAT, asked), 200)
        self.assertEqual(self.answer.json()["choices"], alone.post(CHAT, asked).json()["choices"])
        # A launcher passes a signal on to all ranks: what runs may end nevertheless.
        running = self.begin()
        for each in reversed(self.ranks):
            each.send_signal(signal.SIGTERM)
        self.assertTrue(self.rest_of(running).rstrip("0\r\n").endswith("data: [DONE]"))
        self.assertEqual([each.wait(PATIENCE) for each in self.ranks], [-signal.SIGTERM] * 2)

    def test_a_rank_that_dies_ends_the_server_and_is_named(self):
        self.serve("--deadline-ms", "10000")
        running = self.begin()
        self.ranks[1].kill()
        self.assertIn("rank 1", self.rest_of(running))
        self.assertEqual(self.ranks[0].wait(PATIENCE), 1)
        self.assertIn("rank 1", self.ranks[0].stderr.read())

    def test_a_follower_does_not_outlive_its_leader(self):
        self.serve("--deadline-ms", "10000")
        self.ranks[0].kill()
        self.assertEqual(self.ranks[1].wait(PATIENCE), 1)
        self.assertIn("rank 0 is gone", self.ranks[1].stderr.read())

    def test_hosts_cannot_be_joined_without_devices(self):
        self.start("--transport", "ccl")
        for each in self.ranks:
            self.assertEqual(each.wait(PATIENCE), 1)
            self.assertIn("NCCL serves devices, not cpu", each.stderr.read())


if __name__ == "__main__":
    unittest.main()
