#!/usr/bin/env python3
"""tenon bench and tenon env as a person uses them."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import unittest.mock
import xml.etree.ElementTree

from support import BUILT, TENON, tenon


class Bench(unittest.TestCase):
    ARMS = ["vendor", "three-kernels", "two-kernels-fp8", "two-kernels", "one-kernel-fp8", "one-kernel"]
    QUICK = ["--iterations", "3", "--repeats", "2", "--warm-up", "1"]

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def bench(self, *arguments):
        quick = [] if "--iterations" in arguments else self.QUICK
        done = tenon("bench", "boundary", *quick, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def refused(self, *arguments):
        done = tenon("bench", "boundary", *self.QUICK, *arguments)
        self.assertIn(done.returncode, (1, 2), done.stderr)
        return done.stderr

    def test_every_arm_equals_the_oracle(self):
        for options in (["--tp", "2"], ["--tp", "3", "--mode", "graph", "--l2", "both"],
                        ["--variant", "two_shot"], ["--variant", "two_shot", "--spread-residual"],
                        ["--variant", "one_shot_packed", "--inputs", "outliers"],
                        ["--variant", "two_shot_packed", "--inputs", "cancelling"],
                        ["--tp", "1"], ["--dtype", "f16", "--device", "emu32", "--mode", "graph"]):
            if "emu32" in options and "emu32" not in BUILT:
                continue  # under the thread sanitizer
            found = json.loads(self.bench("--rows", "1,5", "--hidden", "256", "--json", *options))
            both = "both" in options
            inputs = options[options.index("--inputs") + 1] if "--inputs" in options else "normal"
            self.assertEqual(found["inputs"], inputs)
            self.assertEqual([(row["rows"], row["l2"]) for row in found["results"]],
                             [(1, "warm"), (1, "cold"), (5, "warm"), (5, "cold")] if both else
                             [(1, "warm"), (5, "warm")])
            for row in found["results"]:
                self.assertEqual(row["checked_rows"], row["rows"])
                self.assertEqual(row["mode"], "graph" if "graph" in options else "eager")
                self.assertEqual(list(row["arms"]), sorted(self.ARMS))
                for name, arm in row["arms"].items():
                    if name == "vendor" and "why_not" in arm:
                        continue
                    self.assertTrue(arm["equals_oracle"], (options, name))
                    self.assertGreater(arm["us"], 0)
                    self.assertLessEqual(arm["p10_us"], arm["us"])
                    self.assertLessEqual(arm["us"], arm["p90_us"])
                    self.assertGreater(arm["floor_us"], 0)
            for key in ("device", "date", "ranks", "dtype", "link_gbs", "memory_gbs", "latency_us"):
                self.assertIn(key, found)
            self.assertTrue(found["command"].startswith("tenon bench boundary"), found["command"])

    def test_large_shapes_are_checked_at_some_rows(self):
        found = json.loads(self.bench("--rows", "4096", "--hidden", "1280", "--arms", "one-kernel-fp8",
                                      "--iterations", "1", "--repeats", "1", "--json"))
        row = found["results"][0]
        self.assertLess(row["checked_rows"], 4096)
        self.assertGreater(row["checked_rows"], 500)
        self.assertTrue(row["arms"]["one-kernel-fp8"]["equals_oracle"])

    def test_lists_and_ranges_of_rows(self):
        found = json.loads(self.bench("--rows", "3,8..16", "--around", "--hidden", "256", "--arms",
                                      "one-kernel", "--json"))
        self.assertEqual([row["rows"] for row in found["results"]], [3, 7, 8, 9, 15, 16, 17])

    def test_csv_and_plot(self):
        table, plot = self.directory / "t.csv", self.directory / "p.svg"
        out = self.bench("--rows", "1..4", "--hidden", "256,384", "--l2", "both", "--csv", str(table),
                         "--svg", str(plot), "--wide")
        for piece in ("two-kernels/one-kernel", "floor_us", "cold", "GB/s"):
            self.assertIn(piece, out)
        lines = table.read_text().splitlines()
        self.assertEqual(len(lines), 1 + 2 * 2 * 3)
        self.assertEqual({line.count(",") for line in lines}, {lines[0].count(",")})
        root = xml.etree.ElementTree.parse(plot).getroot()
        space = "{http://www.w3.org/2000/svg}"
        self.assertEqual(root.tag, space + "svg")
        texts = [text.text for text in root.iter(space + "text")]
        for piece in ("hidden 256", "hidden 384", "one-kernel", "one-kernel, cold", "rows"):
            self.assertIn(piece, texts)
        curves = list(root.iter(space + "polyline"))
        self.assertEqual(len(curves) % (2 * 2), 0)
        for curve in curves:
            self.assertEqual(len(curve.get("points").split()), 3)

    CHOICES = ("one_shot", "one_shot_packed", "two_shot", "two_shot_packed", "two_kernels")

    def test_choices_become_a_table(self):
        table = self.directory / "tuned.json"
        found = json.loads(self.bench("--rows", "1..16", "--hidden", "256,512", "--json", "--tune",
                                      str(table)))
        choices = {(each["outputs"], each["choice"]) for each in found["choices"]}
        self.assertEqual(choices, {(outputs, choice) for outputs in ("fp8", "fp8+bf16")
                                   for choice in self.CHOICES})
        defaults = [(each["hidden"], each["rows"], each["outputs"]) for each in found["choices"]
                    if each["is_default"]]
        self.assertEqual(sorted(defaults), sorted({(each["hidden"], each["rows"], each["outputs"])
                                                   for each in found["choices"]}))
        tables = json.loads(table.read_text())["tables"]
        self.assertEqual([(each["device"], each["ranks"], each["hidden"], each["outputs"]) for each in tables],
                         [("host", 2, hidden, outputs) for hidden in (256, 512)
                          for outputs in ("fp8", "fp8+bf16")])
        for each in tables:
            self.assertRegex(each["date"], r"^\d{4}-\d\d-\d\d$")
            ends = [line.get("up_to_rows") for line in each["lines"]]
            self.assertIsNone(ends[-1])
            self.assertEqual(ends[:-1], sorted(ends[:-1]))
            self.assertLessEqual({line["choice"] for line in each["lines"]}, set(self.CHOICES))

    def test_a_table_of_choices_is_changed_and_taken(self):
        table = self.directory / "tuned.json"
        old = {"tables": [{"device": "host", "ranks": 2, "hidden": hidden, "outputs": "fp8+bf16", "date": "x",
                           "lines": [{"choice": "two_shot"}]} for hidden in (256, 1024)]}
        table.write_text(json.dumps(old))
        self.bench("--rows", "1", "--hidden", "256", "--tune", str(table))
        tables = {(each["hidden"], each["outputs"]): each for each in json.loads(table.read_text())["tables"]}
        self.assertEqual(len(tables), 3)
        self.assertEqual(tables[1024, "fp8+bf16"], old["tables"][1])
        self.assertNotEqual(tables[256, "fp8+bf16"]["date"], "x")

        table.write_text(json.dumps(old))
        def variant():
            found = json.loads(self.bench("--rows", "1", "--hidden", "256", "--arms", "one-kernel", "--json"))
            return found["results"][0]["arms"]["one-kernel"]["variant"]

        self.assertEqual(variant(), "one_shot")
        with unittest.mock.patch.dict(os.environ, TENON_TUNED_FILE=str(table)):
            self.assertEqual(variant(), "two_shot")

    def test_what_is_no_table_of_choices_is_refused(self):
        table = self.directory / "tuned.json"
        table.write_text("old")
        self.assertIn("--tune changes a file of tables or makes one",
                      self.refused("--rows", "1", "--hidden", "256", "--tune", str(table)))
        self.assertEqual(table.read_text(), "old")

    def test_ratios_against_a_baseline(self):
        shapes = ["--rows", "1,2", "--hidden", "256"]
        path = self.directory / "host.json"
        self.bench(*shapes, "--json-file", str(path))
        stored = json.loads(path.read_text())
        for row in stored["results"]:  # far better than it is, then far worse
            row["arms"]["one-kernel-fp8"]["us"] *= 10_000
            row["arms"]["one-kernel"]["us"] *= 10_000
        path.write_text(json.dumps(stored))
        self.bench(*shapes, "--check", str(path))
        self.bench(*shapes, "--check", str(self.directory))
        for row in stored["results"]:
            row["arms"]["one-kernel-fp8"]["us"] /= 100_000_000
        path.write_text(json.dumps(stored))
        done = tenon("bench", "boundary", *self.QUICK, *shapes, "--check", str(path))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("worse than the baseline by more than 3.0 %", done.stdout)
        self.assertIn("two-kernels-fp8/one-kernel-fp8", done.stdout)
        stored["ranks"] = 4
        path.write_text(json.dumps(stored))
        self.assertIn('"ranks" is 4', self.refused(*shapes, "--check", str(path)))

    def test_bad_options(self):
        self.assertIn('--arms has "fused9"; accepted are vendor', self.refused("--arms", "fused9"))
        for rows in ("9..3", "0", "1,,2", "5..", "many", "-1"):
            self.assertIn("--rows has", self.refused("--rows", rows), rows)
        self.assertIn("accepted are 1 to 8192", self.refused("--rows", "9000"))
        self.assertIn("multiples of 128", self.refused("--hidden", "100"))
        self.assertIn('no variant is called "slow"', self.refused("--variant", "slow"))
        self.assertIn("every choice", self.refused("--sweep-variants", "--arms", "one-kernel-fp8"))
        missing = str(self.directory / "missing.json")
        self.assertIn("cannot read", self.refused("--check", missing))
        (self.directory / "missing.json").write_text("[1, 2")
        self.assertIn("is not the JSON of a run", self.refused("--check", missing))

    def test_env_explains_itself(self):
        done = tenon("env", "--boundary", "--links", "--max-rows", "64")
        self.assertEqual(done.returncode, 0, done.stderr)
        for piece in ("emu64", "threads", "fp8_gemm", "TENON_MAX_STAGE", "one kernel", "cores",
                      "cuda is not part of this build", "is in another process"):
            self.assertIn(piece, done.stdout)
        self.assertRegex(done.stdout, r"(?m)^avx2 +(yes|no)")

    def test_env_explains_every_bucket(self):
        for target in {"cpu", "emu32"}.intersection(BUILT):
            done = tenon("env", "--boundary", "--max-rows", "40", "--hidden", "512", "--tp", "3",
                         "--device", target)
            self.assertEqual(done.returncode, 0, done.stderr)
            table = done.stdout[done.stdout.index("boundary of 512 wide rows, 3 ranks on " + target):]
            for outputs in ("fp8", r"fp8\+bf16", "bf16"):
                for rows in (1, 2, 4, 8, 16, 32, 40):
                    self.assertRegex(table, rf"(?m)^{outputs} +{rows} +one kernel +(one|two)_shot +"
                                            r"\d+ x \d+ +\d+\.\d+ MiB +it is the most fused$")
        limited = subprocess.run([TENON, "env", "--boundary", "--max-rows", "2"], capture_output=True,
                                 text=True, check=False, env={**os.environ, "TENON_MAX_STAGE": "3"})
        self.assertIn("max-stage 3 excludes it", limited.stdout)
        refused = tenon("env", "--boundary", "--target", "abacus")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("accepted are cuda", refused.stderr)


if __name__ == "__main__":
    unittest.main()
