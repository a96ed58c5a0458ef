#!/usr/bin/env python3
"""tools/same_answers.py: that it finds what differs, and that a server of the tiny checkpoint has the same answers
with fused boundaries and without, asked one by one and 64 at a time: same_answers_test.py PATH_TO_TENON.
Minutes, so ctest leaves it to the label scale. SAME_WORDS=20 asks fewer problems, 0 all."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from support import MODEL, ROOT, TENON

TOOL = ROOT / "tools/same_answers.py"
WORDS = os.environ.get("SAME_WORDS", "64")
# A stand-in for the program, whose third answer of stage 3 is another one, and whose second is missing there
# where 4 are asked for at a time. It is not asked for more than these words.
STUB = """#!/usr/bin/env python3
import json, pathlib, signal, sys
here, words = pathlib.Path(__file__).with_suffix(".stage"), sys.argv[1:]
if words == ["--version"]:
    print("stub 1")
elif words[0] == "serve":
    here.write_text(words[words.index("--force-stage") + 1])
    print('tenon: "stub" is served on http://127.0.0.1:9, loaded in 0 s', file=sys.stderr, flush=True)
    signal.sigwait([signal.SIGTERM])
else:
    tokens = [[1, 2], [3], [4]]
    if here.read_text() == "3":
        tokens[2] = [5]
        if words[words.index("--parallel") + 1] == "4":
            tokens[1] = []
    print(json.dumps({"correct": 2, "tokens": tokens}))
"""


class SameAnswers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_tool(self, program, *options):
        file = self.folder / "rows.json"
        done = subprocess.run([sys.executable, TOOL, program, "--json-file", file, *options], capture_output=True,
                              text=True, cwd=ROOT, check=False)
        return done, json.loads(file.read_text())["rows"] if file.exists() else []

    def test_what_differs_is_found(self):
        stub = self.folder / "stub.py"
        stub.write_text(STUB)
        stub.chmod(0o755)
        done, rows = self.run_tool(stub, "--parallel", "1,4")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual([row["differing"] for row in rows], [[], [], [3], [2, 3]])
        self.assertEqual([row["answered"] for row in rows], ["3 of 3"] * 3 + ["2 of 3"])
        self.assertIn("words, stages 3, 4 at a time: problems [2, 3] differ", done.stderr)
        done, rows = self.run_tool(stub, "--stages", "auto", "--parallel", "1,4")
        self.assertEqual((done.returncode, [row["differ"] for row in rows]), (0, [0, 0]), done.stderr)

    def test_tiny(self):
        done, rows = self.run_tool(TENON, "--model", MODEL, "--words", WORDS, "--gsm8k",
                                   str(ROOT / "tests/data/gsm8k/made.jsonl"), "--shots", "2")
        print("\n" + done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual([(row["problems"], row["stages"], row["at a time"]) for row in rows],
                         [(name, stages, parallel) for stages in ("auto", "3") for name in ("words", "gsm8k")
                          for parallel in (1, 64)])
        correct = {row["correct"] for row in rows if row["problems"] == "words"}
        self.assertEqual(len(correct), 1)
        self.assertGreater(correct.pop(), 0)


if __name__ == "__main__":
    unittest.main()
