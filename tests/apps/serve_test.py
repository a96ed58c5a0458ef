#!/usr/bin/env python3
"""tenon serve on the wire: what each API answers, streamed and whole, and what it refuses."""
import concurrent.futures
import json
import pathlib
import tempfile
import unittest

from serve_support import Server, chat, long_chat
from support import QUESTION, copy_of_model, run_json, wait_until

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}}}}
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--max-body-mb", "1")
    unittest.addModuleCleanup(server.stop)


class Chat(unittest.TestCase):
    def test_whole(self):
        answer = server.post(CHAT, chat(QUESTION, model="tiny"), [("x-request-id", "my-id.1")])
        self.assertEqual((answer.status, answer.fields["x-request-id"]), (200, "my-id.1"), answer.body)
        found, wanted = answer.json(), run_json("--max-context", "1024")
        self.assertEqual((found["object"], found["model"], found["id"]),
                         ("chat.completion", "tiny", "chatcmpl-my-id.1"))
        choice = found["choices"][0]
        self.assertEqual(choice["message"], {"role": "assistant", "content": wanted["text"]})
        self.assertEqual(choice["finish_reason"], "stop")
        usage = found["usage"]
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]),
                         (wanted["prompt_tokens"], len(wanted["tokens"])))
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_streamed_as_whole(self):
        whole = server.post(CHAT, chat()).json()
        answer = server.post(CHAT, chat(stream=True))
        self.assertTrue(answer.fields["content-type"].startswith("text/event-stream"))
        events = answer.events()
        deltas = [event["choices"][0] for event in events]
        self.assertTrue(all("usage" not in event for event in events))
        self.assertEqual({event["object"] for event in events}, {"chat.completion.chunk"})
        self.assertEqual(len({event["id"] for event in events}), 1)
        self.assertEqual(deltas[0]["delta"]["role"], "assistant")
        for each in deltas[:-1]:
            self.assertTrue(each["delta"]["content"], "a chunk without new text")
            self.assertIsNone(each["finish_reason"])
        self.assertEqual((deltas[-1]["delta"], deltas[-1]["finish_reason"]), ({}, "stop"))
        self.assertEqual("".join(each["delta"].get("content", "") for each in deltas),
                         whole["choices"][0]["message"]["content"])

    def test_usage_of_streams(self):
        events = server.post(CHAT, chat(stream=True, stream_options={"include_usage": True})).events()
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"]["prompt_tokens"],
                         server.post(CHAT, chat()).json()["usage"]["prompt_tokens"])
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = server.post(CHAT, chat(stream=True, max_tokens=8, stream_options=options)).events()
        counts = [event["usage"]["completion_tokens"] for event in events]
        self.assertEqual((counts, counts[-1]), (sorted(counts), 8))

    def test_content_as_parts_and_roles(self):
        plain = server.post(CHAT, chat("How many?", max_tokens=4)).json()
        parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
        self.assertEqual(server.post(CHAT, chat(parts, max_tokens=4)).json()["usage"], plain["usage"])
        history = {"max_tokens": 2, "messages": [
            {"role": "developer", "content": "Be brief."}, {"role": "user", "content": "5 + 3?"},
            {"role": "assistant", "content": None, "reasoning_content": "Use it.", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 5}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "8"}], "tools": [TOOL]}
        self.assertEqual(server.post(CHAT, history).status, 200)

    def test_thinking_is_kept_apart(self):
        plain = server.post(CHAT, chat(max_tokens=8)).json()
        self.assertEqual(plain["usage"]["completion_tokens_details"]["reasoning_tokens"], 0)
        for more in ({"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
            message = server.post(CHAT, chat(max_tokens=8, **more)).json()
            self.assertEqual(message["usage"]["completion_tokens_details"]["reasoning_tokens"], 8)
            self.assertTrue(message["choices"][0]["message"]["reasoning_content"])
            self.assertEqual(message["choices"][0]["message"]["content"], "")
        off = chat(max_tokens=8, enable_thinking=True, chat_template_kwargs={"enable_thinking": False})
        self.assertEqual(server.post(CHAT, off).json()["choices"], plain["choices"])
        for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
            self.assertEqual(server.post(CHAT, chat(max_tokens=1, reasoning_effort=effort)).status, 200)

    def test_several_answers(self):
        more = {"n": 3, "temperature": 1, "seed": 7, "max_tokens": 8}
        found = server.post(CHAT, chat(**more)).json()
        texts = [each["message"]["content"] for each in found["choices"]]
        self.assertEqual([each["index"] for each in found["choices"]], [0, 1, 2])
        self.assertEqual(found["usage"]["completion_tokens"], 24)
        alone = [server.post(CHAT, chat(**{**more, "n": 1, "seed": seed})).json() for seed in (7, 8, 9)]
        self.assertEqual([each["choices"][0]["message"]["content"] for each in alone], texts)
        self.assertEqual(found["usage"]["prompt_tokens"], alone[0]["usage"]["prompt_tokens"])
        streamed = [""] * 3
        for event in server.post(CHAT, chat(stream=True, **more)).events():
            for each in event["choices"]:
                streamed[each["index"]] += each["delta"].get("content", "")
        self.assertEqual(streamed, texts)

    def test_many_at_a_time(self):
        wanted = server.post(CHAT, chat()).json()["choices"]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda _: server.post(CHAT, chat()).json()["choices"], range(24)))
        self.assertTrue(all(each == wanted for each in found))

    def test_tools_none_keeps_them_out_of_the_prompt(self):
        def asked(**more):
            return server.post(CHAT, chat(max_tokens=1, **more)).json()["usage"]["prompt_tokens"]
        self.assertEqual(asked(tools=[TOOL], tool_choice="none"), asked())
        self.assertGreater(asked(tools=[TOOL]), asked())


