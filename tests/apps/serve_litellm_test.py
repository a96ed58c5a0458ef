#!/usr/bin/env python3
"""tenon serve through LiteLLM: serve_litellm_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "litellm==1.110.2")

import os  # noqa: E402
import unittest  # noqa: E402

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask a web site for prices

import litellm  # noqa: E402

from serve_support import Server  # noqa: E402
from support import QUESTION  # noqa: E402

ASKED = [{"role": "user", "content": QUESTION}]
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--api-key", "secret", "--quiet")
    unittest.addModuleCleanup(server.stop)


class LiteLlm(unittest.TestCase):
    def where(self, kind="openai", under="/v1", model="tiny"):
        return {"model": f"{kind}/{model}", "api_base": f"http://127.0.0.1:{server.port}{under}",
                "api_key": "secret", "num_retries": 0}

    def test_chat(self):
        for kind in ("openai", "hosted_vllm"):
            whole = litellm.completion(messages=ASKED, temperature=0, **self.where(kind))
            self.assertEqual(whole.choices[0].finish_reason, "stop", kind)
            parts = list(litellm.completion(messages=ASKED, temperature=0, stream=True,
                                            stream_options={"include_usage": True}, **self.where(kind)))
            text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            self.assertEqual(text, whole.choices[0].message.content, kind)
            built = litellm.stream_chunk_builder(parts, messages=ASKED)
            self.assertEqual(built.usage.completion_tokens, whole.usage.completion_tokens, kind)

    def test_thoughts(self):
        whole = litellm.completion(messages=ASKED, temperature=0, max_tokens=8,
                                   extra_body={"enable_thinking": True}, **self.where("hosted_vllm"))
        self.assertTrue(whole.choices[0].message.reasoning_content)

    def test_messages_of_anthropic(self):
        whole = litellm.completion(messages=ASKED, temperature=0, max_tokens=60,
                                   **self.where("anthropic", ""))
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        parts = litellm.completion(messages=ASKED, temperature=0, max_tokens=60, stream=True,
                                   **self.where("anthropic", ""))
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        self.assertEqual(text, whole.choices[0].message.content)

    def test_completion(self):
        asked = {"prompt": "Tom has 3", "max_tokens": 4, "temperature": 0,
                 **self.where("text-completion-openai")}
        whole = litellm.text_completion(**asked)
        text = "".join(part.choices[0].text or "" for part in litellm.text_completion(**asked, stream=True))
        self.assertEqual(text, whole.choices[0].text)

    def test_errors(self):
        with self.assertRaises(litellm.NotFoundError):
            litellm.completion(messages=ASKED, **self.where(model="other"))
        with self.assertRaises(litellm.ContextWindowExceededError):
            litellm.completion(messages=[{"role": "user", "content": "Tom " * 1100}], **self.where())
        with self.assertRaises(litellm.AuthenticationError):
            litellm.completion(messages=ASKED, **{**self.where(), "api_key": "wrong"})
        with self.assertRaises(litellm.NotFoundError):
            litellm.embedding(input=["Tom"], **self.where())


if __name__ == "__main__":
    unittest.main()
