#!/usr/bin/env python3
"""tenon serve through LangChain: serve_langchain_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "langchain-openai==1.7.4", "langchain-core==1.8.3")

import asyncio  # noqa: E402
import typing  # noqa: E402
import unittest  # noqa: E402

import pydantic  # noqa: E402

from langchain_core.messages import (AIMessage, HumanMessage, SystemMessage,  # noqa: E402
                                     ToolMessage)
from langchain_core.tools import tool  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402

from serve_support import Server, skip_without_grammars  # noqa: E402
from support import QUESTION  # noqa: E402

server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--api-key", "secret", "--quiet")
    unittest.addModuleCleanup(server.stop)


# Bounded, as the tiny model ends no number by itself.
Factor = typing.Annotated[int, pydantic.Field(ge=0, le=99)]


@tool
def multiply(a: Factor, b: Factor) -> int:
    """Multiplies."""
    return a * b


class LangChain(unittest.TestCase):
    def model(self, kind=ChatOpenAI, **more):
        return kind(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret", model="tiny",
                    temperature=0, max_retries=0, **more)

    def test_chat(self):
        whole = self.model().invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
        self.assertTrue(whole.content)
        self.assertEqual(whole.response_metadata["finish_reason"], "stop")
        parts = list(self.model(stream_usage=True).stream([SystemMessage("Be brief."),
                                                           HumanMessage(QUESTION)]))
        self.assertGreater(len(parts), 2)
        self.assertEqual("".join(part.content for part in parts), whole.content)
        told = [part.usage_metadata for part in parts if part.usage_metadata]
        self.assertEqual([each["output_tokens"] for each in told], [whole.usage_metadata["output_tokens"]])

    def test_at_a_time(self):
        wanted = self.model().invoke(QUESTION).content

        async def ask():
            model = self.model()
            return await asyncio.gather(*(model.ainvoke(QUESTION) for _ in range(4)))
        self.assertEqual([each.content for each in asyncio.run(ask())], [wanted] * 4)

    def test_logprobs(self):
        told = self.model(logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTION)
        content = told.response_metadata["logprobs"]["content"]
        self.assertEqual([len(each["top_logprobs"]) for each in content], [2] * 3)

    def test_tools(self):
        model = self.model(max_tokens=8).bind_tools([multiply])
        bare = self.model(max_tokens=8).invoke(QUESTION).usage_metadata["input_tokens"]
        asked = [HumanMessage(QUESTION)]
        first = model.invoke(asked).usage_metadata["input_tokens"]
        self.assertGreater(first, bare)
        call = {"name": "multiply", "args": {"a": 3, "b": 12}, "id": "call_1", "type": "tool_call"}
        asked += [AIMessage("", tool_calls=[call]), ToolMessage(multiply.invoke(call["args"]),
                                                               tool_call_id="call_1")]
        self.assertGreater(model.invoke(asked).usage_metadata["input_tokens"], first)

    def test_a_call_that_must_come(self):
        skip_without_grammars(self, server, [("authorization", "Bearer secret")])
        model = self.model(max_tokens=400).bind_tools([multiply], tool_choice="multiply",
                                                      parallel_tool_calls=False)
        [call] = model.invoke(QUESTION).tool_calls
        self.assertEqual(call["name"], "multiply")
        self.assertIn(multiply.invoke(call["args"]), range(99 * 99 + 1))

    def test_completion(self):
        self.assertTrue(self.model(OpenAI, max_tokens=4).invoke("Tom has 3"))


if __name__ == "__main__":
    unittest.main()
