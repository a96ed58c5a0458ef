#!/usr/bin/env python3
"""tenon serve through lm-eval, which scores the tiny model's own problems over HTTP (without torch):
serve_lm_eval_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "lm-eval[api]==0.4.13")

import json  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import unittest  # noqa: E402

from serve_support import Server  # noqa: E402
from support import MODEL  # noqa: E402

PROBLEMS = 4
TASK = """task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], max_gen_toks: 256, do_sample: false, temperature: 0}}
filter_list:
  - name: last
    filter:
      - {{function: regex, regex_pattern: "#### (-?[0-9.,]+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet")


def tearDownModule():
    server.stop()


class LmEval(unittest.TestCase):
    def test_score(self):
        lines = (pathlib.Path(MODEL) / "eval.jsonl").read_text().splitlines()[:PROBLEMS]
        problems = [json.loads(line) for line in lines]
        wanted = 0
        for each in problems:
            said = server.post("/v1/chat/completions", {"temperature": 0, "max_tokens": 256, "messages": [
                {"role": "user", "content": each["question"]}]}).json()["choices"][0]["message"]["content"]
            wanted += said.rsplit("#### ", 1)[-1].strip() == each["answer"].rsplit("#### ", 1)[-1].strip()
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "problems.jsonl").write_text("".join(
                json.dumps({"question": each["question"],
                            "answer": each["answer"].rsplit("#### ", 1)[-1].strip()}) + "\n"
                for each in problems))
            (folder / "words.yaml").write_text(TASK.format(file=folder / "problems.jsonl"))
            where = f"http://127.0.0.1:{server.port}/v1/chat/completions"
            done = subprocess.run(
                [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args",
                 f"model=tiny,base_url={where},num_concurrent=2,max_retries=1,tokenizer_backend=None",
                 "--tasks", "words", "--include_path", name, "--apply_chat_template",
                 "--output_path", str(folder / "out")],
                capture_output=True, text=True, timeout=170, cwd=name, check=False,
                env={**os.environ, "HF_HOME": name, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                     "OPENAI_API_KEY": "none"})
            self.assertEqual(done.returncode, 0, done.stderr[-3000:])
            [found] = (folder / "out").rglob("results_*.json")
            scores = json.loads(found.read_text())["results"]["words"]
        self.assertGreater(wanted, PROBLEMS // 2)
        self.assertAlmostEqual(scores["exact_match,last"], wanted / PROBLEMS)


if __name__ == "__main__":
    unittest.main()
