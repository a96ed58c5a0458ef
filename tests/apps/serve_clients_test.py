#!/usr/bin/env python3
"""tenon serve through the Python clients of OpenAI and Anthropic: serve_clients_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "openai==3.57.0", "anthropic==2.14.0")

import json  # noqa: E402
import typing  # noqa: E402
import unittest  # noqa: E402

import anthropic  # noqa: E402
import openai  # noqa: E402
import pydantic  # noqa: E402

from serve_support import Server, skip_without_grammars  # noqa: E402
from support import QUESTION  # noqa: E402

ASKED = [{"role": "user", "content": QUESTION}]
TOOLS = [{"type": "function", "function": {
    "name": "multiply", "description": "Multiplies.", "parameters": {
        "type": "object", "required": ["a", "b"],
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}}}]
server = None


class Order(pydantic.BaseModel):
    name: typing.Annotated[str, pydantic.Field(max_length=12)]
    count: typing.Annotated[int, pydantic.Field(ge=0, le=99)]
    colours: typing.Annotated[list[typing.Literal["red", "green"]], pydantic.Field(max_length=2)]


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny",
                    "--served-model-name", "team/tiny model", "--api-key", "secret", "--quiet")
    unittest.addModuleCleanup(server.stop)


class OpenAi(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret",
                                    max_retries=0)
        self.addCleanup(self.client.close)

    def test_chat(self):
        whole = self.client.chat.completions.create(model="tiny", messages=ASKED, temperature=0)
        self.assertTrue(whole.choices[0].message.content)
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        text, usage = "", None
        for chunk in self.client.chat.completions.create(
                model="tiny", messages=ASKED, temperature=0, stream=True,
                stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)

    def test_stream_helper(self):
        with self.client.chat.completions.stream(model="tiny", messages=ASKED, temperature=0) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].finish_reason, "stop")
        self.assertTrue(final.choices[0].message.content)

    def test_completions_and_models(self):
        self.assertEqual([each.id for each in self.client.models.list()],
                         ["tiny", "team/tiny model"])
        found = self.client.completions.create(model="tiny", prompt=["Tom", "Ann"], max_tokens=3,
                                               extra_body={"ignore_eos": True})
        self.assertEqual([each.finish_reason for each in found.choices], ["length"] * 2)

    def test_names_with_a_slash(self):
        self.assertEqual(self.client.models.retrieve("team/tiny model").id, "team/tiny model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("team/other")

    def test_calls_of_tools_go_there_and_back(self):
        """The loop of an agent, three turns of calls: each prompt has all that was called and told. The
        tiny model calls nothing by itself, so its calls are put into the conversation here."""
        messages = [{"role": "system", "content": "Be brief."}, *ASKED]
        asked = {"model": "tiny", "messages": messages, "tools": TOOLS, "temperature": 0,
                 "max_completion_tokens": 8, "parallel_tool_calls": False, "tool_choice": "auto"}
        before = self.client.chat.completions.create(**asked).usage.prompt_tokens
        for turn in range(3):
            messages.append({"role": "assistant", "content": None, "tool_calls": [
                {"id": f"call_{turn}", "type": "function", "function": {
                    "name": "multiply", "arguments": json.dumps({"a": turn, "b": "12\n"})}}]})
            messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": f"<{turn * 12}>"})
            whole = self.client.chat.completions.create(**asked)
            streamed = "".join(each.choices[0].delta.content or "" for each in
                               self.client.chat.completions.create(**asked, stream=True))
            self.assertEqual(streamed, whole.choices[0].message.content)
            self.assertGreater(whole.usage.prompt_tokens, before)
            before = whole.usage.prompt_tokens
            key = [("authorization", "Bearer secret")]
            ids = server.post("/tokenize", {"messages": messages, "tools": TOOLS}, key).json()["tokens"]
            self.assertEqual(len(ids), before)
            prompt = server.post("/detokenize", {"tokens": ids}, key).json()["prompt"]
            for past in range(turn + 1):
                self.assertIn(f"<function=multiply>\n<parameter=a>\n{past}\n</parameter>\n"
                              "<parameter=b>\n12\n\n</parameter>", prompt)
                self.assertIn(f"<tool_response>\n<{past * 12}>\n</tool_response>", prompt)

    def test_structured_answers(self):
        skip_without_grammars(self, server, [("authorization", "Bearer secret")])
        for temperature in (0, 1):
            found = self.client.chat.completions.parse(
                model="tiny", messages=ASKED, max_tokens=400, temperature=temperature, seed=3,
                response_format=Order).choices[0]
            self.assertEqual(found.finish_reason, "stop")
            self.assertIsInstance(found.message.parsed, Order)
            self.assertLessEqual(len(found.message.parsed.colours), 2)

    def test_calls_that_must_come(self):
        skip_without_grammars(self, server, [("authorization", "Bearer secret")])
        tools = [openai.pydantic_function_tool(Order, name="order")]
        named = {"type": "function", "function": {"name": "order"}}
        for choice in ("required", named):
            found = self.client.chat.completions.parse(
                model="tiny", messages=ASKED, max_tokens=400, tools=tools, tool_choice=choice,
                parallel_tool_calls=False).choices[0]
            self.assertEqual(found.finish_reason, "tool_calls")
            [call] = found.message.tool_calls
            self.assertIsInstance(call.function.parsed_arguments, Order)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="tiny", messages=ASKED,
                                                response_format={"type": "json_array"})
        self.assertEqual(caught.exception.param, "response_format")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="tiny", prompt=[5] * 1100)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="other", messages=ASKED)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.embeddings.create(model="tiny", input="Tom")
        self.assertEqual(caught.exception.code, "not_found")
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()


class Anthropic(unittest.TestCase):
    def setUp(self):
        self.client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="secret",
                                          max_retries=0)
        self.addCleanup(self.client.close)
        self.asked = {"model": "tiny", "max_tokens": 60, "messages": ASKED}

    def test_messages(self):
        whole = self.client.messages.create(**self.asked)
        self.assertEqual((whole.stop_reason, whole.content[0].type), ("end_turn", "text"))
        with self.client.messages.stream(**self.asked) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        counted = self.client.messages.count_tokens(model="tiny", messages=ASKED)
        self.assertEqual(counted.input_tokens, whole.usage.input_tokens)

    def test_thinking(self):
        asked = {**self.asked, "max_tokens": 16, "thinking": {"type": "adaptive"}}
        with self.client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        self.assertEqual([block.type for block in final.content], ["thinking"])
        self.assertEqual(final.stop_reason, "max_tokens")

    def test_calls_of_tools_go_there_and_back(self):
        tools = [{"name": each["function"]["name"], "description": each["function"]["description"],
                  "input_schema": each["function"]["parameters"]} for each in TOOLS]
        messages = [*ASKED, {"role": "assistant", "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "multiply", "input": {"a": 3, "b": "12"}}]}]
        asked = {**self.asked, "messages": messages, "tools": tools, "max_tokens": 8}
        before = self.client.messages.create(**asked).usage.input_tokens
        messages.append({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "36", "is_error": False}]})
        self.assertGreater(self.client.messages.create(**asked).usage.input_tokens, before)

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.client.messages.create(**self.asked, tool_choice={"type": "some"})
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.create(**{**self.asked, "model": "other"})


if __name__ == "__main__":
    unittest.main()
