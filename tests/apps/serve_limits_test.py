#!/usr/bin/env python3
"""tenon serve against clients that send nonsense, too much, too slowly, leave or do not read; and its end."""
import contextlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from serve_support import Server, chat, long_chat
from support import PATIENCE, ROOT, SANITIZED, TENON, children_of, tenon, wait_until

CHAT = "/v1/chat/completions"
LONG = 1900  # tokens
CHUNKED = f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode()


class Served(unittest.TestCase):
    OPTIONS = ()

    def start(self, *options):
        self.server = Server("--max-context", "2048", *self.OPTIONS, *options)

    def quiet(self):
        """Whether nothing runs and nothing waits, soon."""
        return wait_until(lambda: self.server.metric("vllm:num_requests_running")
                          + self.server.metric("vllm:num_requests_waiting") == 0)


class Wire(Served):
    def setUp(self):
        self.start("--max-body-mb", "1", "--request-seconds", "1", "--quiet")
        self.addCleanup(self.server.stop)
        self.client = self.server.client()
        self.addCleanup(lambda: self.client.close())

    def fresh(self):
        self.client.close()
        self.client = self.server.client()
        return self.client

    def test_connections_are_kept(self):
        for _ in range(3):
            self.client.ask("POST", CHAT, chat(max_tokens=2))
            self.assertEqual(self.client.read().status, 200)
            self.client.ask("POST", CHAT, chat(max_tokens=2, stream=True))
            self.assertTrue(self.client.read().events())
        self.client.ask("GET", "/nowhere")  # a refusal keeps it too
        self.assertEqual(self.client.read().status, 404)
        self.client.ask("GET", "/health", fields=[("connection", "close")])
        self.assertEqual(self.client.read().fields["connection"], "close")
        self.assertTrue(self.client.closed())

    def test_forms_of_requests(self):
        for _ in range(2):  # pipelined
            self.client.ask("POST", CHAT, chat(max_tokens=2))
        self.assertEqual([self.client.read().status for _ in range(2)], [200, 200])
        self.client.ask("HEAD", "/health")
        self.assertGreater(int(self.client.read(bodyless=True).fields["content-length"]), 0)
        body = json.dumps(chat(max_tokens=2)).encode()
        self.client.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: Application/JSON; charset=utf-8\r\n"
                         f"content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n".encode())
        self.assertEqual(self.client.head()[0], 100)
        self.client.send(body)
        self.assertEqual(self.client.read().status, 200)
        self.client.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                         "transfer-encoding: chunked\r\n\r\n".encode())
        for part in (body[:10], body[10:], b""):
            self.client.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.assertEqual(self.client.read().status, 200)
        # Empty lines between requests count as nothing, also where they wait for one.
        self.client.send(b"\r\n\r\n\r")
        time.sleep(1.5)
        self.client.send(b"\n")
        self.client.ask("GET", "http://localhost/health")  # as a proxy is asked
        self.assertEqual(self.client.read().status, 200)
        self.fresh().ask("POST", CHAT, chat(max_tokens=4, stream=True), version="1.0")
        answer = self.client.read()  # the end of the connection is the end of the answer
        self.assertNotIn("transfer-encoding", answer.fields)
        self.assertTrue(answer.body.endswith(b"[DONE]\n\n"))

    def test_what_is_no_request(self):
        for data in (b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x01 HTTP/1.1\r\n\r\n",
                     b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                     b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
                     b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
                     CHUNKED + b"zz\r\n"):
            self.fresh().send(data)
            answer = self.client.read()
            self.assertEqual((answer.status, answer.fields["connection"]), (400, "close"), data)
            self.assertTrue(answer.json()["error"]["message"])
            self.assertTrue(self.client.closed())
        self.assertEqual(self.server.get("/health").status, 200)

    def test_codings_that_are_not_undone(self):
        """Each is refused before its body is read, which would be taken for compressed JSON or for a next request."""
        for codings in (["gzip, chunked"], ["chunked, gzip"], ["gzip"], ["gzip", "chunked"], ["chunked, chunked"], ["x" * 99]):
            lines = "".join(f"transfer-encoding: {each}\r\n" for each in codings)
            self.fresh().send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{lines}\r\n".encode()
                              + b"18\r\nGET /health HTTP/1.1\r\n\r\n\r\n0\r\n\r\n")
            answer = self.client.read()
            self.assertEqual((answer.status, answer.fields["connection"]), (501, "close"), codings)
            message = answer.json()["error"]["message"]
            self.assertTrue(any(f'is "{each}"' in message for each in codings), message)
            self.assertIn('accepted is "chunked", or a content-length', message)
            self.assertTrue(self.client.closed())

    def test_too_long(self):
        for body in (b'"' + b"a" * (2 << 20) + b'"', b"a" * (20 << 20)):  # still being sent, too
            client = self.fresh()
            sender = threading.Thread(target=lambda: self.send_all(client, body))
            sender.start()
            self.assertEqual(client.read().status, 413)
            sender.join(PATIENCE)
            self.assertTrue(client.closed())
        self.fresh().send(b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n")
        self.assertEqual(self.client.read().status, 431)
        self.fresh().send(CHUNKED + b"7ffffff\r\n" + b"a" * 99)
        self.assertEqual(self.client.read().status, 413)

    @staticmethod
    def send_all(client, body):
        try:
            client.ask("POST", CHAT, body)
        except OSError:  # it was cut off
            pass

    def test_too_slow(self):
        self.client.send(b"GET / HT")
        answer = self.client.read()
        self.assertEqual(answer.status, 408)
        self.assertTrue(self.client.closed())
        # A byte now and then does not help.
        begin = time.monotonic()
        self.fresh()
        try:
            while time.monotonic() < begin + PATIENCE:
                self.client.send(b"x")
                time.sleep(0.1)
        except OSError:
            pass
        self.assertLess(time.monotonic(), begin + PATIENCE / 2)
        self.assertTrue(self.fresh().closed())  # one that sends nothing at all

    def test_bodies_that_are_only_announced_take_no_room(self):
        self.server.stop()
        self.start("--max-body-mb", "512", "--quiet")  # as much as all bodies may have together
        self.addCleanup(self.server.stop)
        for length in ("content-length: 536870912", "transfer-encoding: chunked"):
            waiting = self.fresh()
            waiting.send(f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode())
            time.sleep(0.2)
            self.assertEqual(self.server.post(CHAT, chat(max_tokens=1)).status, 200)

    @unittest.skipIf(SANITIZED, "sanitizers need more addresses")
    def test_a_body_that_finds_no_memory_is_refused_alone(self):
        self.server.stop()
        self.start("--max-body-mb", "512", "--quiet")
        self.addCleanup(self.server.stop)
        status = pathlib.Path(f"/proc/{self.server.process.pid}/status").read_text()
        addresses = int(re.search(r"VmSize:\s+(\d+) kB", status)[1]) << 10
        resource.prlimit(self.server.process.pid, resource.RLIMIT_AS,
                         (addresses + (300 << 20), resource.RLIM_INFINITY))
        megabyte = b" " * (1 << 20)
        chunk = b"%x\r\n" % len(megabyte) + megabyte + b"\r\n"
        for framing, piece in (("content-length: 536870912", megabyte), ("transfer-encoding: chunked", chunk)):
            with self.subTest(framing):
                client = self.fresh()
                client.send(f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\n{framing}\r\n\r\n".encode())
                with contextlib.suppress(ConnectionError):
                    for _ in range(500):
                        client.send(piece)
                answer = client.read()
                self.assertEqual((answer.status, answer.fields["retry-after"]), (503, "1"))
                self.assertIn("no memory for the request's body", answer.json()["error"]["message"])
                self.assertEqual(self.server.post(CHAT, chat(max_tokens=1)).status, 200)

    def test_connections_have_a_limit(self):
        self.server.stop()
        self.start("--max-connections", "2", "--quiet")
        self.addCleanup(self.server.stop)
        kept = [self.server.client() for _ in range(2)]
        for client in kept:
            client.ask("GET", "/health")
            self.assertEqual(client.read().status, 200)
        refused = self.server.client()
        answer = refused.read()
        self.assertEqual((answer.status, answer.fields["retry-after"]), (503, "1"))
        for client in [*kept, refused]:
            client.close()
        self.assertTrue(wait_until(lambda: self.server.get("/health").status == 200))


class Clients(Served):
    OPTIONS = ("--max-batch", "1", "--max-queued", "1", "--max-untaken-tokens", "50", "--write-seconds", "600")

    def setUp(self):
        self.start()
        self.addCleanup(lambda: self.server.stop())  # whichever it is then

    def begin(self, **more):
        """One that runs for long; its first event has come where it streams."""
        client = self.server.client(receive_bytes=more.pop("receive_bytes", None))
        self.addCleanup(client.close)
        client.ask("POST", CHAT, long_chat(max_tokens=LONG, **more))
        if more.get("stream"):
            client.until(b"data: ")
        else:
            self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_running") == 1))
        return client

    def test_those_that_leave_are_cancelled(self):
        for count, stream in enumerate((True, False), 1):
            client = self.begin(stream=stream)
            made = self.server.metric("vllm:generation_tokens_total")
            client.close()
            self.assertTrue(self.quiet())
            self.assertLess(self.server.metric("vllm:generation_tokens_total") - made, LONG)
            self.assertEqual(self.server.metric("vllm:request_success_total"), count)
        self.assertTrue(wait_until(lambda: any("end" not in line and " 499 " in line
                                               for line in self.server.log)))
        text = self.server.get("/metrics").body.decode()
        self.assertRegex(text, r'vllm:request_success_total\{.*finished_reason="abort"\} 2')

    def test_one_that_leaves_while_it_waits(self):
        first = self.begin(stream=True)
        second = self.server.client()
        second.ask("POST", CHAT, long_chat(max_tokens=LONG, stream=True))
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_waiting") == 1))
        answer = self.server.post(CHAT, chat())
        self.assertEqual((answer.status, answer.fields["retry-after"]), (429, "1"), answer.body)
        self.assertEqual(answer.json()["error"]["code"], "queue_full")
        second.close()
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_waiting") == 0))
        self.assertEqual(self.server.metric("vllm:num_requests_running"), 1)
        first.close()
        self.assertTrue(self.quiet())

    def test_more_answers_than_may_wait(self):
        for path, body, param in (("/v1/completions", {"prompt": "a", "n": 2}, "n"),
                                  ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
                                  ("/generate", {"text": "a", "sampling_params": {"n": 2}},
                                   "sampling_params.n")):
            answer = self.server.post(path, body)
            self.assertEqual((answer.status, answer.json()["error"]["param"]), (400, param), answer.body)
            self.assertIn("asks for 2 answers; accepted are 1", answer.json()["error"]["message"])
        self.assertEqual(self.server.post("/v1/completions", {"prompt": "a", "n": 2, "max_tokens": 0}).status, 200)

    def test_counts_add_up(self):
        """Every accepted answer ends in the metrics, also those of a request that fails as a whole."""
        self.server.stop()
        self.OPTIONS = ("--max-batch", "1", "--max-queued", "4")
        self.start()
        first = self.begin(stream=True)
        taken = self.server.client()  # 3 of 4 places
        self.addCleanup(taken.close)
        taken.ask("POST", "/v1/completions", {"prompt": [5, 6], "n": 3, "max_tokens": LONG, "ignore_eos": True})
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_waiting") == 3))
        before = self.server.metric("vllm:prompt_tokens_total")
        answer = self.server.post("/v1/completions", {"prompt": [5, 6], "n": 3})
        self.assertEqual(answer.status, 429, answer.body)
        # The one that was taken counts, and ended; those that were not count nowhere.
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:request_success_total") == 1))
        self.assertEqual(self.server.metric("vllm:prompt_tokens_total"), before + 2)
        taken.close()
        first.close()
        self.assertTrue(self.quiet())
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:request_success_total") == 5))

    def test_one_that_leaves_while_its_prompt_is_read(self):
        client = self.server.client()
        client.ask("POST", "/v1/completions", {"prompt": [5] * 2000, "max_tokens": 40, "stream": True,
                                               "ignore_eos": True})
        client.close()
        self.assertTrue(self.quiet())
        self.assertEqual(self.server.post(CHAT, chat()).status, 200)

    def test_one_that_closes_its_sending_half(self):
        """Of a connection that is half open nobody knows whether its answer would be read."""
        for stream in (True, False):
            client = self.begin(stream=stream)
            client.socket.shutdown(socket.SHUT_WR)
            self.assertTrue(self.quiet())
            client.close()
        # With half a request it is told so, or closed.
        client = self.server.client()
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                    "content-length: 99\r\n\r\n{".encode())
        client.socket.shutdown(socket.SHUT_WR)
        while client.more():
            pass
        self.assertRegex(client.held, b"^(HTTP/1.1 400|$)")
        client.close()
        self.assertEqual(self.server.post(CHAT, chat(max_tokens=2)).status, 200)

    def test_one_that_may_have_vanished_is_asked(self):
        """The system sends probes on a silent connection, the first of them within 30 s: timer 2 of /proc/net/tcp,
        in hundredths of a second."""
        client = self.begin(stream=False)

        def timer():
            ends = [f"0100007F:{port:04X}" for port in (self.server.port, client.socket.getsockname()[1])]
            for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
                words = line.split()
                if words[1:3] == ends:
                    return words[5].split(":")

        self.assertTrue(wait_until(lambda: timer()[0] == "02"), timer())
        self.assertLessEqual(int(timer()[1], 16), 3000)

    def test_one_that_does_not_read(self):
        client = self.begin(stream=True, receive_bytes=2048, stream_options={
            "include_usage": True, "continuous_usage_stats": True})
        self.assertTrue(self.quiet())  # though nobody reads
        other = self.server.post(CHAT, chat())
        self.assertEqual(other.status, 200)
        self.assertIn(b"reader_behind", self.drained(client))

    @staticmethod
    def drained(client):
        while client.more():
            if client.held.endswith(b"0\r\n\r\n"):
                break
        return client.held


class Keys(Served):
    def test_keys(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "keys"
            path.write_text("first\n\nsecond\n")
            self.start("--api-key-file", str(path), "--api-key", "third", "--quiet")
            self.addCleanup(self.server.stop)
        for key in ("first", "second", "third"):
            for field in (("authorization", f"Bearer {key}"), ("x-api-key", key)):
                self.assertEqual(self.server.get("/v1/models", [field]).status, 200)
        for fields in ([], [("authorization", "Bearer firs")], [("x-api-key", "first2")],
                       [("authorization", "first")], [("authorization", "Bearer ")]):
            answer = self.server.get("/v1/models", fields)
            self.assertEqual((answer.status, answer.json()["error"]["code"]), (401, "invalid_api_key"))
            self.assertEqual(self.server.post(CHAT, chat(), fields).status, 401)
            self.assertEqual(self.server.get("/nowhere", fields).status, 401)
        for path in ("/health", "/metrics", "/version"):
            self.assertEqual(self.server.get(path).status, 200)


    def test_a_body_without_its_key_is_not_read(self):
        self.start("--api-key", "first", "--quiet")
        self.addCleanup(self.server.stop)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        for length in ("content-length: 30000000", "transfer-encoding: chunked", "content-length: 5",
                       "content-length: 30000000\r\nexpect: 100-continue"):
            client = self.server.client()
            client.send((head + length + "\r\n\r\n").encode())  # and nothing of the body
            answer = client.read()
            self.assertEqual((answer.status, answer.fields["connection"]), (401, "close"), length)
            self.assertEqual(answer.json()["error"]["code"], "invalid_api_key")
            self.assertTrue(client.closed())
            client.close()
        # A client that sends all of it first reads the answer nevertheless.
        answer = self.server.post(CHAT, b" " * 8_000_000)
        self.assertEqual((answer.status, answer.fields["connection"]), (401, "close"))
        # So it is with a path, a method and a type that take no body of this kind.
        keyed = ("authorization", "Bearer first")
        for path, fields, status in (("/nowhere", [keyed], 404), ("/v1/models", [keyed], 405),
                                     (CHAT, [keyed, ("content-type", "text/plain")], 415)):
            answer = self.server.post(path, b" " * 8_000_000, fields)
            self.assertEqual((answer.status, answer.fields["connection"]), (status, "close"), path)
        self.assertEqual(self.server.post(CHAT, chat(max_tokens=2), [keyed]).status, 200)


class End(Served):
    def begin(self, max_tokens):
        client = self.server.client()
        self.addCleanup(client.close)
        client.ask("POST", CHAT, long_chat(max_tokens=max_tokens, stream=True))
        client.until(b"data: ")
        return client

    @staticmethod
    def rest_of(client):
        try:
            while not client.held.endswith(b"0\r\n\r\n") and client.more():
                pass
        except ConnectionError:
            pass
        return client.held.decode()

    def test_what_runs_may_end(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.start()
            idle, running = self.server.client(), self.begin(200)
            idle.ask("GET", "/health")
            idle.read()
            self.server.process.send_signal(number)
            self.assertTrue(idle.closed())
            text = b""
            while running.more():
                text = running.held
            self.assertTrue(text.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"), text[-100:])
            self.assertIn(b'"finish_reason":"length"', text)
            self.assertEqual(self.server.stop(number), -number)
            idle.close()

    def test_what_does_not_end_is_cut_off(self):
        self.start("--drain-seconds", "0")
        running = self.begin(LONG)
        self.assertEqual(self.server.stop(), -signal.SIGTERM)
        while running.more():
            pass
        self.assertNotIn(b"[DONE]", running.held)

    def test_a_second_signal_ends_at_once(self):
        self.start()
        self.begin(LONG)
        self.server.process.send_signal(signal.SIGTERM)
        self.assertTrue(wait_until(lambda: any("second signal" in line for line in self.server.log)))
        self.assertEqual(self.server.stop(signal.SIGTERM), -signal.SIGTERM)

    def test_processes(self):
        self.start("--processes", "--quiet")
        self.assertEqual(self.server.post(CHAT, chat(max_tokens=4)).status, 200)
        children = pathlib.Path(f"/proc/{self.server.process.pid}/task/{self.server.process.pid}/children")
        child = int(children.read_text().split()[0])
        running = self.begin(LONG)
        os.kill(child, signal.SIGKILL)
        # A dead engine ends what runs and the server, which say why.
        text = self.rest_of(running)
        self.assertIn("error", text)
        self.assertIn("rank 1", text)
        self.assertEqual(self.server.process.wait(PATIENCE), 1)
        self.server.stop()
        self.assertTrue(any("rank 1" in line for line in self.server.log), self.server.log)


class Restart(Served):
    def child(self):
        children = pathlib.Path(f"/proc/{self.server.process.pid}/task/{self.server.process.pid}/children")
        return int(children.read_text().split()[0])

    def test_ranks_that_die_come_back(self):
        self.start("--processes", "--quiet", "--restart", "2", "--deadline-ms", "10000")
        self.addCleanup(self.server.stop)
        whole = self.server.post(CHAT, chat(max_tokens=12, temperature=0)).json()["choices"]
        sicknesses = 0
        for death in (1, 2):
            child = self.child()
            running = self.server.client()
            self.addCleanup(running.close)
            running.ask("POST", CHAT, long_chat(max_tokens=LONG, stream=True))
            running.until(b"data: ")
            os.kill(child, signal.SIGKILL)
            self.assertIn("rank 1", End.rest_of(running))
            # What runs is told after /health is 503, which it stays until the ranks are back.
            sick = self.server.get("/health")
            restarts = lambda: self.server.metric("tenon_engine_restarts_total")
            if restarts() < death:
                self.assertEqual(sick.status, 503)
                self.assertRegex(sick.json()["why"], "the engine is dead: .*rank 1")
                sicknesses += 1
            # The server stays, and answers as before when it can again.
            self.assertTrue(wait_until(lambda death=death: restarts() == death))
            self.assertEqual(self.server.get("/health").status, 200)
            self.assertNotEqual(self.child(), child)
            again = self.server.post(CHAT, chat(max_tokens=12, temperature=0))
            self.assertEqual((again.status, again.json()["choices"]), (200, whole))
        self.assertGreater(sicknesses, 0)
        os.kill(self.child(), signal.SIGKILL)
        self.assertIn(self.server.post(CHAT, chat()).status, (500, 503))
        self.assertEqual(self.server.process.wait(PATIENCE), 1)

    def test_ranks_of_others_are_not_started_again(self):
        world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        done = subprocess.run([TENON, "serve", "--restart", "1"], cwd=ROOT, env={**os.environ, **world},
                              capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("accepted is --restart 0", done.stderr)


class Health(Served):
    def test_a_rank_that_stops_in_the_middle_is_named(self):
        """Of three, and not the ones that wait for it."""
        self.start("--tp", "4", "--processes", "--quiet", "--stall-seconds", "1", "--deadline-ms", "120000")
        self.addCleanup(self.server.stop)
        children = children_of(self.server.process)
        for rank in (3, 1):
            client = self.server.client()
            self.addCleanup(client.close)
            client.ask("POST", CHAT, long_chat(max_tokens=400, stream=True))
            client.until(b"data: ")
            os.kill(children[rank - 1], signal.SIGSTOP)
            try:
                self.assertTrue(wait_until(lambda: self.server.get("/health").status == 503))
                # A step that runs from a recording says no more of its calls.
                place = rf"rank {rank} has not (begun|ended|come to call \d+ of) step \d+(, where others wait)?"
                named = (rf"no step has ended for \d+ ms: ({place}|ranks 0, 1, 2, 3 are all in step \d+); "
                         rf"nothing was heard of rank {rank} for \d+\.\d s$")
                said = []

                def is_named(named=named, said=said):
                    said.append(self.server.get("/health").json()["why"])
                    return re.search(named, said[-1])

                self.assertTrue(wait_until(is_named, 20), said[-1])
            finally:
                os.kill(children[rank - 1], signal.SIGCONT)
            self.assertTrue(wait_until(lambda: self.server.get("/health").status == 200))
            client.close()

    def test_an_engine_that_makes_no_progress(self):
        self.start("--processes", "--quiet", "--stall-seconds", "1", "--deadline-ms", "120000")
        self.addCleanup(self.server.stop)
        child = children_of(self.server.process)[0]
        os.kill(child, signal.SIGSTOP)
        try:
            time.sleep(1.6)  # without work nothing is amiss
            self.assertEqual(self.server.get("/health").status, 200)
            client = self.server.client()
            self.addCleanup(client.close)
            client.ask("POST", CHAT, chat(max_tokens=2))
            self.assertTrue(wait_until(lambda: self.server.get("/health").status == 503))
            self.assertIn("no step has ended", self.server.get("/health").json()["why"])
            self.assertEqual(self.server.metric("tenon_healthy"), 0)
            self.assertGreater(self.server.metric("tenon_stalled_seconds"), 1)
            self.assertTrue(wait_until(lambda: self.logged(
                r"tenon: requests wait, and no step has ended for \d+ ms: rank 1 has not (ended step 2|begun step 3); "
                r"nothing was heard of rank 1 for \d+\.\d s; who does not answer for 120\.0 s is given up$")), self.server.log)
            self.assertFalse(self.logged("end again"))
        finally:
            os.kill(child, signal.SIGCONT)
        self.assertEqual(client.read().status, 200)
        self.assertEqual(self.server.get("/health").status, 200)
        self.assertTrue(wait_until(lambda: self.logged("tenon: steps of the engine end again")))
        self.assertEqual(len(self.logged("no step has ended")), 1)  # once for each time

    def logged(self, pattern):
        return [line for line in self.server.log if re.search(pattern, line)]


class Starting(unittest.TestCase):
    def test_refusals(self):
        for words, code, piece in ((["--host", "nowhere.example"], 2, "accepted are localhost"),
                                   (["--port", "70000"], 2, "70000"),
                                   (["--api-key-file", "/nowhere"], 1, "/nowhere"),
                                   (["--api-key", ""], 2, '--api-key is ""; accepted is a key'),
                                   (["--api-key-file", ""], 2, '--api-key-file is ""; accepted is a path'),
                                   (["--served-model-name", ""], 2, "accepted is a name"),
                                   (["--allow-origin", "https://page.example/"], 2, "without a path"),
                                   (["--allow-origin", "page.example"], 2, '--allow-origin is "page.example"'),
                                   (["--step-tokens", "79"], 2, "with --max-batch 16 accepted are 80 to 8192"),
                                   (["--step-tokens", "64"], 2, "whole numbers from 65 to 8192, or auto"),
                                   (["--max-context", "long"], 2, "1048576, or auto"),
                                   (["--max-batch", "0"], 2, "8128, or auto"),
                                   (["--model", "/nowhere"], 1, "/nowhere")):
            done = tenon("serve", "--port", "0", *words)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(piece, done.stderr)

    def test_what_is_left_to_the_server(self):
        """The sizes of hosts; a context is no longer than the kv cache where nobody asked for one."""
        for words, context, batch, tokens in (([], 2048, 16, 256),
                                              (["--max-batch", "auto", "--cache-tokens", "640"], 640, 16, 256),
                                              (["--max-context", "auto", "--max-batch", "300"], 2048, 300, 364),
                                              (["--max-context", "96", "--step-tokens", "128"], 96, 16, 128)):
            server = Server(*words)
            try:
                said = (f"a request has at most {context} tokens, prompt and answer together; {batch} run together, "
                        f"in steps of at most {tokens} tokens")
                self.assertIn(said + "\n", server.log)
                self.assertEqual(server.get("/v1/models").json()["data"][0]["max_model_len"], context)
                self.assertEqual(server.metric("tenon_max_batch"), batch)
                refused = server.post("/v1/completions", {"prompt": [5] * context, "max_tokens": 1})
                self.assertEqual((refused.status, refused.json()["error"]["code"]), (400, "context_length_exceeded"))
                whole = server.post("/v1/completions", {"prompt": [5] * (context - 2), "max_tokens": 9,
                                                        "ignore_eos": True}).json()
                self.assertEqual((whole["usage"]["completion_tokens"], whole["choices"][0]["finish_reason"]),
                                 (2, "length"))
            finally:
                server.stop()

    def test_a_port_that_is_taken(self):
        server = Server("--quiet")
        try:
            done = tenon("serve", "--port", str(server.port))
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"127.0.0.1:{server.port}: Address already in use", done.stderr)
            self.assertNotIn("loaded", done.stderr)
        finally:
            server.stop()


if __name__ == "__main__":
    unittest.main()
