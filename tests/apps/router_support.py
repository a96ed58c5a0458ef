"""What a router of other people must find in front of two servers: the tests of sglang-router and of
vllm-router (serve_NAME_router_test.py) are these cases with their own command."""
import concurrent.futures
import signal
import subprocess
import tempfile
import threading
import time

from serve_support import Client, Server, chat, free_port
from support import PATIENCE, wait_until

CHAT = "/v1/chat/completions"
KINDS = ("pencils", "apples", "boxes", "coins", "books", "marbles")  # a conversation about each
TURNS = 4


def start_server(port=0):
    return Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet", port=port)


class Router:
    """In front of `servers`; it looks at their /health once a second."""

    def __init__(self, command, servers, policy):
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port), "--prometheus-port",
             str(free_port()), "--policy", policy, "--worker-urls",
             *(f"http://127.0.0.1:{each.port}" for each in servers), "--health-check-interval-secs", "1",
             "--health-failure-threshold", "1", "--health-success-threshold", "1",
             "--health-check-timeout-secs", "5", "--retry-max-retries", "8", "--log-level", "error"],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        if not wait_until(lambda: self.process.poll() is not None or self.num_healthy() == len(servers)):
            self.stop()
            raise AssertionError("the router found no servers")
        assert self.process.poll() is None, self.said()

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()[-3000:]

    def ask(self, method, path, body=None):
        client = Client(self.port, timeout=PATIENCE)
        try:
            client.ask(method, path, body)
            return client.read()
        finally:
            client.close()

    def num_healthy(self):
        try:
            answer = self.ask("GET", "/workers")
        except (OSError, EOFError):
            return 0
        return answer.status == 200 and sum(each["is_healthy"] for each in answer.json()["workers"])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def asked(text, **more):
    return {"model": "tiny", "temperature": 0, "max_tokens": 6, **chat(text), **more}


class RouterCases:
    """Cases of a unittest.TestCase whose `command` starts the router, which shows `idle_load` of a server
    without work."""
    command, idle_load = None, 0

    def setUp(self):
        self.servers = []
        for _ in range(2):
            self.servers.append(start_server())
            self.addCleanup(self.servers[-1].stop)

    def route(self, policy):
        router = Router(self.command, self.servers, policy)
        self.addCleanup(router.stop)
        return router

    def ended(self, server):
        return server.metric("vllm:request_success_total")

    def stop_hard(self, server):
        self.assertEqual(server.stop(signal.SIGKILL), -signal.SIGKILL)

    def test_turns_are_even_and_answers_the_same(self):
        router = self.route("round_robin")
        models = router.ask("GET", "/v1/models").json()["data"]
        self.assertEqual([each["id"] for each in models], ["tiny"])
        loads = router.ask("GET", "/get_loads").json()["workers"]
        self.assertEqual([each["load"] for each in loads], [self.idle_load] * 2)
        wanted = self.servers[0].post(CHAT, asked("How many?")).json()["choices"][0]["message"]["content"]
        before = [self.ended(each) for each in self.servers]
        for turn in range(8):
            if turn % 2:
                content = "".join(each["choices"][0]["delta"].get("content") or "" for each in router.ask(
                    "POST", CHAT, asked("How many?", stream=True)).events())
            else:
                content = router.ask("POST", CHAT, asked("How many?")).json()["choices"][0]["message"][
                    "content"]
            self.assertEqual(content, wanted)
        self.assertEqual([self.ended(each) - old for each, old in zip(self.servers, before)], [4, 4])
        missing = router.ask("POST", CHAT, {**asked("How many?"), "model": "other"})
        self.assertEqual((missing.status, missing.json()["error"]["code"]), (404, "model_not_found"))

    def check_how_prompts_were_read(self):
        """For a router that lets a server read them."""

    def test_one_beginning_stays_with_one_server(self):
        router = self.route("cache_aware")

        def talk(kind):
            kept, messages = [], []
            for turn in range(TURNS):
                said = f"Tom counts {kind} in many rooms. " * 16 if turn == 0 else f"{turn} more?"
                messages.append({"role": "user", "content": said})
                answer = router.ask("POST", CHAT, {**asked(""), "messages": messages}).json()
                messages.append(answer["choices"][0]["message"])
                kept.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            return kept

        # Together, as these routers send a new beginning to the server with the least to do.
        with concurrent.futures.ThreadPoolExecutor(len(KINDS)) as pool:
            for kept in pool.map(talk, KINDS):
                self.assertLess(kept[0], 64)
                self.assertTrue(all(each >= 128 for each in kept[1:]), kept)
        hits = len(KINDS) * (TURNS - 1)
        self.check_how_prompts_were_read()

        def told(name):
            return [each.metric(name) for each in self.servers]

        self.assertTrue(wait_until(lambda: sum(told("tenon_prefix_hits_total")) == hits, 10))
        self.assertTrue(all(told("tenon_prefix_hits_total")), "one server had all conversations")
        self.assertGreaterEqual(sum(told("vllm:prefix_cache_hits_total")), 128 * hits)

    def test_a_server_dies(self):
        router = self.route("round_robin")
        began = threading.Semaphore(0)

        def stream(number):
            client = Client(router.port)
            try:
                client.ask("POST", CHAT, asked(f"{number}: how many?", stream=True, max_tokens=300,
                                               ignore_eos=True))
                client.until(b"data: {")
                began.release()
                client.until(b"data: [DONE]\n\n")
                return True
            except (EOFError, ConnectionError):
                return False
            finally:
                client.close()

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            running = [pool.submit(stream, number) for number in range(6)]
            for _ in running:
                self.assertTrue(began.acquire(timeout=PATIENCE))
            self.assertEqual([each.metric("vllm:num_requests_running") for each in self.servers], [3, 3])
            self.stop_hard(self.servers[1])
            for number in range(8):  # at once, before the router has looked again
                answer = router.ask("POST", CHAT, asked(f"{number}: how many?"))
                self.assertEqual(answer.status, 200, answer.body)
            whole = [each.result() for each in running]
        self.assertEqual(whole.count(True), 3)
        self.assertEqual(self.ended(self.servers[0]), 8 + 3)
        self.assertTrue(wait_until(lambda: router.num_healthy() == 1, 20), router.said())

        self.servers[1] = start_server(self.servers[1].port)  # it comes back
        self.addCleanup(self.servers[1].stop)
        self.assertTrue(wait_until(lambda: router.num_healthy() == 2, 30), router.said())
        for number in range(8):
            self.assertEqual(router.ask("POST", CHAT, asked(f"{number}: how many?")).status, 200)
        self.assertTrue(wait_until(lambda: self.ended(self.servers[1]) > 0, 5))

    def test_a_server_drains(self):
        """As in a roll-out: not one request is lost."""
        router = self.route("round_robin")
        over = time.monotonic() + 8
        signalled = time.monotonic() + 2

        def ask_on(number):
            statuses = []
            while time.monotonic() < over:
                statuses.append(router.ask("POST", CHAT, asked(f"{number}: how many?", max_tokens=12)).status)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            running = [pool.submit(ask_on, number) for number in range(4)]
            wait_until(lambda: time.monotonic() > signalled)
            self.assertGreater(self.ended(self.servers[1]), 0)
            self.assertEqual(self.servers[1].stop(), -signal.SIGTERM)
            self.assertLess(time.monotonic(), over)
            statuses = [status for each in running for status in each.result()]
        self.assertEqual(set(statuses), {200}, router.said())
        self.assertGreater(len(statuses), 8)
