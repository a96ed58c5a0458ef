#!/usr/bin/env python3
"""tenon bench decode and bench prefill as a person uses them: engine_bench_test.py PATH_TO_TENON."""
import csv
import json
import pathlib
import shutil
import tempfile
import unittest
import xml.etree.ElementTree

from support import LAYERS, MODEL, tenon

DECODE = ("decode", "--model", MODEL, "--context", "70", "--steps", "3", "--repeats", "2")
PREFILL = ("prefill", "--model", MODEL, "--tokens", "20,70", "--repeats", "2")


class Bench(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def bench(self, *arguments):
        done = tenon("bench", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def results(self, *arguments):
        return json.loads(self.bench(*arguments, "--json"))

    def refused(self, *arguments):
        done = tenon("bench", *arguments)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        return done.stderr

    def test_decode_has_a_row_for_every_count_and_policy(self):
        found = self.results(*DECODE, "--sequences", "1,3", "--stages", "auto,2,3")
        rows = found["results"]
        self.assertEqual([(row["sequences"], row["stages"]) for row in rows],
                         [(count, stages) for count in (1, 3) for stages in ("auto", "2", "3")])
        for row in rows:
            self.assertEqual((row["context"], row["steps"], row["turns"]), (70, 3, 2))
            self.assertGreater(row["device_ms"], 0)
            self.assertLessEqual(row["p10_ms"], row["step_ms"])
            self.assertLessEqual(row["step_ms"], row["p90_ms"])
            self.assertAlmostEqual(row["tokens_per_s"], row["sequences"] * 1e3 / row["step_ms"], delta=1e-6 *
                                   row["tokens_per_s"])
            self.assertAlmostEqual(row["percent_of_floor"], 100 * row["floor_ms"] / row["step_ms"], places=6)
        self.assertEqual([row["ratio"] for row in rows if row["stages"] == "auto"], [1, 1])
        self.assertGreater(rows[3]["floor_ms"], rows[0]["floor_ms"])
        # 7 steps of each turn, 2 turns, 2 counts: every policy ran every boundary so often.
        steps = 7 * 2 * 2
        for stage in (1, 2, 3):
            mixers = sum(use["count"] for use in found["boundaries"]
                         if use["site"] == "mixer" and use["stage"] == stage)
            self.assertEqual(mixers, steps * LAYERS, stage)
        self.assertGreater(found["replayed_steps"], 0)
        self.assertFalse(found["clocks"]["steps_run_ahead"], "host targets wait for each step")
        self.assertEqual(set(found["clocks"]), {"step_ms", "device_ms", "steps_run_ahead"})

    def test_weights_are_made_where_there_are_none(self):
        shutil.copy(pathlib.Path(MODEL) / "config.json", self.directory)
        found = self.results("decode", "--model", str(self.directory), *DECODE[3:], "--sequences", "2", "--tp", "1",
                             "--stages", "auto")
        self.assertEqual((found["weights"], found["ranks"], len(found["results"])), ("dummy", 1, 1))
        self.assertEqual(self.results(*DECODE, "--sequences", "1", "--stages", "3")["weights"], "safetensors")

    def test_prefill_counts_tokens_and_operations(self):
        rows = self.results(*PREFILL, "--prompts", "1,2")["results"]
        self.assertEqual([(row["prompts"], row["tokens"], row["stages"]) for row in rows],
                         [(count, length, stages) for count in (1, 2) for length in (20, 70)
                          for stages in ("auto", "3")])
        for row in rows:
            tokens = row["prompts"] * row["tokens"]
            self.assertAlmostEqual(row["tokens_per_s"], tokens * 1e3 / row["first_token_ms"],
                                   delta=1e-6 * row["tokens_per_s"])
        work = [row["tflops"] * row["first_token_ms"] for row in rows]
        self.assertAlmostEqual(work[4] / work[0], 2, places=6)   # two prompts
        self.assertGreater(work[2] / work[0], 3)  # 70 tokens instead of 20, and one row of logits

    def test_files_hold_what_the_json_says(self):
        for arguments, lines in ((DECODE + ("--sequences", "1,2"), 3), (PREFILL, 2)):
            paths = {option: self.directory / option[2:] for option in ("--csv", "--json-file", "--svg")}
            table = self.bench(*arguments, *(str(word) for pair in paths.items() for word in pair))
            self.assertIn("tiny, 2 ranks of ", table)
            rows = json.loads(paths["--json-file"].read_text())["results"]
            written = list(csv.DictReader(paths["--csv"].read_text().splitlines()))
            self.assertEqual([list(row) for row in written], [list(row) for row in rows])
            for row, text in zip(rows, written):
                self.assertEqual({key: str(value) for key, value in row.items() if isinstance(value, (int, str))},
                                 {key: text[key] for key, value in row.items() if isinstance(value, (int, str))})
            plot = xml.etree.ElementTree.parse(paths["--svg"]).getroot()
            self.assertEqual(len(plot.findall("{*}polyline")), lines)

    def test_profile_sums_parts_beside_each_other(self):
        done = tenon("profile", "--model", MODEL, "--context", "70", "--sequences", "2", "--stages", "auto,3",
                     "--json-file", str(self.directory / "profile.json"))
        self.assertEqual(done.returncode, 0, done.stderr)
        for part in ("embedding", "boundary", "attention", "delta net", "experts", "head", "draw", "between launches"):
            self.assertIn(part, done.stdout)
        rows = json.loads((self.directory / "profile.json").read_text())["results"]
        for stages in ("auto", "3"):
            mine = [row for row in rows if row["stages"] == stages]
            self.assertAlmostEqual(sum(row["percent"] for row in mine), 100, places=6)
            self.assertEqual([row["us"] for row in mine], sorted((row["us"] for row in mine), reverse=True))
        boundary = {stages: sum(row["launches"] for row in rows
                                if row["stages"] == stages and row["section"] == "boundary")
                    for stages in ("auto", "3")}
        self.assertEqual(boundary["auto"], 2 * LAYERS + 1)
        self.assertGreaterEqual(boundary["3"], boundary["auto"])

    def test_profile_of_prompts_adds_up_all_their_steps(self):
        def profiled(*arguments):
            path = self.directory / "prompts.json"
            done = tenon("profile", "--model", MODEL, "--stages", "auto", "--tokens", "100", "--json-file", str(path),
                         *arguments)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout, json.loads(path.read_text())

        def launches(found, section):
            return sum(row["launches"] for row in found["results"] if row["section"] == section)

        text, one = profiled("--prompts", "1", "--step-tokens", "128")
        self.assertIn("1 x 100 tokens", text)
        self.assertIn("TFLOP/s a rank", text)
        self.assertEqual((one["prompts"], one["tokens"], one["steps"]), (1, 100, 1))
        text, three = profiled("--prompts", "3", "--step-tokens", "128")
        self.assertGreaterEqual(three["steps"], 3)  # 300 tokens, at most 128 in a step
        self.assertIn(f"{three['steps']} steps", text)
        for section in ("boundary", "attention", "delta net", "experts", "draw"):
            self.assertEqual(launches(three, section), three["steps"] * launches(one, section), section)

    def test_ops_are_timed_one_by_one(self):
        found = self.results("ops", "--model", MODEL, "--tp", "2", "--rows", "1,5", "--repeats", "2")
        parts = {}
        for row in found["results"]:
            parts.setdefault(row["part"], []).append(row)
            self.assertLessEqual(row["p10"], row["us"])
            self.assertLessEqual(row["us"], row["p90"])
            self.assertAlmostEqual(row["gbs"], 1e3 * row["mbytes"] / row["us"], delta=1e-6 * row["gbs"])
            self.assertAlmostEqual(row["percent_of_copy"], 100 * row["gbs"] / found["memory_gbs"], places=6)
        for part, rows in parts.items():
            self.assertEqual([row["rows"] for row in rows], [1, 5], part)
        # The share of one of two ranks, as checkpoints/tiny/config.json has it.
        text = json.loads((pathlib.Path(MODEL) / "config.json").read_text())["text_config"]
        values = text["linear_num_value_heads"] * 128 // 2
        keys = text["linear_num_key_heads"] * 128 // 2
        self.assertEqual(parts["delta net: q|k|v|z"][0]["shape"], f"{2 * (keys + values)} x {text['hidden_size']}")
        self.assertEqual(parts["delta net: out"][0]["shape"], f"{text['hidden_size']} x {values}")
        self.assertEqual(parts["experts: router, gate"][0]["shape"],
                         f"{text['num_experts'] + 1} x {text['hidden_size']}")
        self.assertIn("head", parts)
        only = self.bench("ops", "--model", MODEL, "--only", "out", "--rows", "1", "--repeats", "1")
        self.assertIn("attention: out", only)
        self.assertNotIn("\nhead", only)
        # What a table calls a part, --only finds.
        for part in parts:
            rows = json.loads(self.bench("ops", "--model", MODEL, "--only", part, "--rows", "1", "--repeats", "1",
                                         "--json"))["results"]
            self.assertEqual({row["part"] for row in rows}, {part})
        # What only GPUs have is named.
        self.assertIn("not timed: experts: up, down, 1 row: ",
                      self.bench("ops", "--model", MODEL, "--only", "up, down", "--rows", "1", "--repeats", "1"))

    def test_refusals(self):
        self.assertIn('--rows has "x"', self.refused("ops", "--model", MODEL, "--rows", "x"))
        self.assertIn("accepts", self.refused("ops", "--model", MODEL, "--tp", "7"))
        self.assertIn("no such directory", tenon("bench", "ops", "--model", "/nowhere").stderr)
        done = tenon("profile", "--model", MODEL, "--tokens", "9")
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("--prompts", done.stderr)
        done = tenon("profile", "--model", MODEL, "--prompts", "1", "--sequences", "2")
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("excludes", done.stderr)
        self.assertIn('--stages', self.refused(*DECODE, "--stages", "4"))
        self.assertIn('--sequences has "0"', self.refused(*DECODE, "--sequences", "0"))
        self.assertIn("accepts", self.refused(*DECODE, "--tp", "7"))
        self.assertIn('--tokens has "9..3"', self.refused("prefill", "--model", MODEL, "--tokens", "9..3"))
        same = str(self.directory / "both")
        self.assertIn("name the same file", self.refused(*DECODE, "--csv", same, "--svg", same))


if __name__ == "__main__":
    unittest.main()
