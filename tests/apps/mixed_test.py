#!/usr/bin/env python3
"""tenon serve under requests of all kinds at a time: whole and streamed, of any length, stopped, left by their
clients, with caches that are too small for all. Every whole answer is the one that its question has alone, and the
books of the caches are right at the end. Slow, so ctest leaves it to the label scale (scale_test.py).
MIXED=500 asks for fewer."""
import concurrent.futures
import json
import os
import random
import signal
import unittest

from serve_support import Server
from support import wait_until

COUNT = int(os.environ.get("MIXED", "10000"))
WORKERS, LONGEST = 24, 24
PATH = "/v1/completions"


def prompts(chance):
    """Some that begin alike, some that do not; some go on from others."""
    shared = [chance.randrange(3, 300) for _ in range(200)]
    found = [shared + [chance.randrange(3, 300) for _ in range(chance.choice([3, 40, 150]))] for _ in range(8)]
    found += [each + [chance.randrange(3, 300) for _ in range(140)] for each in found[:4]]
    return found + [[chance.randrange(3, 300) for _ in range(chance.choice([1, 2, 65, 300]))] for _ in range(8)]


class Mixed(unittest.TestCase):
    def setUp(self):
        self.server = Server("--max-context", "640", "--max-batch", "8", "--cache-tokens", "1536", "--prefix-states", "6",
                             "--max-queued", "64", "--quiet")
        self.addCleanup(self.server.stop)
        chance = random.Random(1)
        self.questions = [{"prompt": prompt, "ignore_eos": True, "return_token_ids": True, "temperature": chance.choice(
            [0, 0.8]), "seed": chance.randrange(1000)} for prompt in prompts(chance)]
        self.alone = [self.server.post(PATH, {**each, "max_tokens": LONGEST}).json()["choices"][0]["token_ids"]
                      for each in self.questions]
        for each in self.alone:
            self.assertEqual(len(each), LONGEST)

    def ask(self, number):
        """One request; whether it was answered."""
        chance = random.Random(number)
        which = chance.randrange(len(self.questions))
        length = chance.choice([1, 2, chance.randrange(1, LONGEST + 1), LONGEST])
        wanted = self.alone[which][:length]
        body = {**self.questions[which], "max_tokens": length, "stream": chance.randrange(2) == 0}
        if chance.randrange(4) == 0:
            stop = chance.choice(self.alone[which])
            body["stop_token_ids"] = [stop]
            if stop in wanted:
                wanted = wanted[:wanted.index(stop) + 1]
        client = self.server.client()
        try:
            client.ask("POST", PATH, body)
            if chance.randrange(4) == 0:  # leaves: at once, or when something has come
                if body["stream"] and chance.randrange(2):
                    client.until(b"data: ")
                return False
            answer = client.read()
        finally:
            client.close()
        self.assertEqual(answer.status, 200, answer.body)
        if body["stream"]:
            found = [token for event in answer.events() for choice in event["choices"]
                     for token in choice.get("token_ids") or ()]
        else:
            found = json.loads(answer.body)["choices"][0]["token_ids"]
        self.assertEqual(found, wanted, (number, which, body))
        return True

    def test_every_answer_is_what_it_is_alone(self):
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            whole = sum(pool.map(self.ask, range(COUNT)))
        self.assertGreater(whole, COUNT // 2)
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_running")
                                   + self.server.metric("vllm:num_requests_waiting") == 0))
        names = ("vllm:num_preemptions_total", "tenon_prefix_hits_total", "tenon_prefix_evicted_blocks_total",
                 "tenon_prefix_evicted_states_total")
        self.assertTrue(wait_until(lambda: all(self.server.metric(name) > 0 for name in names[1:]), 20),
                        [(name, self.server.metric(name)) for name in names])
        counts = ", ".join(f"{name.split(':')[-1]} {self.server.metric(name):.0f}" for name in names)
        print(f"\n{COUNT} requests, {whole} whole; {counts}")
        self.assertEqual(self.server.stop(), -signal.SIGTERM)
        self.assertFalse([line for line in self.server.log if "the caches:" in line], self.server.log[-20:])


if __name__ == "__main__":
    unittest.main()
