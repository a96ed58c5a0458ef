#!/usr/bin/env python3
"""tenon serve against valid requests that were broken at random: every one is answered or refused, none fails in the
server, and afterwards it answers as before. Slow, so ctest leaves it to the label scale (scale_test.py).
MUTATIONS=1000 and MUTATION_SEED=7 ask for fewer and for others; MUTATION_FROM=500 leaves out the first of them.

A broken request may be one for 64 answers to the end of their context, which is 2,000 steps of the engine: on a
machine that does other things as well no fixed time is long enough. So a request counts as unanswered when the
server has stopped making steps, not before. And a connection on which nothing comes for --request-seconds is closed
without an answer, so these are long, too: a client that starves between connecting and sending was taken for an
unanswered request."""
import concurrent.futures
import copy
import json
import os
import random
import socket
import time
import unittest

from serve_support import PatientClient, Server, chat
from support import wait_until

COUNT = int(os.environ.get("MUTATIONS", "100000"))
SEED = int(os.environ.get("MUTATION_SEED", "1"))
FROM = int(os.environ.get("MUTATION_FROM", "0"))
WORKERS = 4
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 3}"}}
SCHEMA = {"type": "object", "properties": {
    "a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "string", "pattern": "^[a-z]+$"},
    "c": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 1, "maxItems": 3},
    "d": {"enum": ["x", 1, None]}, "e": {"anyOf": [{"type": "null"}, {"const": 5}]},
    "f": {"type": "string", "minLength": 1, "maxLength": 4}, "g": {"type": "string", "format": "date"}},
    "required": ["a", "b"], "additionalProperties": False,
    "$defs": {"tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}}}
SEEDS = [
    ("/v1/chat/completions", chat(max_tokens=2, temperature=0.5, top_p=0.9, top_k=5, seed=3, n=2, stop=["x", "yy"],
                                  logprobs=True, top_logprobs=2, logit_bias={"5": -3.5}, presence_penalty=0.5,
                                  frequency_penalty=0.1, user="me", stream_options=None)),
    ("/v1/chat/completions", {"model": "checkpoints/tiny", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "5 + 3?"}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "8"}], "tools": [TOOL], "tool_choice": "auto",
        "max_completion_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": True}, "parallel_tool_calls": False}),
    ("/v1/completions", {"prompt": ["Tom has", "3 boxes"], "max_tokens": 2, "echo": True, "n": 1, "min_tokens": 1,
                         "stop_token_ids": [3, 4], "repetition_penalty": 1.1, "min_p": 0.1, "stream": False}),
    ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2, "return_token_ids": True, "ignore_eos": True,
                         "stream": True, "logprobs": 2}),
    ("/v1/messages", {"max_tokens": 2, "system": [{"type": "text", "text": "Be brief."}], "messages": [
        {"role": "user", "content": "5 + 3?"}, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "a", "name": "add", "input": {"a": 5}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "8"}]}],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": TOOL["function"]["parameters"]}],
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "stop_sequences": ["zz"], "stream": True}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "5 + 3?"}]}),
    ("/generate", {"text": "Tom has", "sampling_params": {"max_new_tokens": 2, "temperature": 0, "stop": ["x"]},
                   "stream": False}),
    ("/tokenize", {"prompt": "Tom has 3 boxes.", "add_special_tokens": False, "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
    ("/v1/chat/completions/render", chat(reasoning_effort="low", tools=[TOOL], tool_choice="none")),
    ("/v1/completions/render", {"prompt": ["Tom has", [5, 6]], "max_tokens": 2}),
    ("/tokenize", chat(tools=[TOOL], add_generation_prompt=False, chat_template_kwargs={"thinking_budget": 3})),
    ("/generate", {"input_ids": [[5, 6], [7]], "sampling_params": {"max_new_tokens": 2, "n": 2, "json_schema": "{}"},
                   "stream": True}),
    ("/v1/messages", {"max_tokens": 2, "messages": [{"role": "user", "content": "5 + 3?"}], "output_config": {
        "effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}, "tool_choice": {"type": "auto"}}),
    ("/v1/chat/completions", chat(max_tokens=2, response_format={"type": "json_schema", "json_schema": {
        "name": "it", "strict": True, "schema": SCHEMA}}, chat_template_kwargs={"enable_thinking": False})),
    ("/v1/chat/completions", chat(max_tokens=2, tools=[{"type": "function", "function": {
        "name": "add", "strict": True, "parameters": SCHEMA}}], tool_choice="required", thinking_budget=1)),
    ("/v1/completions", {"prompt": "Tom has", "max_tokens": 2, "guided_regex": "[a-c]{1,3}(x|yy)*\\d+", "stream": True}),
    ("/v1/completions", {"prompt": "Tom has", "max_tokens": 2, "structured_outputs": {"choice": ["yes", "no"]}}),
    ("/v1/completions", {"prompt": "Tom has", "max_tokens": 2, "guided_json": SCHEMA, "prompt_logprobs": 2}),
    ("/generate", {"text": "Tom has", "sampling_params": {
        "max_new_tokens": 2, "ebnf": "root ::= \"a\" part*\npart ::= [0-9] | \"(\" root \")\""},
        "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}),
]
ODD = [None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 2**31, 2**63, -2**63, 2**64, 10**40, "", " ", "a", "\0",
       "\ud800", "é漢🙂", "<|im_start|>", "</think>", "<tool_call>", "{{ x }}", "x" * 5000, [], {}, [[]], [{}], {"": None},
       [None], ["a"], [0], [-1], {"type": "text"}, {"role": "user"}, list(range(300)), "null", "user", "function",
       # Of regular expressions, grammars and schemas.
       "(", "(a*)*", "(a|aa)+$", "a{1000}", "a{3,1}", "(?=x)", "\\p{L}", "[z-a]", "\\", "root ::= root", "root ::= ",
       "root ::= \"a\" missing", {"$ref": "#"}, {"$ref": "#/none"}, {"type": "string", "pattern": "["}, {"enum": []},
       {"minItems": 2**31, "type": "array"}, {"type": "integer", "minimum": 5, "maximum": 3}, "object", "array"]
NUMBERS = ["NaN", "Infinity", "-", "1e999", "0x1", "01", "1.", "tru", "\"\\ud800\"", "\"\\x\"", "[" * 200, "{\"a\":" * 200]
HEADS = ["content-length: 3", "content-length: -1", "content-length: 99999999999999999999", "transfer-encoding: chunked",
         "transfer-encoding: gzip", "expect: 100-continue", "connection: close", "content-encoding: gzip",
         "content-type: text/plain", "x-request-id: \t", "x-request-id: " + "a" * 500, "host: ", ": x", "a b: c",
         "x: " + "y" * 9000, "authorization: Bearer ", "origin: null", "content-type"]
STATUSES = {200, 204, 400, 401, 404, 405, 408, 413, 415, 429, 431, 501}


def places(value, path=()):
    """The paths to all parts of a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from places(each, (*path, index))


def broken_value(body, chance):
    """The value with one part replaced, left out, doubled or under another name."""
    body = copy.deepcopy(body)
    path = chance.choice(list(places(body))[1:])
    holder = body
    for step in path[:-1]:
        holder = holder[step]
    last, kind = path[-1], chance.randrange(6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, list):
        holder.extend([holder[last]] * chance.choice([1, 3, 70]))
    elif kind == 1:
        holder[last + chance.choice(["", "s", "_"])] = chance.choice(ODD)
    elif kind == 2:
        other = body
        for step in chance.choice(list(places(body))):
            other = other[step]
        holder[last] = copy.deepcopy(other)
    else:
        holder[last] = copy.deepcopy(chance.choice(ODD))
    return body


def broken_bytes(data, chance):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            data[at:at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del data[at:at + chance.choice([1, 2, 30])]
        elif kind == 2:
            data[at:at] = chance.choice(NUMBERS).encode()
        elif kind == 3:
            data[at:at] = data[at:at + chance.choice([1, 10, 200])]
        else:
            data[at:at] = chance.choice([b"\0", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\"", b"\\", b",", b"}", b"]"])
    return bytes(data)


class Sender:
    """One worker: asks by a connection that is kept as long as the server keeps it."""

    def __init__(self, server, seed):
        self.server, self.chance, self.client = server, random.Random(seed), None
        self.seen, self.longest = {}, (0.0, b"")

    def make(self):
        """The next request, and whether it is the last on its connection."""
        chance = self.chance
        path, body = chance.choice(SEEDS)
        for _ in range(chance.choice([0, 1, 1, 1, 2])):
            if isinstance(body, (dict, list)) and body:
                body = broken_value(body, chance)
        data = json.dumps(body).encode()
        kind = chance.randrange(10)
        if kind < 3:
            data = broken_bytes(data, chance)
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        if kind < 9:
            return (head + "\r\n").encode() + data, False
        # Also the head. Where it ends may be unclear then.
        head = head.encode() + chance.choice(HEADS).encode() + b"\r\n"
        if chance.randrange(2):
            head = broken_bytes(head, chance)
        return head + b"\r\n" + data, True

    def ask(self):
        request, is_last = self.make()
        if is_last:
            self.last(request)
        else:
            self.exchange(request)

    def exchange(self, request):
        began, kept = time.monotonic(), self.client is not None
        try:
            if not kept:
                self.client = PatientClient(self.server)
            self.client.send(request)
            answer = self.client.read()
        except (OSError, EOFError) as failed:
            raise AssertionError(
                f"no answer ({failed!r}) after {time.monotonic() - began:.1f} s on a {'kept' if kept else 'new'} "
                f"connection; so far {self.client and self.client.held[:300]!r}; the server's end: "
                f"{self.server.process.poll()}, its log: {self.server.log[-30:]}; to {request[:3000]}") from failed
        self.longest = max(self.longest, (time.monotonic() - began, request[:3000]))
        self.look_at(answer.status, answer.body, request, "event-stream" in answer.fields["content-type"])
        if answer.fields["connection"] == "close":
            self.drop()

    def last(self, request):
        self.drop()
        client = PatientClient(self.server)
        try:
            client.send(request)
            client.socket.shutdown(socket.SHUT_WR)
            while client.more():
                pass
        except ConnectionError:
            pass
        finally:
            client.close()
        if client.held:
            status = int(client.held.split(b" ", 2)[1])
            self.look_at(status if status >= 200 else 200, None, request, False)

    def drop(self):
        if self.client is not None:
            self.client.close()
        self.client = None

    def look_at(self, status, body, request, streams):
        self.seen[status] = self.seen.get(status, 0) + 1
        shown = request[:3000]
        assert status in STATUSES, (status, body, shown)
        if body is None or streams:
            assert body is None or (b"server_error" not in body and b"api_error" not in body), (body, shown)
        elif status != 204:
            found = json.loads(body)
            assert status == 200 or found["error"]["message"], (status, body, shown)


class Mutations(unittest.TestCase):
    def test_every_one_is_answered_or_refused(self):
        server = Server("--tp", "1", "--max-context", "128", "--max-batch", "4", "--max-queued", "64", "--max-body-mb", "1",
                        "--request-seconds", "120", "--quiet", "--any-model-name")
        self.addCleanup(server.stop)
        known = chat("Tom has 3 boxes.", max_tokens=20, temperature=0, ignore_eos=True)
        before = server.post("/v1/chat/completions", known).json()["choices"]
        senders = [Sender(server, SEED * 1000 + each) for each in range(WORKERS)]

        def work(sender):
            for _ in range(FROM // WORKERS):
                sender.make()
            for _ in range((COUNT - FROM) // WORKERS):
                sender.ask()
            sender.drop()

        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            for each in [pool.submit(work, sender) for sender in senders]:
                each.result()
        seen = {}
        for sender in senders:
            for status, count in sender.seen.items():
                seen[status] = seen.get(status, 0) + count
        print(f"\n{COUNT - FROM} broken requests: " + ", ".join(f"{count} times {status}" for status, count in sorted(seen.items())))
        seconds, request = max(sender.longest for sender in senders)
        print(f"the longest was answered after {seconds:.1f} s: {request}")
        self.assertGreater(seen[200], (COUNT - FROM) // 50)  # some are right still, most are not
        self.assertGreater(seen[400], (COUNT - FROM) // 5)
        self.assertTrue(wait_until(lambda: server.metric("vllm:num_requests_running")
                                   + server.metric("vllm:num_requests_waiting") == 0))
        self.assertEqual(server.post("/v1/chat/completions", known).json()["choices"], before)
        self.assertEqual(server.get("/health").status, 200)
        server.stop()
        self.assertFalse([line for line in server.log if "Sanitizer" in line or "runtime error" in line], server.log[-50:])


if __name__ == "__main__":
    unittest.main()
