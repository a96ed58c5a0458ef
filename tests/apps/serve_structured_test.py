#!/usr/bin/env python3
"""Answers that must have a form, through the server: JSON by a schema, calls that must come, thoughts that are
cut off. The checkpoint knows nothing of all that: what is right of an answer the grammar has made so."""
import concurrent.futures
import json
import select
import signal
import time
import unittest

from serve_support import Server, chat, is_built_without_grammars, skip_without_grammars
from support import PATIENCE

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
ORDER = {"type": "object", "additionalProperties": False, "required": ["name", "count", "colours"], "properties": {
    "name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0, "maximum": 99},
    "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER, "strict": True}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "required": ["a", "why"], "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 999}, "why": {"type": "string", "maxLength": 10},
        "exact": {"type": "boolean"}}}}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny")
    unittest.addModuleCleanup(server.stop)


class Thoughts(unittest.TestCase):
    def test_thoughts_are_cut_off(self):
        for budget in (0, 1, 5):
            for body in ({"thinking_budget": budget}, {"thinking_token_budget": budget},
                         {"chat_template_kwargs": {"thinking_budget": budget}}):
                answer = server.post(CHAT, chat(enable_thinking=True, **body)).json()
                # </think> is counted with them.
                self.assertEqual(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], budget + 1)
                message = answer["choices"][0]["message"]
                self.assertTrue(message["content"])
                self.assertNotIn("think>", message["content"] + message.get("reasoning_content", ""))
        plain = server.post(CHAT, chat(enable_thinking=True, max_tokens=30)).json()["choices"]
        large = server.post(CHAT, chat(enable_thinking=True, max_tokens=30, thinking_budget=1000)).json()["choices"]
        self.assertEqual(large, plain)
        asked = {**chat(), "max_tokens": 60, "thinking": {"type": "enabled", "budget_tokens": 4}}
        kinds = [block["type"] for block in server.post(MESSAGES, asked).json()["content"]]
        self.assertEqual(kinds, ["thinking", "text"])


class WithoutGrammars(unittest.TestCase):
    def test_every_form_is_refused_by_the_name_of_its_field(self):
        if not is_built_without_grammars(server):
            self.skipTest("built with grammars")
        strict = {"name": "add", "strict": True, "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": strict}]
        sampling = [{"json_schema": "{}"}, {"regex": "a"}, {"ebnf": 'root ::= "a"'}]
        for path, field, body in (
                (CHAT, "response_format", chat(response_format={"type": "json_object"})),
                (CHAT, "tool_choice", chat(tools=tools, tool_choice="required")),
                (CHAT, "tools", chat(tools=tools)),
                (COMPLETIONS, "structured_outputs", {"prompt": "Tom", "structured_outputs": {"choice": ["a"]}}),
                (COMPLETIONS, "guided_json", {"prompt": "Tom", "guided_json": {}}),
                (COMPLETIONS, "guided_choice", {"prompt": "Tom", "guided_choice": ["a"]}),
                (COMPLETIONS, "guided_grammar", {"prompt": "Tom", "guided_grammar": 'root ::= "a"'}),
                *(("/generate", next(iter(each)), {"text": "Tom", "sampling_params": each}) for each in sampling),
                (MESSAGES, "output_config", {**chat(), "max_tokens": 2, "output_config": {
                    "format": {"type": "json_schema", "schema": {"type": "object"}}}})):
            answer = server.post(path, body)
            self.assertEqual(answer.status, 400, (field, answer.body))
            message = answer.json()["error"]["message"]
            self.assertIn("built without grammars", message)
            self.assertIn(field, message)
        plain = chat(tools=[{"type": "function", "function": {"name": "add"}}], max_tokens=2)
        self.assertEqual(server.post(CHAT, plain).status, 200)


