#!/usr/bin/env python3
"""tenon serve under requests of all kinds at a time: whole and streamed, of any length, stopped, held to a form, left
by their clients, with caches that are too small for all and a look at their books after every step. Every whole
answer is bit for bit the one of a second server, which runs each distinct request once, alone, and keeps nothing of
prompts. Slow, so ctest leaves it to the label scale (scale_test.py).
MIXED=500 asks for fewer, MIXED_SEED=7 for others, MIXED_RANKS=1 with that many ranks: on a machine that does other
things as well two of them wait for each other more than they work. Clients wait as long as the engine makes steps."""
import concurrent.futures
import json
import os
import random
import signal
import time
import unittest

from serve_support import PatientClient, Server, chat, skip_without_grammars
from support import wait_until

COUNT = int(os.environ.get("MIXED", "10000"))
SEED = int(os.environ.get("MIXED_SEED", "1"))
RANKS = os.environ.get("MIXED_RANKS", "2")
WORKERS, DISTINCT, GROWERS, TOKENS = 24, 200, 12, 300
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "sum": {"type": "integer"}},
          "required": ["name", "sum"]}
FORMS = [{"response_format": {"type": "json_object"}}, {"guided_choice": ["seven", "eight", "none of them"]},
         {"guided_regex": "[a-f]{3,9}x"},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}]


def prompts(chance):
    """Some that begin alike, some that do not; some go on from others."""
    def some(count):
        return [chance.randrange(3, TOKENS) for _ in range(count)]

    shared = some(140)
    found = [shared + some(chance.choice([3, 40, 100])) for _ in range(8)]
    found += [each + some(90) for each in found[:4]]
    return found + [some(chance.choice([1, 2, 65, 200])) for _ in range(8)]


def requests(chance):
    """Distinct ones, and where each of them goes."""
    found = {}
    known = prompts(chance)
    while len(found) < DISTINCT:
        body = {"temperature": chance.choice([0, 0.8, 1.3]), "seed": chance.randrange(1000), "return_token_ids": True,
                "max_tokens": chance.choice([1, 2, chance.randrange(1, 24), 24])}
        if chance.randrange(4) == 0:
            body.update(top_p=0.9, top_k=40, min_p=0.01)
        if chance.randrange(4) == 0:
            body.update(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3)
        if chance.randrange(6) == 0:
            body.update(logit_bias={str(chance.randrange(3, TOKENS)): chance.choice([-100, 3, 8])})
        if chance.randrange(4) == 0:
            body["stop"] = chance.sample(["a", "e", " ", "th", "1", "\n"], 2)
        if chance.randrange(4) == 0:
            body["stop_token_ids"] = chance.sample(range(3, TOKENS), 20)
        if chance.randrange(8) == 0:
            body["n"] = 2
        if chance.randrange(6) == 0:
            path = CHAT
            body.update(chat(f"Tom has {chance.randrange(3, 9)} boxes of 12 pencils. How many?"))
            body.update(chance.choice(FORMS))
        else:
            path = COMPLETIONS
            body.update(prompt=chance.choice(known), ignore_eos=chance.randrange(3) > 0)
            if chance.randrange(4) == 0:
                body["logprobs"] = chance.choice([0, 3])
        found[json.dumps(body, sort_keys=True)] = (path, body)
    # Eight of these that run together grow by more than the caches have.
    growers = [(COMPLETIONS, {"prompt": [chance.randrange(3, TOKENS)], "ignore_eos": True, "return_token_ids": True,
                              "temperature": chance.choice([0, 0.8]), "seed": chance.randrange(1000), "max_tokens": 140})
               for _ in range(GROWERS)]
    return list(found.values()) + growers


