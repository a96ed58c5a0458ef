#!/usr/bin/env python3
"""--load-format dummy: a config.json alone runs, and says that its answers mean nothing.
dummy_test.py PATH_TO_TENON. Needs checkpoints/tiny and checkpoints/configs.
"""
import json
import pathlib
import shutil
import tempfile
import unittest

from support import MODEL, ROOT, tenon

CONFIGS = sorted((ROOT / "checkpoints/configs").glob("*/config.json"))


class Dummy(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        shutil.copy(pathlib.Path(MODEL) / "config.json", self.directory)

    def run_dummy(self, *arguments, model=None):
        return tenon("run", "--model", model or self.directory, "--load-format", "dummy", "--max-new-tokens", "6",
                     "--ignore-eos", *arguments)

    def tokens(self, *arguments, model=None):
        done = self.run_dummy("--json", *arguments, model=model)
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertEqual(out["weights"], "dummy")
        self.assertEqual(len(out["tokens"]), 6)
        return out["tokens"]

    def test_token_ids_in_and_out(self):
        ids = ("--prompt-ids", "1,2,3")
        tokens = self.tokens(*ids)
        self.assertEqual(tokens, self.tokens(*ids))
        self.assertEqual(tokens, self.tokens(*ids, model=self.directory + "/config.json"))
        self.assertNotEqual(tokens, self.tokens(*ids, "--weights-seed", "5"))
        self.assertNotEqual(tokens, self.tokens("--prompt-ids", "7,8,9"))
        done = self.run_dummy(*ids)
        self.assertEqual(done.stdout, ",".join(map(str, tokens)) + "\n")
        self.assertIn("the answers mean nothing", done.stderr)

    def test_random_prompts_are_those_of_the_seed(self):
        tokens = self.tokens("--random-prompt", "8")
        self.assertEqual(tokens, self.tokens("--random-prompt", "8"))
        self.assertNotEqual(tokens, self.tokens("--random-prompt", "8", "--seed", "3"))

    def test_what_cannot_be_is_refused(self):
        for arguments, piece in ((("--prompt", "hello"), "accepted are token ids"),
                                 ((), "accepted are --prompt-ids and --random-prompt"),
                                 (("--prompt-ids", "1", "--prompt", "a"), "accepted is one of them"),
                                 (("--prompt-ids", "1024"), "1024"),
                                 (("--prompt-ids", "1", "--chat"), "no tokenizer.json")):
            done = self.run_dummy(*arguments)
            self.assertNotEqual(done.returncode, 0, arguments)
            self.assertIn(piece, done.stderr)
        files = tenon("run", "--model", self.directory, "--prompt-ids", "1")
        self.assertNotEqual(files.returncode, 0)
        self.assertIn("it has no tokenizer.json or *.safetensors", files.stderr)

    def test_files_say_that_they_are_files(self):
        done = tenon("run", "--prompt-ids", "1,2", "--max-new-tokens", "2", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["weights"], "safetensors")

    def test_every_published_config_can_be_inspected(self):
        self.assertEqual(len(CONFIGS), 8)
        for config in CONFIGS:
            with self.subTest(config=config.parent.name):
                done = tenon("inspect", str(config.parent), "--json", "--tp", "2")
                self.assertEqual(done.returncode, 0, done.stderr)
                out = json.loads(done.stdout)
                self.assertEqual(out["weights"], "dummy")
                first, second = out["teams"][0]["weight_bytes"]
                self.assertGreaterEqual(first + second, out["tensors"]["bytes"])


if __name__ == "__main__":
    unittest.main()
