#!/usr/bin/env python3
"""tenon serve through the Python clients of OpenAI and Anthropic: serve_clients_test.py TENON [FOLDER].

They are installed into FOLDER, once. Where that cannot be (no network), the test says so and is skipped.
"""
import os
import pathlib
import subprocess
import sys
import venv

CODE_OF_SKIP = 77
PACKAGES = ("openai", "anthropic")


def enter(folder):
    """Goes on with the Python of `folder`, which has the clients."""
    python = folder / "bin/python"
    if not (folder / "done").exists():
        try:
            venv.create(folder, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "--timeout", "10", "--retries", "1", *PACKAGES], check=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as why:
            print(f"skipped: {', '.join(PACKAGES)} could not be installed from PyPI ({why})")
            sys.exit(CODE_OF_SKIP)
        (folder / "done").touch()
    os.execv(python, [str(python), __file__, sys.argv[1], "--inside"])


if "--inside" not in sys.argv:
    enter(pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build/clients").resolve())
sys.argv.remove("--inside")

import unittest  # noqa: E402

import anthropic  # noqa: E402
import openai  # noqa: E402

from serve_support import Server  # noqa: E402
from support import QUESTION  # noqa: E402

ASKED = [{"role": "user", "content": QUESTION}]
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--api-key", "secret", "--quiet")


def tearDownModule():
    server.stop()


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
        self.assertEqual([each.id for each in self.client.models.list()], ["tiny"])
        found = self.client.completions.create(model="tiny", prompt=["Tom", "Ann"], max_tokens=3,
                                               extra_body={"ignore_eos": True})
        self.assertEqual([each.finish_reason for each in found.choices], ["length"] * 2)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="tiny", messages=ASKED,
                                                response_format={"type": "json_object"})
        self.assertEqual(caught.exception.param, "response_format")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="tiny", prompt=[5] * 1100)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="other", messages=ASKED)
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

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.client.messages.create(**self.asked, tool_choice={"type": "any"})
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.create(**{**self.asked, "model": "other"})


if __name__ == "__main__":
    unittest.main()
