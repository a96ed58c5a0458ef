#!/usr/bin/env python3
"""tenon serve under agents: many users whose prompts begin alike and send all that was said with every turn.
Slow, so ctest leaves it to the label scale (scale_test.py)."""
import concurrent.futures
import json
import os
import statistics
import time
import unittest

from serve_support import Server
from support import wait_until

CHAT = "/v1/chat/completions"
# AGENTS=4,3,500 is a smaller one, for a slow machine.
USERS, TURNS, SHARED = map(int, os.environ.get("AGENTS", "16,8,2000").split(","))
BLOCK = 64  # tokens
END = 8  # tokens behind a prompt's last state: kEndTokens of tenon/runtime/scheduler.h
COLD = min(4, USERS)  # conversations that are asked again behind another beginning


class Agents(unittest.TestCase):
    def setUp(self):
        self.server = Server("--max-context", "4096", "--prefix-states", str(USERS + 2), "--quiet")
        self.addCleanup(self.server.stop)

    def filled(self, word, tokens):
        """Text of about so many tokens that begins with `word`."""
        text = " Tom has 3 boxes of 12 pencils."
        each = self.server.post("/tokenize", {"prompt": text}).json()["count"]
        return word + text * (tokens // each + 1)

    def ask(self, messages):
        """The usage, the text, and the seconds to the first event."""
        client = self.server.client(timeout=1800)
        try:
            began = time.monotonic()
            client.ask("POST", CHAT, {"messages": messages, "temperature": 0, "max_tokens": 4, "ignore_eos": True,
                                      "stream": True, "stream_options": {"include_usage": True}})
            client.head()
            first = time.monotonic() - began
            body = b""
            while size := int(client.until(b"\r\n"), 16):
                body += client.exactly(size)
                client.until(b"\r\n")
        finally:
            client.close()
        events = [json.loads(line[6:]) for line in body.decode().split("\n\n")[:-2]]
        text = "".join(each["choices"][0]["delta"].get("content", "") for each in events if each["choices"])
        return events[-1]["usage"], text, first

    def test_turns_begin_where_the_last_prompt_ended(self):
        names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
        # The engine's counts come within a second or two after its first step.
        self.assertTrue(wait_until(lambda: self.server.metric("tenon_engine_steps_total") > 0))
        before = [self.server.metric(name) for name in names]
        shared = self.filled("You are an agent.", SHARED)
        talks = [[{"role": "system", "content": shared}] for _ in range(USERS)]
        asked, hit, firsts, lengths = 0, 0, [], [0] * USERS
        for turn in range(TURNS):
            for user, talk in enumerate(talks):
                talk.append({"role": "user", "content": self.filled(f"User {user}, turn {turn}:", 2 * BLOCK)})
            if turn < TURNS - 1:
                with concurrent.futures.ThreadPoolExecutor(USERS) as pool:
                    found = list(pool.map(self.ask, talks))
            else:  # one after another: what is timed waits for nobody
                found = [self.ask(talk) for talk in talks]
            for user, (usage, text, first) in enumerate(found):
                talks[user].append({"role": "assistant", "content": text})
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                if turn:  # all whole blocks of its last prompt, less what templates put behind it
                    self.assertGreaterEqual(cached, (lengths[user] - END) // BLOCK * BLOCK, (user, turn))
                self.assertLess(cached, usage["prompt_tokens"])
                lengths[user] = usage["prompt_tokens"]
                asked += usage["prompt_tokens"]
                hit += cached
                if turn == TURNS - 1:
                    firsts.append(first)
        self.assertTrue(wait_until(lambda: [self.server.metric(name) for name in names]
                                   == [before[0] + asked, before[1] + hit], 20),
                        (before, asked, hit, [self.server.metric(name) for name in names]))
        cold = []
        for user in range(COLD):
            talk = [{"role": "system", "content": f"{user} is another. " + shared}, *talks[user][1:-1]]
            usage, _, first = self.ask(talk)
            self.assertEqual(usage["prompt_tokens_details"]["cached_tokens"], 0)
            cold.append(first)
        warm, other = statistics.median(firsts), statistics.median(cold)
        print(f"\n{USERS} users, {TURNS} turns, {hit} of {asked} tokens of prompts were kept ({100 * hit / asked:.1f} "
              f"%); first token of turn {TURNS} after {warm:.2f} s, cold {other:.2f} s (medians)")
        self.assertLess(warm, 0.15 * other)


if __name__ == "__main__":
    unittest.main()