class Completions(unittest.TestCase):
    def ids(self, text):
        return server.post("/tokenize", {"prompt": text}).json()["tokens"]

    def test_forms_of_prompts(self):
        ids = self.ids("Tom has 3")
        whole = server.post(COMPLETIONS, {"prompt": "Tom has 3", "max_tokens": 6}).json()
        self.assertEqual(whole["object"], "text_completion")
        text = whole["choices"][0]["text"]
        self.assertEqual(whole["choices"][0]["finish_reason"], "length")
        for prompt, count in ((ids, 1), (["Tom has 3"] * 2, 2), ([ids, ids, ids], 3)):
            found = server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 6}).json()
            self.assertEqual([each["text"] for each in found["choices"]], [text] * count)
            self.assertEqual([each["index"] for each in found["choices"]], list(range(count)))
            self.assertEqual(found["usage"]["prompt_tokens"], count * len(ids))
        self.assertEqual(server.post(COMPLETIONS, {"prompt": "Tom"}).json()["usage"]["completion_tokens"], 16)

    def test_echo_and_no_tokens(self):
        more = {"prompt": "Tom has 3", "max_tokens": 4}
        text = server.post(COMPLETIONS, more).json()["choices"][0]["text"]
        echoed = server.post(COMPLETIONS, {**more, "echo": True}).json()
        self.assertEqual(echoed["choices"][0]["text"], "Tom has 3" + text)
        events = server.post(COMPLETIONS, {**more, "echo": True, "stream": True}).events()
        self.assertEqual("".join(event["choices"][0]["text"] for event in events), "Tom has 3" + text)
        for stream in (False, True):
            none = server.post(COMPLETIONS, {**more, "max_tokens": 0, "echo": True, "stream": stream})
            choices = none.events()[0]["choices"] if stream else none.json()["choices"]
            self.assertEqual((choices[0]["text"], choices[0]["finish_reason"]), ("Tom has 3", "length"))

    def test_every_chunk_has_a_choice(self):
        events = server.post(COMPLETIONS, {"prompt": "Tom", "max_tokens": 8, "ignore_eos": True,
                                           "temperature": 0, "best_of": 1, "logprobs": None,
                                           "repetition_penalty": 1.0, "stream": True}).events()
        self.assertTrue(all(len(event["choices"]) == 1 for event in events))
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "length")

    def test_stops(self):
        more = {"prompt": "Tom has 3 boxes", "max_tokens": 40}
        text = server.post(COMPLETIONS, more).json()["choices"][0]["text"]
        stop = text[4:6]
        for asked in (stop, [stop, "never"]):
            choice = server.post(COMPLETIONS, {**more, "stop": asked}).json()["choices"][0]
            self.assertEqual((choice["text"], choice["finish_reason"], choice["stop_reason"]),
                             (text[:text.index(stop)], "stop", stop))
        found = server.post(COMPLETIONS, {**more, "return_token_ids": True}).json()["choices"][0]
        self.assertEqual(found["prompt_token_ids"], self.ids("Tom has 3 boxes"))
        stopped = server.post(COMPLETIONS, {**more, "stop_token_ids": found["token_ids"][2:3]}).json()
        self.assertLessEqual(stopped["usage"]["completion_tokens"], 3)
        events = server.post(COMPLETIONS, {**more, "return_token_ids": True, "stream": True}).events()
        self.assertEqual(sum((event["choices"][0]["token_ids"] for event in events), []),
                         found["token_ids"])

    def test_edited_draws(self):
        body = {"prompt": "Tom has 3", "max_tokens": 6, "temperature": 0, "return_token_ids": True}
        plain = server.post(COMPLETIONS, body).json()["choices"][0]["token_ids"]
        banned = {str(token): -100 for token in plain}
        found = server.post(COMPLETIONS, {**body, "logit_bias": banned}).json()["choices"][0]["token_ids"]
        self.assertFalse(set(plain) & set(found))
        wanted = server.post(COMPLETIONS, {**body, "logit_bias": {"5": 100}}).json()["choices"][0]
        self.assertEqual(wanted["token_ids"], [5] * 6)
        apart = {**body, "logit_bias": {"5": 90}, "frequency_penalty": 2, "presence_penalty": 2, "min_p": 0.1,
                 "repetition_penalty": 10}
        self.assertNotEqual(server.post(COMPLETIONS, apart).json()["choices"][0]["token_ids"], [5] * 6)
        whole = server.post(CHAT, chat()).json()["usage"]["completion_tokens"]
        longer = server.post(CHAT, chat(min_tokens=whole + 5)).json()["usage"]["completion_tokens"]
        self.assertGreaterEqual(longer, whole + 5)

    def test_log_probabilities(self):
        body = {"prompt": "Tom has 3", "max_tokens": 6, "temperature": 0, "logprobs": 3}
        choice = server.post(COMPLETIONS, body).json()["choices"][0]
        told = choice["logprobs"]
        self.assertEqual("".join(told["tokens"]), choice["text"])
        for token, own, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"]):
            self.assertEqual((max(top.values()), top[token], len(top)), (own, own, 3))
            self.assertLessEqual(own, 0)
        self.assertEqual(told["text_offset"], [len("".join(told["tokens"][:i])) for i in range(6)])
        streamed = [event["choices"][0]["logprobs"] for event in
                    server.post(COMPLETIONS, {**body, "stream": True}).events()]
        for name in told:
            self.assertEqual(sum((each[name] for each in streamed if each), []), told[name], name)
        more = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "temperature": 0}
        choice = server.post(CHAT, chat(**more)).json()["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual("".join(each["token"] for each in content), choice["message"]["content"])
        for each in content:
            self.assertEqual(bytes(each["bytes"]).decode(), each["token"])
            self.assertEqual((each["top_logprobs"][0]["token"], len(each["top_logprobs"])), (each["token"], 2))
        streamed = [event["choices"][0]["logprobs"] for event in
                    server.post(CHAT, chat(stream=True, **more)).events()]
        self.assertEqual(sum((each["content"] for each in streamed if each), []), content)

    def test_log_probabilities_of_prompts(self):
        body = {"prompt": "Tom has 3 boxes", "temperature": 0, "logprobs": 2, "echo": True}
        alone = server.post(COMPLETIONS, {**body, "max_tokens": 0}).json()
        told = alone["choices"][0]["logprobs"]
        self.assertEqual((alone["choices"][0]["text"], alone["usage"]["completion_tokens"]), (body["prompt"], 0))
        self.assertEqual("".join(told["tokens"]), body["prompt"])
        self.assertEqual((told["token_logprobs"][0], told["top_logprobs"][0]), (None, None))
        for token, own, top in list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"]))[1:]:
            self.assertEqual(top[token], own)
            self.assertLess(own, 0)
            self.assertIn(len(top), (2, 3))
        more = server.post(COMPLETIONS, {**body, "max_tokens": 3, "prompt_logprobs": 5}).json()["choices"][0]
        count = len(told["tokens"])
        for name, values in told.items():
            self.assertEqual(more["logprobs"][name][:count], values, name)
        self.assertEqual(len(more["logprobs"]["tokens"]), count + 3)
        offsets = more["logprobs"]["text_offset"]
        self.assertEqual(offsets, [len("".join(more["logprobs"]["tokens"][:i])) for i in range(count + 3)])
        self.assertIsNone(more["prompt_logprobs"][0])
        for i, by_id in enumerate(more["prompt_logprobs"][1:], 1):
            self.assertIn(len(by_id), (5, 6))
            in_order = sorted(by_id.values(), key=lambda each: each["rank"])
            self.assertEqual([each["rank"] for each in in_order[:5]], [1, 2, 3, 4, 5])
            logprobs = [each["logprob"] for each in in_order]
            self.assertEqual(logprobs, sorted(logprobs, reverse=True))
            [own] = [each for each in by_id.values() if each["decoded_token"] == told["tokens"][i]]
            self.assertEqual(own["logprob"], told["token_logprobs"][i])
            self.assertEqual(own["rank"] <= 5, len(by_id) == 5)
        streamed = [event["choices"][0] for event in
                    server.post(COMPLETIONS, {**body, "max_tokens": 3, "stream": True}).events()]
        self.assertEqual("".join(each["text"] for each in streamed), more["text"])
        for name in told:
            parts = (each["logprobs"][name] for each in streamed if each["logprobs"])
            self.assertEqual(sum(parts, []), more["logprobs"][name], name)
        found = server.post(CHAT, chat(prompt_logprobs=0, max_tokens=1)).json()
        self.assertEqual(len(found["prompt_logprobs"]), found["usage"]["prompt_tokens"])

    def test_more_log_probabilities_than_an_answer_holds(self):
        most = server.get("/v1/models").json()["data"][0]["max_model_len"]
        for body in ({"prompt": [[5] * (most - 2)] * 50, "n": 20, "max_tokens": 0, "echo": True, "logprobs": 20},
                     {"prompt": [5] * (most - 2), "n": 1024, "prompt_logprobs": 20}):
            answer = server.post("/v1/completions", body)
            self.assertEqual((answer.status, answer.json()["error"]["param"]), (400, "prompt"), answer.body[:300])
            self.assertIn("accepted are 16777216", answer.json()["error"]["message"])

    # What an earlier request left behind is not gone on from where something of it is told.
    def test_log_probabilities_of_kept_prompts(self):
        body = {"prompt": [9] * 300 + [8, 7], "max_tokens": 1, "temperature": 0, "logprobs": 1}
        plain, asked, again = (server.post(COMPLETIONS, {**body, **more}).json() for more in (
            {}, {"echo": True}, {"echo": True}))
        self.assertEqual(asked["choices"], again["choices"])
        self.assertEqual(asked["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertEqual(asked["choices"][0]["logprobs"]["token_logprobs"][-1:],
                         plain["choices"][0]["logprobs"]["token_logprobs"])
        self.assertEqual(len(asked["choices"][0]["logprobs"]["token_logprobs"]), 303)

    def test_log_probabilities_as_sglang_has_them(self):
        ids = [51, 471, 311, 220, 18, 877]
        told = server.post(COMPLETIONS, {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True,
                                         "logprobs": 2}).json()["choices"][0]["logprobs"]
        body = {"input_ids": ids, "return_logprob": True, "top_logprobs_num": 2,
                "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        for start in (0, 3, 5):
            info = server.post("/generate", {**body, "logprob_start_len": start,
                                             "return_text_in_logprobs": True}).json()["meta_info"]
            wanted = [list(each) for each in zip(told["token_logprobs"], ids, told["tokens"])][start:]
            wanted[0][0] = None
            self.assertEqual(info["input_token_logprobs"], wanted)
            self.assertEqual([own for own, _, _ in info["output_token_logprobs"]], told["token_logprobs"][-1:])
            self.assertIsNone(info["input_top_logprobs"][0])
            for listed, top in zip(info["input_top_logprobs"][1:], told["top_logprobs"][start + 1:]):
                self.assertEqual({text: own for own, _, text in listed}.items() - top.items(), set())
                self.assertEqual(len(listed), 2)
        info = server.post("/generate", body).json()["meta_info"]
        self.assertEqual((info["input_token_logprobs"], len(info["output_token_logprobs"])), ([], 1))
        self.assertIsNone(info["output_token_logprobs"][0][2])
        alone = server.post("/generate", {**body, "logprob_start_len": 0,
                                          "sampling_params": {"max_new_tokens": 0}}).json()["meta_info"]
        self.assertEqual((len(alone["input_token_logprobs"]), alone["output_token_logprobs"]), (6, []))
        self.assertNotIn("input_token_logprobs", server.post(
            "/generate", {**body, "return_logprob": False}).json()["meta_info"])

    def test_prompts_that_begin_alike(self):
        body = {"prompt": [7] * 500 + [8], "max_tokens": 2, "temperature": 0}
        first, second = (server.post(COMPLETIONS, body).json() for _ in range(2))
        self.assertEqual(first["choices"], second["choices"])
        cached = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (first, second)]
        self.assertEqual(cached[0], 0)
        self.assertGreater(cached[1], 250)

    def test_seeds(self):
        def asked(**more):
            body = {"prompt": "Tom", "temperature": 1, "max_tokens": 12, "ignore_eos": True, **more}
            return server.post(COMPLETIONS, body).json()["choices"][0]["text"]
        self.assertEqual(asked(seed=3), asked(seed=3))
        self.assertEqual(asked(seed=-1), asked(seed=-1))
        self.assertGreater(len({asked(temperature=3) for _ in range(4)}), 1)


class Generate(unittest.TestCase):
    def test_whole_and_streamed(self):
        body = {"text": "Tom has 3", "sampling_params": {"max_new_tokens": 6, "temperature": 0}}
        whole = server.post("/generate", body).json()
        self.assertEqual(whole["meta_info"]["completion_tokens"], 6)
        self.assertEqual(whole["meta_info"]["finish_reason"], {"type": "length", "length": 6})
        self.assertEqual(len(whole["output_ids"]), 6)
        events = server.post("/generate", {**body, "stream": True}).events()
        texts = [event["text"] for event in events]
        self.assertTrue(all(b.startswith(a) for a, b in zip(texts, texts[1:])))
        self.assertEqual((texts[-1], events[-1]["output_ids"]), (whole["text"], whole["output_ids"]))
        ids = server.post("/tokenize", {"prompt": "Tom has 3"}).json()["tokens"]
        batch = server.post("/generate", {**body, "text": None, "input_ids": [ids, ids]}).json()
        self.assertEqual([each["text"] for each in batch], [whole["text"]] * 2)
        self.assertEqual(server.get("/health_generate").status, 200)


class Messages(unittest.TestCase):
    def body(self, **more):
        return {"model": "tiny", "max_tokens": 60, "messages": [{"role": "user", "content": QUESTION}], **more}

    def events(self, body):
        answer = server.post(MESSAGES, {**body, "stream": True})
        self.assertEqual(answer.status, 200, answer.body)
        found = []
        for block in answer.body.decode().split("\n\n")[:-1]:
            name, data = block.split("\n")
            found.append(json.loads(data[len("data: "):]))
            self.assertEqual(name, "event: " + found[-1]["type"])
        return found

    def test_whole_and_streamed(self):
        whole = server.post(MESSAGES, self.body()).json()
        chatted = server.post(CHAT, chat(QUESTION, max_tokens=60)).json()
        self.assertEqual((whole["type"], whole["role"], whole["stop_reason"], whole["stop_sequence"]),
                         ("message", "assistant", "end_turn", None))
        self.assertEqual(whole["content"],
                         [{"type": "text", "text": chatted["choices"][0]["message"]["content"]}])
        self.assertEqual(whole["usage"]["input_tokens"], chatted["usage"]["prompt_tokens"])
        events = self.events(self.body())
        kinds = [event["type"] for event in events]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})
        self.assertEqual("".join(event["delta"]["text"] for event in events[2:-3]),
                         whole["content"][0]["text"])
        self.assertEqual(events[-2]["usage"]["output_tokens"], whole["usage"]["output_tokens"])

    def test_thinking_blocks(self):
        for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
            more = {"thinking": thinking, "max_tokens": 8, "output_config": {"effort": "high"}}
            whole = server.post(MESSAGES, self.body(**more)).json()
            self.assertEqual([block["type"] for block in whole["content"]], ["thinking"])
            self.assertEqual(whole["stop_reason"], "max_tokens")
            kinds = [event["delta"]["type"] for event in self.events(self.body(**more))
                     if event["type"] == "content_block_delta"]
            self.assertEqual((set(kinds[:-1]), kinds[-1]), ({"thinking_delta"}, "signature_delta"))
        off = server.post(MESSAGES, self.body(thinking={"type": "disabled"}, max_tokens=8)).json()
        self.assertEqual([block["type"] for block in off["content"]], ["text"])

    def test_conversations(self):
        messages = [{"role": "user", "content": [{"type": "text", "text": "5 + 3?"}]},
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "Use it.", "signature": ""},
                        {"type": "text", "text": "Let me see."},
                        {"type": "tool_use", "id": "a", "name": "add", "input": {"a": 5}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a",
                                                  "content": [{"type": "text", "text": "8"}]}]}]
        tools = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}]
        body = {"max_tokens": 4, "messages": messages, "tools": tools,
                "system": [{"type": "text", "text": "Be brief."}]}
        whole = server.post(MESSAGES, body).json()
        counted = server.post(MESSAGES + "/count_tokens", {**body, "model": "tiny"}).json()
        self.assertEqual(counted["input_tokens"], whole["usage"]["input_tokens"])

    def test_stop_sequences(self):
        text = server.post(MESSAGES, self.body()).json()["content"][0]["text"]
        found = server.post(MESSAGES, self.body(stop_sequences=[text[5:7]])).json()
        self.assertEqual((found["stop_reason"], found["stop_sequence"]), ("stop_sequence", text[5:7]))

    def test_errors_have_their_own_form(self):
        for body, status, piece in ((self.body(model="other"), 404, "other"),
                                    ({"messages": []}, 400, "max_tokens"),
                                    (self.body(tool_choice={"type": "some"}), 400, "tool_choice"),
                                    (self.body(thinking={"type": "deep"}), 400, "thinking.type"),
                                    (self.body(messages=[{"role": "user", "content": [
                                        {"type": "image", "source": {}}]}]), 400, "text only")):
            answer = server.post(MESSAGES, body)
            self.assertEqual(answer.status, status, answer.body)
            found = answer.json()
            self.assertEqual(found["type"], "error")
            self.assertIn(found["error"]["type"], ("invalid_request_error", "not_found_error"))
            self.assertIn(piece, found["error"]["message"])


