#!/usr/bin/env python3
"""Requests that Schemathesis makes up from /openapi.json, right ones and wrong ones:
serve_schemathesis_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "schemathesis==4.32.5")

import os  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import unittest  # noqa: E402

from serve_support import Server  # noqa: E402

# No wrong request is answered as if it were right, no right one fails in the server, and every answer is
# one that the description names. Not asked: that every request that fits is answered with 200, for ids
# may be unknown, texts too long and fields may contradict one another.
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,"
          "response_schema_conformance,negative_data_rejection,unsupported_method")
server = None


def setUpModule():
    global server
    server = Server("--max-context", "64", "--served-model-name", "tiny", "--quiet")
    unittest.addModuleCleanup(server.stop)


class Schemathesis(unittest.TestCase):
    def test_seeded(self):
        command = [str(pathlib.Path(sys.executable).parent / "schemathesis"), "run",
                   f"http://127.0.0.1:{server.port}/openapi.json", "--checks", CHECKS, "--seed", "1",
                   "--max-examples", "4", "--phases", "examples,coverage,fuzzing", "--workers", "1",
                   "--request-timeout", "20", "--no-color"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder,
                                  env={**os.environ, "COLUMNS": "100"}, check=False)
        self.assertEqual(done.returncode, 0, done.stdout[-6000:] + done.stderr[-2000:])
        self.assertEqual(server.get("/health").status, 200)


if __name__ == "__main__":
    unittest.main()
