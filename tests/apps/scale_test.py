#!/usr/bin/env python3
"""tenon serve under many clients at a time. Slow, so ctest leaves it to the label scale:

    ctest --test-dir build/cpu -C scale -L scale
"""
import json
import selectors
import socket
import statistics
import time
import unittest

from serve_support import Server, chat
from support import wait_until

CHAT = "/v1/chat/completions"
STREAMS, TOKENS = 1024, 8
BUDGET = 900  # seconds


def resident_mib(process):
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:"))


class Stream:
    """A request on a connection of its own, read when there is something."""

    def __init__(self, port, body, path=CHAT):
        data = json.dumps(body).encode()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nhost: localhost\r\n"
                            b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
                            + str(len(data)).encode() + b"\r\n\r\n" + data)
        self.socket.setblocking(False)
        self.began, self.first, self.ended, self.bytes = time.monotonic(), None, None, b""

    def read(self):
        """False when the server has closed."""
        data = self.socket.recv(1 << 16)
        if data and self.first is None:
            self.first = time.monotonic()
        self.bytes += data
        if not data:
            self.ended = time.monotonic()
        return bool(data)

    def events(self):
        """How many have come."""
        return self.bytes.count(b"data: ")

    def tokens(self):
        """Of a whole answer."""
        head, _, body = self.bytes.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), self.bytes[:300]
        lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        assert lines[-1] == b"[DONE]", lines[-3:]
        events = [json.loads(line) for line in lines[:-1]]
        return [token for event in events for choice in event["choices"] for token in choice.get("token_ids", ())]


class ManyStreams(unittest.TestCase):
    def test_none_is_lost_and_half_may_leave(self):
        server = Server("--max-context", "512", "--max-batch", "64", "--max-queued", str(STREAMS),
                        "--max-connections", str(STREAMS + 16), "--quiet")
        self.addCleanup(server.stop)
        asked = {}

        def body(kind):
            return chat(f"Tom has {kind + 2} boxes of 12 pencils. How many pencils does he have?", temperature=0,
                        max_tokens=TOKENS, ignore_eos=True, stream=True, return_token_ids=True)

        for kind in range(8):  # what each question is answered with when it is alone
            alone = Stream(server.port, body(kind))
            alone.socket.settimeout(60)
            while alone.read():
                pass
            alone.socket.close()
            asked[kind] = alone.tokens()
            self.assertEqual(len(asked[kind]), TOKENS)
        before = resident_mib(server.process)

        began = time.monotonic()
        streams = [Stream(server.port, body(i % 8)) for i in range(STREAMS)]
        selector = selectors.DefaultSelector()
        for i, stream in enumerate(streams):
            selector.register(stream.socket, selectors.EVENT_READ, i)
        most, open_ones, left = before, set(range(STREAMS)), set()
        next_look = 0
        while open_ones and time.monotonic() < began + BUDGET:
            for key, _ in selector.select(timeout=1):
                if not streams[key.data].read():
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    open_ones.discard(key.data)
            if time.monotonic() > next_look:
                most = max(most, resident_mib(server.process))
                next_look = time.monotonic() + 0.2
            # The second half leaves once the server is busy with the first: some run, most wait.
            if not left and any(stream.first for stream in streams):
                left = set(range(STREAMS // 2, STREAMS)) & open_ones
                for i in left:
                    selector.unregister(streams[i].socket)
                    streams[i].socket.close()
                open_ones -= left
        selector.close()
        whole = [i for i in range(STREAMS) if i not in left]
        self.assertFalse(open_ones, f"{len(open_ones)} streams have not ended in {BUDGET} s")
        self.assertGreater(len(left), STREAMS // 4)
        for i in whole:  # all there, and each what it is alone
            self.assertEqual(streams[i].tokens(), asked[i % 8], i)
        waits = [streams[i].first - streams[i].began for i in whole]
        print(f"\n{STREAMS} streams, {len(left)} left, {len(whole)} whole in {time.monotonic() - began:.1f} s; first "
              f"token after {statistics.median(waits):.2f} s (median), {max(waits):.2f} s (longest); memory "
              f"{before:.0f} MiB before, at most {most:.0f} MiB")
        # A connection costs its buffers, a waiting request its prompt: well below 1 MiB each.
        self.assertLess(most - before, STREAMS / 2, "MiB")
        self.assertTrue(wait_until(lambda: server.metric("vllm:num_requests_running")
                                   + server.metric("vllm:num_requests_waiting") == 0))
        self.assertTrue(wait_until(lambda: server.metric("tenon_http_connections") == 1))
        self.assertEqual(server.get("/health").status, 200)

    def test_those_that_leave_give_back_their_caches_within_a_step(self):
        """All run together here, so that nobody who waits takes at once what is free."""
        server = Server("--max-context", "128", "--max-batch", str(STREAMS), "--step-tokens", str(STREAMS + 64),
                        "--max-connections", str(STREAMS + 16), "--prefix-states", "0", "--quiet")
        self.addCleanup(server.stop)
        body = {"prompt": [5, 6, 7, 8], "max_tokens": 56, "temperature": 0, "ignore_eos": True, "stream": True}
        streams = [Stream(server.port, body, "/v1/completions") for _ in range(STREAMS)]
        self.addCleanup(lambda: [stream.socket.close() for stream in streams])
        selector = selectors.DefaultSelector()
        for i, stream in enumerate(streams):
            selector.register(stream.socket, selectors.EVENT_READ, i)
        until = time.monotonic() + BUDGET

        def read_on():
            for key, _ in selector.select(timeout=0.01):
                streams[key.data].read()

        def look():
            read_on()
            names = ("vllm:num_requests_running", "tenon_engine_steps_total", "tenon_state_slots_used",
                     "vllm:kv_cache_usage_perc")
            return [server.metric(name) for name in names]

        while not all(stream.first for stream in streams) and time.monotonic() < until:
            read_on()
        running, steps, slots, blocks = look()
        while (running, slots) != (STREAMS, STREAMS) and time.monotonic() < until:
            running, steps, slots, blocks = look()
        self.assertEqual((running, slots), (STREAMS, STREAMS))
        self.assertGreater(blocks, 0)
        for stream in streams[1::2]:
            selector.unregister(stream.socket)
            stream.socket.close()
        drawn, closed = streams[0].events(), time.monotonic()
        while look()[0] > STREAMS / 2 and time.monotonic() < until:
            pass
        seconds, more = time.monotonic() - closed, streams[0].events() - drawn
        # What the engine tells of itself is some steps old: the second news from here on are of a step behind this one.
        running, after, slots, rest = look()
        for _ in range(2):
            steps = after
            while after == steps and time.monotonic() < until:
                running, after, slots, rest = look()
        print(f"\n{STREAMS} streams run, {STREAMS // 2} leave: gone after {seconds:.2f} s, in which the others drew "
              f"{more} tokens each; state slots {STREAMS} before, {slots:.0f} after, blocks {blocks:.3f} and {rest:.3f}")
        # The step in which they left, the one in which they are dropped, and one that the client has not yet read.
        self.assertLessEqual(more, 3)
        self.assertEqual((running, slots), (STREAMS / 2, STREAMS / 2))
        self.assertAlmostEqual(rest, blocks / 2)
        self.assertLess(streams[0].events(), 50)  # nobody ended because the answer was whole


if __name__ == "__main__":
    unittest.main()
