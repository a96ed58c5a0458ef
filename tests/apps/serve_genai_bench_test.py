#!/usr/bin/env python3
"""A load from genai-bench, four requests at a time: serve_genai_bench_test.py TENON [FOLDER]. It installs
1.3 GB, without torch."""
from clients_support import enter

enter(__file__, "genai-bench==0.0.5")

import json  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import unittest  # noqa: E402

from serve_support import Server  # noqa: E402
from support import MODEL  # noqa: E402

REQUESTS, TOKENS = 12, 12
server = None


def setUpModule():
    global server
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet")
    unittest.addModuleCleanup(server.stop)


class GenAiBench(unittest.TestCase):
    def load(self, backend):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [str(pathlib.Path(sys.executable).parent / "genai-bench"), "benchmark", "--api-backend",
                 backend, "--api-base", f"http://127.0.0.1:{server.port}", "--api-key", "none",
                 "--model-api-key", "none", "--task", "text-to-text", "--api-model-name", "tiny",
                 "--model-tokenizer", MODEL, "--num-concurrency", "4", "--traffic-scenario",
                 f"D(40,{TOKENS})", "--max-time-per-run", "2", "--max-requests-per-run", str(REQUESTS),
                 "--experiment-base-dir", folder, "--experiment-folder-name", "run",
                 "--additional-request-params", json.dumps({"temperature": 0.0, "ignore_eos": True})],
                capture_output=True, text=True, timeout=300, cwd=folder, check=False,
                env={**os.environ, "HF_HOME": folder, "HF_HUB_OFFLINE": "1"})
            self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-2000:])
            [found] = pathlib.Path(folder, "run").glob(f"D40_{TOKENS}_*.json")
            return json.loads(found.read_text())

    def test_ends_without_errors_and_with_the_tokens_asked(self):
        for backend in ("sglang", "vllm"):
            before = server.metric("vllm:generation_tokens_total")
            found = self.load(backend)
            total = found["aggregated_metrics"]
            # It looks from time to time whether there are enough, so more may have ended.
            ended = total["num_completed_requests"]
            self.assertGreaterEqual(ended, REQUESTS)
            self.assertEqual(total["num_error_requests"], 0)
            drawn = [each["num_output_tokens"] for each in found["individual_request_metrics"]]
            self.assertEqual(drawn, [TOKENS] * ended)
            self.assertGreaterEqual(server.metric("vllm:generation_tokens_total") - before, TOKENS * ended)


if __name__ == "__main__":
    unittest.main()
