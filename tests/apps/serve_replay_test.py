#!/usr/bin/env python3
"""Requests as programs that measure or judge servers send them, read as strictly as these programs read:
serve_replay_test.py TENON. The programs themselves are not needed."""
import json
import unittest

from serve_support import Server
from support import QUESTION

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 7
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet")
    unittest.addModuleCleanup(server.stop)


class Replay(unittest.TestCase):
    def lines(self, path, body, fields=()):
        """Of the stream, without the blank ones."""
        answer = server.post(path, body, [("authorization", "Bearer none"), *fields])
        self.assertEqual(answer.status, 200, answer.body)
        self.assertTrue(answer.fields["content-type"].startswith("text/event-stream"))
        return [line for line in answer.body.decode().split("\n") if line]

    def events(self, *asked, **more):
        """Every line is `data: ` and JSON: no comments, no names of events."""
        lines = self.lines(*asked, **more)
        self.assertEqual(lines[-1], "data: [DONE]")
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class VllmBench(Replay):
    """A chunk with choices is a token's time; the usage comes in a chunk without choices."""

    def check(self, path, body, text_of):
        events = self.events(path, body, [("x-request-id", "benchmark-serving0")])
        self.assertTrue(all(text_of(each["choices"][0]) or each["choices"][0]["finish_reason"]
                            for each in events if each["choices"]))
        self.assertTrue(text_of(events[0]["choices"][0]))
        usages = [each["usage"] for each in events if each.get("usage")]
        self.assertEqual([each["completion_tokens"] for each in usages], [TOKENS])
        self.assertEqual((events[-1]["choices"], events[-1]["usage"]), ([], usages[0]))

    def test_completions(self):
        body = {"model": "tiny", "prompt": "Tom has 3 boxes", "repetition_penalty": 1.0,
                "max_tokens": TOKENS, "logprobs": None, "stream": True, "ignore_eos": True,
                "temperature": 0.0, "stream_options": {"include_usage": True}}
        self.check(COMPLETIONS, body, lambda choice: choice["text"])
        self.check(COMPLETIONS, {**body, "prompt": [5, 6, 7, 8]}, lambda choice: choice["text"])

    def test_chat(self):
        self.check(CHAT, {"model": "tiny", "messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "max_completion_tokens": TOKENS, "stream": True, "ignore_eos": True, "temperature": 0.0,
            "stream_options": {"include_usage": True}}, lambda choice: choice["delta"].get("content"))


class SglangBench(Replay):
    """Takes choices[0] of every chunk, whatever it is, and asks for no usage."""

    def test_completions(self):
        events = self.events(COMPLETIONS, {
            "model": "tiny", "prompt": "Tom has 3 boxes", "temperature": 0.0, "best_of": 1,
            "max_tokens": TOKENS, "stream": True, "ignore_eos": True})
        self.assertTrue("".join(each["choices"][0]["text"] for each in events))
        self.assertFalse(any(each.get("usage") for each in events))

    def test_chat(self):
        events = self.events(CHAT, {
            "model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0,
            "max_completion_tokens": TOKENS, "stream": True, "ignore_eos": True})
        self.assertTrue("".join(each["choices"][0]["delta"].get("content") or "" for each in events))

    def test_generate(self):
        body = {"sampling_params": {"temperature": 0.0, "max_new_tokens": TOKENS, "ignore_eos": True},
                "stream": True, "lora_path": None, "return_logprob": False, "logprob_start_len": -1}
        for prompt in ({"text": "Tom has 3 boxes"}, {"input_ids": [5, 6, 7, 8]}):
            events = self.events("/generate", {**prompt, **body})
            for one, other in zip(events, events[1:]):
                self.assertTrue(other["text"].startswith(one["text"]))
                self.assertGreater(other["meta_info"]["completion_tokens"],
                                   one["meta_info"]["completion_tokens"] - 1)
            self.assertEqual(events[-1]["meta_info"]["completion_tokens"], TOKENS)
            self.assertTrue({"prompt_tokens", "cached_tokens"} <= events[-1]["meta_info"].keys())

    def test_what_it_asks_first(self):
        self.assertEqual(server.get("/v1/models").json()["data"][0]["id"], "tiny")
        # It looks for the lengths of accepted drafts there.
        self.assertEqual(server.get("/server_info").json()["internal_states"], [{}])
        self.assertEqual(server.post("/flush_cache", {}).status, 404)


class GuideLlm(Replay):
    def test_chat(self):
        self.assertEqual(server.get("/health").status, 200)
        events = self.events(CHAT, {
            "model": "tiny", "messages": [{"role": "user", "content": [
                {"type": "text", "text": QUESTION}]}], "stream": True, "stop": None, "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_completion_tokens": TOKENS, "max_tokens": TOKENS})
        counts = [each["usage"]["completion_tokens"] for each in events]
        self.assertEqual((counts, counts[-1]), (sorted(counts), TOKENS))


class GenAiBench(Replay):
    def test_chat(self):
        lines = self.lines(CHAT, {
            "model": "tiny", "messages": [{"role": "user", "content": [
                {"type": "text", "text": QUESTION}]}], "max_tokens": TOKENS, "temperature": 0.0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}})
        events = [json.loads(line[6:]) for line in lines if line[6:] != "[DONE]"]
        self.assertEqual(events[-2]["choices"][0]["finish_reason"], "length")
        self.assertEqual((events[-1]["choices"], events[-1]["usage"]["completion_tokens"]), ([], TOKENS))


class LmEval(Replay):
    def test_texts(self):
        found = server.post(COMPLETIONS, {
            "model": "tiny", "prompt": ["Tom has 3", "Ann has 5"], "max_tokens": 9, "temperature": 0,
            "stop": ["\n\n"], "seed": 1234}).json()
        self.assertEqual([each["index"] for each in found["choices"]], [0, 1])
        found = server.post(CHAT, {
            "messages": [{"role": "user", "content": QUESTION, "type": "text"}], "model": "tiny",
            "max_tokens": 9, "temperature": 0, "stop": ["\n\n", "Q:"], "seed": 1234}).json()
        self.assertIsInstance(found["choices"][0]["message"]["content"], str)

    def test_likelihoods(self):
        prompts = [[5, 6, 7], [8, 9]]
        found = server.post(COMPLETIONS, {
            "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1,
            "logprobs": 1, "seed": 1234, "echo": True}).json()
        for prompt, choice in zip(prompts, sorted(found["choices"], key=lambda each: each["index"])):
            told = choice["logprobs"]
            self.assertEqual(len(told["token_logprobs"]), len(prompt) + 1)
            for own, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:]):
                self.assertLessEqual(own, max(top.values()))
        found = server.post("/generate", {
            "input_ids": prompts, "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "logprob_start_len": 0, "top_logprobs_num": 1, "return_logprob": True}).json()
        for prompt, each in zip(prompts, found):
            info = each["meta_info"]
            self.assertEqual([one[1] for one in info["input_token_logprobs"]], prompt)
            self.assertEqual([one and len(one) for one in info["input_top_logprobs"]],
                             [None] + [1] * (len(prompt) - 1))


if __name__ == "__main__":
    unittest.main()
