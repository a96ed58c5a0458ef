#!/usr/bin/env python3
"""tenon inspect: what is said of a checkpoint is what running it shows:
inspect_test.py PATH_TO_TENON. Needs checkpoints/tiny.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else str(ROOT / "build/cpu/apps/tenon")
MODEL = ROOT / "checkpoints/tiny"


def tenon(*arguments):
    return subprocess.run([TENON, *arguments], capture_output=True, text=True, cwd=ROOT, check=False,
                          timeout=120)


def inspect(*arguments, model=MODEL):
    done = tenon("inspect", str(model), "--json", *arguments)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


class Inspect(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def copy(self, without=(), **config):
        for path in MODEL.iterdir():
            if path.name not in without:
                os.symlink(path, self.directory / path.name)
        wanted = json.loads((MODEL / "config.json").read_text())
        wanted["text_config"].update(config)
        (self.directory / "config.json").unlink()
        (self.directory / "config.json").write_text(json.dumps(wanted))
        return self.directory

    def test_says_what_the_model_is(self):
        found = inspect()
        self.assertEqual(found["architecture"], "Qwen3_5MoeForConditionalGeneration")
        self.assertEqual(found["words"]["layers"], "8: 2 times (3 delta-net, 1 attention)")
        wanted = {"layers": 8, "attention_layers": 2, "delta_net_layers": 6, "width": 256,
                  "vocabulary": 1024, "query_heads": 4, "kv_heads": 2, "head_dim": 256,
                  "experts": 4, "experts_per_token": 2, "rotary_dim": 64, "rope_theta": 10_000_000}
        self.assertEqual(wanted, {key: found["numbers"][key] for key in wanted})
        self.assertEqual(found["eos_ids"], [960, 962])
        self.assertIs(found["chat_template"], True)
        self.assertIn("text_config.attention_dropout", found["unread_keys"])
        self.assertNotIn("text_config.hidden_size", found["unread_keys"])
        text = tenon("inspect", str(MODEL)).stdout
        for piece in ("2 times (3 delta-net, 1 attention)", "4 experts of 128", "fp8 e4m3",
                      "theta 10000000", "ids 960, 962", "chat template     yes", "use_cache",
                      "not with 3 ranks:\n  a team of 3"):
            self.assertIn(piece, text)
        self.assertNotIn("layers.0.", text)
        listed = tenon("inspect", str(MODEL), "--tensors").stdout
        self.assertRegex(listed, r"model\.language_model\.layers\.0\.\S+ +F8_E4M3 +\[\d+, \d+\] +\d+ ")

    def test_counts_every_tensor_and_byte(self):
        found = inspect("--tensors")
        stored = {}
        for path in MODEL.glob("*.safetensors"):
            with open(path, "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            stored.update(header)
        self.assertEqual({each["name"]: (each["type"], each["shape"], each["bytes"])
                          for each in found["tensors"]["list"]},
                         {name: (each["dtype"], each["shape"],
                                 each["data_offsets"][1] - each["data_offsets"][0])
                          for name, each in stored.items()})
        total = sum(each["data_offsets"][1] - each["data_offsets"][0] for each in stored.values())
        self.assertEqual(found["tensors"]["bytes"], total)
        self.assertEqual(sum(each["bytes"] for each in found["parts"]), total)
        self.assertEqual(sum(each["tensors"] for each in found["parts"]), len(stored))

    def test_possible_teams_are_those_that_run(self):
        for team in inspect()["teams"]:
            tp = str(team["ranks"])
            done = tenon("run", "--tp", tp, "--max-new-tokens", "1", "--prompt", "Tom")
            self.assertEqual(done.returncode == 0, team["possible"], f"tp {tp}: {done.stderr}")
            one = tenon("inspect", str(MODEL), "--tp", tp)
            self.assertEqual(one.returncode == 0, team["possible"])
            self.assertEqual(one.stderr, "")
            if not team["possible"]:
                self.assertGreater(len(team["reasons"]), 2)
                continue
            self.assertEqual(len(team["weight_bytes"]), team["ranks"])
            found = re.search(r"([\d.]+) MB of weights", done.stdout + done.stderr)
            if found:  # the rotary table of 2048 positions counts there as well
                self.assertAlmostEqual(float(found[1]) * 1e6, team["weight_bytes"][0] +
                                       2048 * inspect()["rope_bytes_per_position"], delta=1e5)

    def test_reads_headers_only(self):
        """A checkpoint of 300 GB of holes: whoever read the weights would not end."""
        model = self.copy(without=[path.name for path in MODEL.glob("*.safetensors*")])
        stored, end = {}, 0
        for each in inspect("--tensors")["tensors"]["list"]:
            stored[each["name"]] = {"dtype": each["type"], "shape": each["shape"],
                                    "data_offsets": [end, end + each["bytes"]]}
            end += each["bytes"]
        unused = 300 * 10**9
        stored["mtp.unused"] = {"dtype": "U8", "shape": [unused], "data_offsets": [end, end + unused]}
        header = json.dumps(stored).encode()
        with open(model / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end + unused)
        found = inspect(model=model)
        self.assertEqual(found["tensors"]["bytes"], end + unused)
        self.assertIn("not used", [part["part"] for part in found["parts"]])
        self.assertEqual(found["teams"], inspect()["teams"])

    def test_what_is_wrong_is_one_sentence(self):
        (self.directory / "empty").mkdir()
        for model, words in ((self.directory / "empty", "config.json"),
                             ("no/such/place", "config.json"),
                             (self.copy(hidden_size="wide"), '"hidden_size" is "wide"')):
            for form in ([], ["--json"]):
                done = tenon("inspect", str(model), *form)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn(words, done.stderr)
                self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_without_a_chat_template(self):
        found = inspect(model=self.copy(without=["chat_template.jinja"]))
        self.assertIs(found["chat_template"], False)
        self.assertIn("chat template", found["why_no_chat_template"])


if __name__ == "__main__":
    unittest.main()
