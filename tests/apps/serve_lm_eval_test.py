#!/usr/bin/env python3
"""tenon serve through lm-eval, which scores the tiny model's own problems over HTTP (without torch), and
asks how likely transformers' own answers are: serve_lm_eval_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "lm-eval[api]==0.4.13", "transformers==5.17.0")

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import unittest  # noqa: E402

from serve_support import Server  # noqa: E402
from support import MODEL, ROOT  # noqa: E402

PROBLEMS = 4
LIKELIHOODS = 6
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
LIKELY = """task: likely
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{rest}}}}"
target_delimiter: ""
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet")
    unittest.addModuleCleanup(server.stop)


def evaluate(task, text, documents, model, url, *more):
    """What lm-eval finds for `documents`."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
        (folder / f"{task}.yaml").write_text(text.format(file=folder / "documents.jsonl"))
        where = f"model=tiny,base_url=http://127.0.0.1:{server.port}{url},num_concurrent=2,max_retries=1,"
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", where + more[0],
             "--tasks", task, "--include_path", name, "--output_path", str(folder / "out"), *more[1:]],
            capture_output=True, text=True, timeout=170, cwd=name, check=False,
            env={**os.environ, "HF_HOME": name, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                 "OPENAI_API_KEY": "none"})
        assert done.returncode == 0, done.stderr[-3000:]
        [found] = (folder / "out").rglob("results_*.json")
        return json.loads(found.read_text())["results"][task]


def ids_of(body):
    return server.post("/tokenize", body).json()["tokens"]


def text_of(ids):
    return server.post("/detokenize", {"tokens": ids}).json()["prompt"]


class LmEval(unittest.TestCase):
    def test_score(self):
        lines = (pathlib.Path(MODEL) / "eval.jsonl").read_text().splitlines()[:PROBLEMS]
        problems = [json.loads(line) for line in lines]
        wanted = 0
        for each in problems:
            said = server.post("/v1/chat/completions", {"temperature": 0, "max_tokens": 256, "messages": [
                {"role": "user", "content": each["question"]}]}).json()["choices"][0]["message"]["content"]
            wanted += said.rsplit("#### ", 1)[-1].strip() == each["answer"].rsplit("#### ", 1)[-1].strip()
        scores = evaluate("words", TASK, [
            {"question": each["question"], "answer": each["answer"].rsplit("#### ", 1)[-1].strip()}
            for each in problems], "local-chat-completions", "/v1/chat/completions", "tokenizer_backend=None",
            "--apply_chat_template")
        self.assertGreater(wanted, PROBLEMS // 2)
        self.assertAlmostEqual(scores["exact_match,last"], wanted / PROBLEMS)

    # Greedy answers of transformers that the server draws as well, without their beginning, which ends
    # where a token does: lm-eval must find them greedy, and as likely as they were when they were drawn.
    def test_likelihoods(self):
        answers = json.loads((pathlib.Path(ROOT) / "tests/data/goldens/tiny/greedy.json").read_text())
        documents, likely = [], []
        for each in answers[:LIKELIHOODS]:
            prompt = ids_of({"messages": [{"role": "user", "content": each["question"]}]})
            answer = each["token_ids"]
            begun = next(count for count in range(3, len(answer))
                         if not text_of(answer[:count])[-1].isspace())
            context, rest = text_of(prompt + answer[:begun]), text_of(answer[begun:])
            self.assertEqual(ids_of({"prompt": context}) + ids_of({"prompt": rest}), prompt + answer)
            drawn = server.post("/v1/completions", {
                "prompt": prompt + answer[:begun], "max_tokens": len(answer) - begun, "temperature": 0,
                "logprobs": 0, "return_token_ids": True, "ignore_eos": True}).json()["choices"][0]
            if drawn["token_ids"] == answer[begun:]:
                documents.append({"context": context, "rest": rest})
                likely.append(sum(drawn["logprobs"]["token_logprobs"]))
        self.assertGreater(len(documents), LIKELIHOODS // 2)
        tokenizer = f"tokenizer_backend=huggingface,tokenizer={pathlib.Path(MODEL).resolve()}"
        scores = evaluate("likely", LIKELY, documents, "local-completions", "/v1/completions", tokenizer)
        self.assertEqual(scores["acc,none"], 1)
        mean = -sum(likely) / len(likely)
        self.assertGreater(mean, 0.1)
        self.assertLess(abs(math.log(scores["perplexity,none"]) - mean), 0.05 * mean)


if __name__ == "__main__":
    unittest.main()