class Structured(unittest.TestCase):
    def setUp(self):
        skip_without_grammars(self, server)

    def choice(self, **more):
        answer = server.post(CHAT, chat(**{"max_tokens": 400, **more}))
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()["choices"][0]

    def check_order(self, text):
        order = json.loads(text)
        self.assertEqual(list(order), ["name", "count", "colours"])
        self.assertLessEqual(len(order["name"]), 12)
        self.assertIn(order["count"], range(100))
        self.assertLessEqual(len(order["colours"]), 2)
        self.assertLessEqual(set(order["colours"]), {"red", "green"})

    def check_add(self, call):
        self.assertEqual(call["function"]["name"], "add")
        arguments = json.loads(call["function"]["arguments"])
        self.assertLessEqual({"a", "why"}, set(arguments))
        self.assertIn(arguments["a"], range(1000))
        self.assertIsInstance(arguments["why"], str)
        self.assertIsInstance(arguments.get("exact", True), bool)

    def test_json_by_a_schema(self):
        for more in ({}, {"temperature": 1, "seed": 3}, {"temperature": 1, "seed": 4, "top_p": 0.9},
                     {"enable_thinking": True, "thinking_budget": 4}):
            found = self.choice(response_format=FORMAT, **more)
            self.assertEqual(found["finish_reason"], "stop")
            self.check_order(found["message"]["content"])
        for name, value in (("guided_json", ORDER), ("structured_outputs", {"json": json.dumps(ORDER)})):
            self.check_order(self.choice(**{name: value})["message"]["content"])
        streamed = server.post(CHAT, chat(stream=True, max_tokens=400, response_format=FORMAT)).events()
        self.check_order("".join(event["choices"][0]["delta"].get("content", "") for event in streamed))

    def test_other_forms(self):
        self.assertRegex(self.choice(guided_regex="[0-9]{3}-[ab]")["message"]["content"], "^[0-9]{3}-[ab]$")
        self.assertIn(self.choice(guided_choice=["yes", "no"])["message"]["content"], ("yes", "no"))
        self.assertEqual(self.choice(guided_grammar='root ::= "ab" "c"')["message"]["content"], "abc")
        self.assertEqual(self.choice(response_format={"type": "json_object"}, max_tokens=8)["message"]["content"][0],
                         "{")
        asked = {"prompt": "Tom", "max_tokens": 30, "structured_outputs": {"regex": "x[0-9]{2}"}}
        self.assertRegex(server.post(COMPLETIONS, asked).json()["choices"][0]["text"], "^x[0-9]{2}$")
        params = {"max_new_tokens": 30, "regex": "x[0-9]{2}"}
        found = server.post("/generate", {"text": "Tom", "sampling_params": params}).json()
        self.assertRegex(found["text"], "^x[0-9]{2}$")

    def test_tokens_do_not_depend_on_the_batch(self):
        bodies = [chat(max_tokens=120, temperature=1, seed=seed, response_format=FORMAT) for seed in range(8)]
        bodies += [chat(max_tokens=40, temperature=1, seed=seed) for seed in range(8)]
        bodies += [chat(max_tokens=40, temperature=1, seed=seed, enable_thinking=True, thinking_budget=seed)
                   for seed in range(4)]

        def ask(body):
            return server.post(CHAT, body).json()["choices"]
        alone = [ask(body) for body in bodies]
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            self.assertEqual(list(pool.map(ask, bodies)), alone)

    def test_calls_that_must_come(self):
        named = {"type": "function", "function": {"name": "add"}}
        for choice, more in (("required", {}), ("required", {"temperature": 1, "seed": 5}), (named, {}),
                             (named, {"enable_thinking": True, "thinking_budget": 3})):
            found = self.choice(tools=[ADD, NOW], tool_choice=choice, parallel_tool_calls=False, **more)
            self.assertEqual(found["finish_reason"], "tool_calls")
            [call] = found["message"]["tool_calls"]
            if call["function"]["name"] == "now" and choice == "required":
                self.assertEqual(call["function"]["arguments"], "{}")
            else:
                self.check_add(call)
        found = self.choice(tools=[ADD, NOW], tool_choice={"type": "function", "function": {"name": "now"}})
        [call] = found["message"]["tool_calls"]
        self.assertEqual((call["function"]["name"], call["function"]["arguments"]), ("now", "{}"))

    def test_strict_tools_bind_calls_alone(self):
        strict = {**ADD, "function": {**ADD["function"], "strict": True}}
        free = self.choice(tools=[strict], max_tokens=24)
        self.assertEqual(free["message"]["content"], self.choice(tools=[strict], max_tokens=24)["message"]["content"])
        either = self.choice(tools=[strict], response_format=FORMAT, parallel_tool_calls=False)
        if either["message"].get("tool_calls"):
            self.check_add(either["message"]["tool_calls"][0])
        else:
            self.check_order(either["message"]["content"])

    def test_messages(self):
        tools = [{"name": "add", "input_schema": ADD["function"]["parameters"]}]
        for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "add"}):
            asked = {**chat(), "max_tokens": 400, "tools": tools, "tool_choice": choice}
            found = server.post(MESSAGES, asked).json()
            self.assertEqual((found["stop_reason"], [each["type"] for each in found["content"]]),
                             ("tool_use", ["tool_use"]))
            self.assertIn(found["content"][0]["input"]["a"], range(1000))
        asked = {**chat(), "max_tokens": 400, "output_config": {"format": {"type": "json_schema", "schema": ORDER}}}
        self.check_order(server.post(MESSAGES, asked).json()["content"][0]["text"])

    def test_a_slow_grammar_keeps_nobody_waiting(self):
        """One thread of HTTP, and a form that takes long to prepare: what comes behind it is answered first."""
        one = Server("--quiet", "--http-threads", "1")
        self.addCleanup(one.stop)
        slow = one.client()
        self.addCleanup(slow.close)
        begin = time.monotonic()
        slow.ask("POST", CHAT, chat(guided_regex=".*" * 1500, max_tokens=1))
        # The request is read before the next connections are.
        for _ in range(3):
            self.assertEqual(one.get("/health").status, 200)
            self.assertEqual(one.post(CHAT, chat(max_tokens=2)).status, 200)
        others = time.monotonic() - begin
        self.assertIn(slow.read().status, (200, 400))
        self.assertLess(others, (time.monotonic() - begin) / 2)

    def test_small_grammars_and_the_end_wait_for_no_large_one(self):
        """More large forms than are prepared together; each takes a hundred times the work of what is asked then."""
        one = Server("--quiet", "--http-threads", "1")
        self.addCleanup(one.stop)
        large = [one.client() for _ in range(5)]
        for number, client in enumerate(large):
            self.addCleanup(client.close)
            client.ask("POST", CHAT, chat(guided_regex=".*" * (1500 + number), max_tokens=1))
        answer = one.post(CHAT, chat(guided_regex="[0-9]{3}-[ab]", max_tokens=20))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(select.select([client.socket for client in large], [], [], 0)[0], [])
        one.process.send_signal(signal.SIGTERM)
        for client in large:
            answer = client.read()
            self.assertEqual((answer.status, answer.json()["error"]["code"]), (503, "draining"), answer.body)
        self.assertEqual(one.process.wait(PATIENCE), -signal.SIGTERM)

    def test_a_grammar_that_takes_too_much_work_fails_alone(self):
        body = chat(guided_regex="((a?){0,60}){0,60}", logit_bias={"64": 100}, max_tokens=400)
        answer = server.post(CHAT, body)
        self.assertEqual(answer.status, 500, answer.body)
        self.assertIn("its grammar takes too much work", answer.json()["error"]["message"])
        self.assertEqual(server.post(CHAT, chat(max_tokens=2)).status, 200)

    def test_logprobs_are_those_of_the_model(self):
        found = self.choice(guided_choice=["zzz"], logprobs=True, top_logprobs=1)
        first = found["logprobs"]["content"][0]
        self.assertLess(first["logprob"], first["top_logprobs"][0]["logprob"])

    def test_refusals_name_their_field(self):
        def form(schema):
            return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        named = {"type": "function", "function": {"name": "sub"}}
        conditional = {**NOW, "function": {"name": "now", "strict": True, "parameters": {"if": {}}}}
        for more, param, piece in (
                ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
                ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
                ({"response_format": form({"type": "number", "not": {}})},
                 "response_format.json_schema.schema", '"not" at #'),
                ({"response_format": form({"properties": {"a": {"uniqueItems": True}}})},
                 "response_format.json_schema.schema", "#/properties/a"),
                ({"response_format": form({"type": "horse"})}, "response_format", "horse"),
                ({"response_format": form({"$ref": "#"})}, "response_format", "no text"),
                ({"response_format": form({"title": "x" * 70000})}, "response_format", "bytes"),
                ({"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", "response_format"),
                ({"response_format": FORMAT, "min_tokens": 2}, "min_tokens", "response_format"),
                ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex", "response_format"),
                ({"guided_json": "{"}, "guided_json", "JSON"), ({"guided_regex": "(["}, "guided_regex", "error"),
                ({"guided_grammar": "root = 5"}, "guided_grammar", "EBNF"),
                ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "json"),
                ({"tool_choice": "required"}, "tool_choice", "no tools"),
                ({"tool_choice": named, "tools": [ADD]}, "tool_choice", '"sub"'),
                ({"tool_choice": "sometimes", "tools": [ADD]}, "tool_choice", "required"),
                ({"tools": [conditional]}, "tools", '"if" at #'),
                ({"thinking_budget": -1}, "thinking_budget", "from 0"),
                ({"chat_template_kwargs": {"thinking_budget": "x"}}, "chat_template_kwargs.thinking_budget", "whole")):
            answer = server.post(CHAT, chat(**more))
            self.assertEqual(answer.status, 400, (more, answer.body))
            error = answer.json()["error"]
            self.assertEqual(error["param"], param, error)
            self.assertIn(piece, error["message"])


if __name__ == "__main__":
    unittest.main()