class Others(unittest.TestCase):
    def test_about_the_server(self):
        self.assertEqual(server.get("/health").json(), {"status": "ok"})
        self.assertEqual(server.get("/ping").status, 200)
        self.assertTrue(server.get("/version").json()["version"])
        models = server.get("/v1/models").json()
        self.assertEqual([each["id"] for each in models["data"]], ["tiny"])
        self.assertEqual(models["data"][0]["max_model_len"], 1024)
        self.assertEqual(server.get("/v1/models/tiny").json(), models["data"][0])
        self.assertEqual(server.get("/v1/models/other").status, 404)
        self.assertTrue(server.get("/get_model_info").json()["is_generation"])

    def test_what_routers_ask(self):
        info = server.get("/server_info").json()
        self.assertEqual(info, server.get("/get_server_info").json())
        self.assertEqual((info["served_model_name"], info["tp_size"], info["dp_size"]), ("tiny", 2, 1))
        self.assertEqual(info["context_length"], 1024)
        nothing = {"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}
        self.assertTrue(wait_until(lambda: server.get("/get_load").json() == [nothing]))
        client = server.client()
        client.ask("POST", "/v1/chat/completions", long_chat(stream=True))
        client.head()
        [load] = server.get("/get_load").json()
        self.assertEqual((load["num_reqs"], load["num_waiting_reqs"]), (1, 0))
        self.assertGreater(load["num_tokens"], 20)
        self.assertTrue(wait_until(lambda: 0 < server.metric("vllm:kv_cache_usage_perc") < 0.2))
        client.close()
        self.assertTrue(wait_until(lambda: server.get("/get_load").json() == [nothing]))
        self.assertTrue(wait_until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0))

    def test_prompts_that_routers_ask_for(self):
        tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        asked = chat(tools=tools, max_tokens=1)
        found = server.post("/v1/chat/completions/render", asked).json()
        self.assertEqual(found["token_ids"], server.post("/tokenize", asked).json()["tokens"])
        self.assertEqual(found["model"], "tiny")
        found = server.post("/v1/completions/render", {"prompt": ["Tom has", "Ann"]}).json()
        self.assertEqual([each["token_ids"] for each in found],
                         [server.post("/tokenize", {"prompt": text}).json()["tokens"]
                          for text in ("Tom has", "Ann")])
        self.assertEqual(server.post("/v1/completions/render", {"prompt": "Tom", "model": "x"}).status, 404)
        self.assertEqual(server.post("/v1/chat/completions/render", {}).status, 400)

    def test_texts_and_ids(self):
        text = "Stra\u00dfe \u65e5\u672c <think>"
        found = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
        self.assertEqual((found["count"], len(found["token_strs"])), (len(found["tokens"]),) * 2)
        self.assertEqual(server.post("/detokenize", {"tokens": found["tokens"]}).json(), {"prompt": text})
        rendered = server.post("/tokenize", chat("How many?")).json()
        self.assertEqual(rendered["count"], server.post(
            CHAT, chat("How many?", max_tokens=1)).json()["usage"]["prompt_tokens"])

    def test_metrics(self):
        before = {name: server.metric(name) for name in (
            "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total",
            "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count")}
        usage = server.post(CHAT, long_chat(max_tokens=5)).json()["usage"]
        grown = [server.metric(name) - value for name, value in before.items()]
        self.assertEqual(grown, [5, usage["prompt_tokens"], 1, 1, 1])
        self.assertEqual(server.metric("tenon_healthy"), 1)
        self.assertTrue(wait_until(lambda: server.metric("tenon_engine_steps_total") > 0))
        self.assertGreater(server.metric("tenon_boundary_calls_total"), 0)
        for line in server.get("/metrics").body.decode().splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) \S+ .+|[a-z_:0-9]+\{[^{}]*\} [-+0-9.e]+)$')