def gathered(choices):
    """By index, what the parts of an answer say together; a whole answer is one part for each index."""
    found = {}
    for choice in choices:
        at = found.setdefault(choice["index"], {"text": "", "thoughts": "", "token_ids": [], "logprobs": {}, "end": None})
        said = choice.get("delta") or choice.get("message") or choice
        at["text"] += said.get("content") or said.get("text") or ""
        at["thoughts"] += said.get("reasoning_content") or ""
        at["token_ids"] += choice.get("token_ids") or []
        for name, values in (choice.get("logprobs") or {}).items():
            at["logprobs"].setdefault(name, []).extend(values or [])
        if choice["finish_reason"]:
            at["end"] = (choice["finish_reason"], choice.get("stop_reason"))
    return found


class Mixed(unittest.TestCase):
    def start(self, *options):
        server = Server("--max-context", "512", "--tp", RANKS, "--quiet", *options)
        self.addCleanup(server.stop)
        return server

    def setUp(self):
        for name in ("TENON_CHECK_CACHES", "TENON_CPU_THREADS"):  # one thread: the clients need a core as well
            os.environ[name] = "1"
            self.addCleanup(os.environ.pop, name)
        self.server = self.start("--max-batch", "8", "--cache-tokens", "1024", "--prefix-states", "4", "--max-queued", "64")
        skip_without_grammars(self, self.server)
        alone = self.start("--max-batch", "1", "--prefix-states", "0")
        self.requests = requests(random.Random(SEED))
        began = time.monotonic()
        self.alone = []
        for path, body in self.requests:
            client = PatientClient(alone)
            client.ask("POST", path, body)
            answer = client.read()
            client.close()
            self.assertEqual(answer.status, 200, (answer.body, body))
            self.alone.append(gathered(answer.json()["choices"]))
        self.alone_seconds = time.monotonic() - began
        self.assertEqual(alone.stop(), -signal.SIGTERM)

    def ask(self, number):
        """One request; whether it was answered."""
        chance = random.Random(SEED * 1_000_003 + number)
        grows = number % 600 < WORKERS
        which = chance.randrange(DISTINCT, DISTINCT + GROWERS) if grows else chance.randrange(DISTINCT)
        path, body = self.requests[which]
        body = {**body, "stream": chance.randrange(2) == 0}
        client = PatientClient(self.server)
        try:
            client.ask("POST", path, body)
            if chance.randrange(4) == 0:  # leaves: at once, a little later, or when something has come
                how = chance.randrange(3)
                if how == 0:
                    time.sleep(chance.random() * 0.2)
                elif how == 1 and body["stream"]:
                    client.until(b"data: ")
                return False
            answer = client.read()
        finally:
            client.close()
        self.assertEqual(answer.status, 200, answer.body)
        if body["stream"]:
            events = answer.events()
            self.assertFalse([event for event in events if "error" in event], (number, body))
            choices = [choice for event in events for choice in event["choices"]]
        else:
            choices = json.loads(answer.body)["choices"]
        self.assertEqual(gathered(choices), self.alone[which], (number, which, body))
        return True

    def test_every_answer_is_what_it_is_alone(self):
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            whole = sum(pool.map(self.ask, range(COUNT)))
        seconds = time.monotonic() - began
        self.assertGreater(whole, COUNT // 2)
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_running")
                                   + self.server.metric("vllm:num_requests_waiting") == 0))
        names = ("vllm:num_preemptions_total", "tenon_prefix_hits_total", "tenon_prefix_evicted_blocks_total",
                 "tenon_prefix_evicted_states_total")
        self.assertTrue(wait_until(lambda: all(self.server.metric(name) > 0 for name in names[:3]), 20),
                        [(name, self.server.metric(name)) for name in names])
        counts = ", ".join(f"{name.split(':')[-1]} {self.server.metric(name):.0f}" for name in names)
        print(f"\n{COUNT} requests in {seconds:.0f} s, {whole} whole and as alone ({DISTINCT + GROWERS} distinct ones, "
              f"{self.alone_seconds:.0f} s); {counts}")
        self.assertEqual(self.server.stop(), -signal.SIGTERM)
        self.assertFalse([line for line in self.server.log if "the caches:" in line], self.server.log[-20:])


if __name__ == "__main__":
    unittest.main()