class OtherModels(unittest.TestCase):
    """Servers of their own."""

    def start(self, *options):
        other = Server("--max-context", "256", "--quiet", *options)
        self.addCleanup(other.stop)
        return other

    def directory(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        return pathlib.Path(held.name)

    def test_efforts_that_a_template_refuses(self):
        model = copy_of_model(self.directory())
        template = pathlib.Path(model) / "chat_template.jinja"
        text = template.read_text()
        template.unlink()
        template.write_text("{%- if reasoning_effort is defined and reasoning_effort not in ('low', 'xhigh') -%}"
                            "{{- raise_exception('Efforts are low and xhigh.') -}}{%- endif -%}" + text)
        other = self.start("--model", model)
        for effort in ("none", "minimal", "low", "high", "xhigh", "max"):
            self.assertEqual(other.post(CHAT, chat(max_tokens=1, reasoning_effort=effort)).status, 200, effort)
            body = {**chat(), "max_tokens": 1, "output_config": {"effort": effort}}
            self.assertEqual(other.post(MESSAGES, body).status, 200, effort)
        answer = other.post(CHAT, chat(reasoning_effort="immense"))
        self.assertEqual(answer.status, 400)
        self.assertIn("Efforts are low and xhigh.", answer.json()["error"]["message"])

    def test_without_a_tokenizer(self):
        model = copy_of_model(self.directory(), without=("tokenizer.json",))
        other = self.start("--model", model, "--load-format", "dummy", "--served-model-name", "a",
                           "--served-model-name", "b", "--any-model-name")
        body = {"prompt": [5, 6], "max_tokens": 4, "ignore_eos": True, "model": "whatever"}
        whole = other.post(COMPLETIONS, body).json()["choices"][0]
        self.assertEqual((whole["text"], len(whole["token_ids"])), ("", 4))
        events = other.post(COMPLETIONS, {**body, "stream": True}).events()
        self.assertEqual(sum((event["choices"][0]["token_ids"] for event in events), []),
                         whole["token_ids"])
        self.assertEqual(other.post(COMPLETIONS, {**body, "prompt": "Tom"}).status, 400)
        self.assertEqual(other.post("/detokenize", {"tokens": [5]}).status, 400)
        # Any name is a model's, also where it is asked for, and however it is spelt.
        for path, name in (("whatever", "whatever"), ("a", "a"), ("x%2Fy%20z%", "x/y z%")):
            answer = other.get("/v1/models/" + path)
            self.assertEqual((answer.status, answer.json()["id"]), (200, name))
        self.assertEqual(other.post(CHAT, chat()).status, 400)
        self.assertEqual([each["id"] for each in other.get("/v1/models").json()["data"]], ["a", "b"])

    def test_defaults_of_the_checkpoint(self):
        model = copy_of_model(self.directory(), without=("generation_config.json",))
        config = pathlib.Path(model) / "generation_config.json"
        body = {"prompt": "Tom", "max_tokens": 12, "seed": 5, "ignore_eos": True}
        wanted = {}
        for name, more in (("greedy", {"temperature": 0}), ("drawn", {"temperature": 0.7, "top_k": 5}),
                           ("plain", {"temperature": 1})):
            wanted[name] = server.post(COMPLETIONS, {**body, **more}).json()["choices"][0]["text"]
        for text, option, name in (('{"temperature": 0.7, "top_k": 5}', [], "drawn"),
                                   ('{"do_sample": false, "temperature": 0.7}', [], "greedy"),
                                   ('{"temperature": 0.7}', ["--no-generation-config"], "plain")):
            config.write_text(text)
            other = self.start("--model", model, *option)
            self.assertEqual(other.post(COMPLETIONS, body).json()["choices"][0]["text"], wanted[name], name)


class Refusals(unittest.TestCase):
    def refused(self, path, body, status, param, *pieces):
        answer = server.post(path, body)
        self.assertEqual(answer.status, status, (body, answer.body))
        error = answer.json()["error"]
        self.assertEqual(error["param"], param, error)
        for piece in pieces:
            self.assertIn(piece, error["message"])

    def test_what_is_not_supported_is_said(self):
        for name, value in (("prompt_logprobs", -1), ("use_beam_search", True), ("echo", True),
                            ("functions", [{}]), ("best_of", 2), ("continue_final_message", True)):
            self.refused(CHAT, chat(**{name: value}), 400, name)
        self.refused(CHAT, chat(prompt_logprobs=1, stream=True), 400, "prompt_logprobs", "streamed")
        self.refused("/generate", {"input_ids": [5, 6], "return_logprob": True, "logprob_start_len": 2}, 400,
                     "logprob_start_len", "accepts -1 to 1")
        nothing = {"min_p": 0, "presence_penalty": 0.0, "frequency_penalty": 0, "repetition_penalty": 1.0,
                   "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "min_tokens": 0,
                   "response_format": {"type": "text"}, "best_of": 1, "user": "me", "priority": 3,
                   "whatever": [1], "tools": [], "tool_choice": "auto", "stop": None, "seed": None}
        self.assertEqual(server.post(CHAT, chat(max_tokens=1, **nothing)).status, 200)

    def test_wrong_types_and_ranges(self):
        for name, value in (("temperature", "hot"), ("temperature", -1), ("temperature", True),
                            ("top_p", 0), ("top_p", 1.5), ("top_k", 1.5), ("top_k", -2), ("n", 0),
                            ("n", 5000), ("max_tokens", 0), ("max_tokens", "5"), ("seed", "x"),
                            ("stop", 5), ("stop", ["a", 5]), ("stop_token_ids", [-1]),
                            ("stream", "yes"), ("stream_options", {}), ("model", 5),
                            ("min_p", 2), ("repetition_penalty", 0), ("presence_penalty", 3),
                            ("frequency_penalty", "x"), ("logit_bias", {"a": 1}), ("logit_bias", [5]),
                            ("logit_bias", {"5": 101}), ("min_tokens", -1), ("logprobs", 1),
                            ("top_logprobs", 3), ("messages", []), ("messages", "hello"), ("tools", [{}]),
                            ("tools", {}), ("chat_template_kwargs", [])):
            self.refused(CHAT, {**chat(), name: value}, 400, name)
        self.refused(CHAT, {}, 400, "messages", "missing")
        self.refused(CHAT, {"messages": ["x"]}, 400, "messages[0]")
        self.refused(CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0]", "role")
        image = [{"type": "image_url", "image_url": {"url": "data:"}}]
        self.refused(CHAT, chat(image), 400, "messages[0].content", "text only")
        for prompt in (None, 5, [], [[]], {"a": 1}, [1, "a"], ["a", 1], [-1], [1.5]):
            self.assertEqual(server.post(COMPLETIONS, {"prompt": prompt}).status, 400, prompt)
        self.refused(COMPLETIONS, {"prompt": [999999]}, 400, "prompt", "999999")
        for prompt, piece in ((5, "is 5"), ([], "is []"), ([1, -1], "holds -1"), ([[1], ["a"]], 'holds "a"'),
                              (["a", 1], "holds 1"), (["a", ""], "no tokens")):
            self.refused(COMPLETIONS, {"prompt": prompt}, 400, "prompt", piece)
        self.refused("/generate", {"input_ids": [999999]}, 400, "input_ids", "999999")
        self.refused("/generate", {"text": ""}, 400, "text", "no tokens")
        self.refused("/detokenize", {"tokens": [1, 999999]}, 400, "tokens", "999999")
        for bias, piece in (({"07": 1}, '"07": 1'), ({"-0": 1}, '"-0": 1'), ({"999999": 1}, "999999"),
                            ({"5": "x"}, '"5": "x"')):
            self.refused(COMPLETIONS, {"prompt": "a", "logit_bias": bias}, 400, "logit_bias", piece)
        self.refused("/generate", {"text": "a", "sampling_params": {"logit_bias": {"999999": 1}}}, 400,
                     "sampling_params.logit_bias", "999999")
        self.refused(COMPLETIONS, {"prompt": "a", "min_tokens": 17}, 400, "min_tokens", "17", "0 to 16")
        self.refused("/generate", {"text": "a", "sampling_params": {"min_new_tokens": 5, "max_new_tokens": 3}},
                     400, "sampling_params.min_new_tokens", "is 5", "0 to 3")
        self.refused("/generate", {"text": "x", "sampling_params": {"temperature": "x"}}, 400,
                     "sampling_params.temperature")
        self.refused("/generate", {"text": "x", "sampling_params": {"json_schema": 5}}, 400,
                     "sampling_params.json_schema")

    def test_nothing_of_a_conversation_is_lost(self):
        """What has a wrong type is refused, and not left out of the prompt."""
        for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            self.refused(CHAT, {"messages": [{"role": "user", "content": "x", name: 5}]}, 400,
                         f"messages[0].{name}", "is 5")
        self.refused(CHAT, {"messages": [{"role": "user", "content": [{"type": [], "text": "x"}]}]}, 400,
                     "messages[0].content", "type is []")
        self.refused(CHAT, chat(reasoning={"effort": 5}), 400, "reasoning.effort", "is 5")
        tool = {"type": "function", "function": {"name": "f", "parameters": 5}}
        self.refused(CHAT, chat(tools=[tool]), 400, "tools", "parameters")
        for more, pieces in (({"system": [5]}, ("system", "holds 5")),
                             ({"system": [{"type": "text"}]}, ("system", "text blocks")),
                             ({"system": [{"type": {}, "text": "x"}]}, ("system", "text blocks")),
                             ({"system": [{"type": "image", "text": "x"}]}, ("system", "text blocks")),
                             ({"messages": [{"role": "user", "content": [
                                 {"type": "tool_result", "content": [{"type": 5, "text": "x"}]}]}]},
                              ("messages[0].content", "type is 5")),
                             ({"output_config": {"effort": 5}}, ("output_config.effort", "is 5")),
                             ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
                              ("messages[0].content", '"text"')),
                             ({"messages": [{"role": "assistant", "content": [{"type": "thinking"}]}]},
                              ("messages[0].content", '"thinking"'))):
            answer = server.post(MESSAGES, {**chat(), "max_tokens": 1, **more})
            self.assertEqual(answer.status, 400, (more, answer.body))
            for piece in pieces:
                self.assertIn(piece, answer.json()["error"]["message"])

    def test_contexts_and_templates(self):
        self.refused(COMPLETIONS, {"prompt": [5] * 1100}, 400, "prompt", "maximum context length is 1024", "1100")
        self.assertEqual(server.post(COMPLETIONS, {"prompt": [5] * 1100}).json()["error"]["code"],
                         "context_length_exceeded")
        self.refused(CHAT, chat("a" * 4000), 400, "messages", "maximum context length is 1024")
        self.refused(CHAT, {"messages": [{"role": "system", "content": "x"}]}, 400, "messages",
                     "There is no user query")
        self.refused(CHAT, {"messages": [{"role": "judge", "content": "x"}, *chat()["messages"]]}, 400,
                     "messages", "Unknown role: judge")
        self.refused(CHAT, chat(model="other"), 404, "model", "\"tiny\"")

    def test_bodies_that_are_none(self):
        for body in (b"", b"{", b"[]", b"5", b"\xff", b'{"messages": NaN}', b"[" * 5000,
                     b'{"a":' * 200 + b"1" + b"}" * 200):
            self.refused(CHAT, body, 400, None)
        for more, piece in ([("content-type", "text/plain")], "text/plain"), ([("content-encoding", "gzip")], "gzip"):
            answer = server.post(CHAT, chat(), more)
            self.assertEqual(answer.status, 415)
            self.assertIn(piece, answer.json()["error"]["message"])
        self.assertEqual(server.get("/nowhere").status, 404)
        self.assertEqual(server.get(CHAT).status, 405)
        self.assertEqual(server.post("/health", {}).status, 405)


if __name__ == "__main__":
    unittest.main()
