#!/usr/bin/env python3
"""The command line as a person uses it: cli_test.py PATH_TO_TENON. Needs models/tiny.

TEST_FULL=1 compares 50 prompts over every stage, mode and team size instead of a few, and scores all
problems against the reference that lies with the model.
"""
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = sys.argv.pop(1) if len(sys.argv) > 1 else str(ROOT / "build/cpu/apps/tenon")
MODEL = str(ROOT / "models/tiny")
FULL = bool(os.environ.get("TEST_FULL"))
QUESTION = "Tom has 3 boxes of 12 pencils. How many pencils does he have?"
LAYERS = 8
SANITIZED = any(mark in pathlib.Path(TENON).read_bytes() for mark in (b"__asan_", b"__tsan_"))
ABSURD = "2147483647"


def tenon(*arguments, timeout=300):
    return subprocess.run([TENON, *arguments], capture_output=True, text=True, cwd=ROOT,
                          timeout=timeout, check=False)


def run_json(*arguments):
    done = tenon("run", "--json", "--chat", "--prompt", QUESTION, *arguments)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


class Run(unittest.TestCase):
    def test_json_is_one_object_with_everything(self):
        found = run_json("--max-new-tokens", "40")
        for key in ("text", "tokens", "boundaries", "decode_tokens_per_s", "logits_fingerprint"):
            self.assertIn(key, found)
        for key in ("site", "rows", "stage", "variant", "reason", "count"):
            self.assertIn(key, found["boundaries"][0])
        self.assertTrue(found["text"].strip())
        self.assertGreater(found["decode_tokens_per_s"], 0)

    def test_every_step_crosses_2L_plus_1_boundaries(self):
        found = run_json("--max-new-tokens", "10", "--ignore-eos")
        self.assertEqual(len(found["tokens"]), 10)
        steps = 10  # one prefill that draws the first token, nine decodes
        self.assertEqual(sum(use["count"] for use in found["boundaries"]), steps * (2 * LAYERS + 1))

    def test_forced_and_limited_stages_are_what_ran(self):
        for mode in ([], ["--processes"]):
            for stage in (1, 2, 3):
                found = run_json("--max-new-tokens", "4", "--force-stage", str(stage), *mode)
                self.assertEqual({use["stage"] for use in found["boundaries"]}, {stage})
                self.assertTrue(stage == 1 or all(use["reason"] for use in found["boundaries"]))
            found = run_json("--max-new-tokens", "4", "--max-stage", "2", *mode)
            self.assertEqual({use["stage"] for use in found["boundaries"]}, {2})
            found = run_json("--max-new-tokens", "4", "--force-stage", "mixed", *mode)
            self.assertEqual({use["stage"] for use in found["boundaries"]}, {1, 2, 3})

    def test_without_a_prompt_it_answers_a_word_problem(self):
        done = tenon("run", "--tp", "1", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(json.loads(done.stdout)["text"], r"#### \d+$")

    def test_large_batches(self):
        self.assertEqual(run_json("--max-batch", "200", "--max-context", "128", "--max-new-tokens",
                                  "4")["finish"], "length")

    def test_sampling_is_a_function_of_the_seed(self):
        options = ("--max-new-tokens", "30", "--temperature", "1.5", "--ignore-eos")
        first = run_json(*options, "--seed", "1")["tokens"]
        self.assertEqual(run_json(*options, "--seed", "1")["tokens"], first)
        self.assertNotEqual(run_json(*options, "--seed", "2")["tokens"], first)

    def test_people_get_text_and_a_table(self):
        done = tenon("run", "--max-new-tokens", "5")
        self.assertEqual(done.returncode, 0, done.stderr)
        for piece in ("site", "stage", "variant", "tokens/s", "last logits"):
            self.assertIn(piece, done.stdout)


def copy_of_model(directory, without=(), **config):
    """models/tiny, less some files, with some keys of its text_config replaced."""
    for path in pathlib.Path(MODEL).iterdir():
        if path.name not in without:
            os.symlink(path, directory / path.name)
    wanted = json.loads((pathlib.Path(MODEL) / "config.json").read_text())
    wanted.get("text_config", wanted).update(config)
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(wanted))
    return str(directory)


class EndOfSequence(unittest.TestCase):
    def test_a_chat_also_ends_at_the_eos_token_of_the_tokenizer(self):
        with tempfile.TemporaryDirectory() as directory:
            model = copy_of_model(pathlib.Path(directory), without=("generation_config.json",),
                                  eos_token_id=None)
            found = run_json("--model", model, "--max-new-tokens", "200")
        self.assertEqual(found["finish"], "stop")
        self.assertEqual(found["tokens"][-1], 962)  # <|im_end|>


class Refusals(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def refused(self, *arguments):
        done = tenon(*arguments)
        self.assertGreater(done.returncode, 0, done.stderr)  # not a signal
        self.assertEqual(done.stdout, "")
        return done.stderr

    def test_impossible_tp(self):
        self.assertIn("3", self.refused("run", "--tp", "3"))
        for mode in ([], ["--processes"]):
            for tp in ("99", "0", "-1"):
                self.assertEqual(self.refused("run", "--tp", tp, *mode).strip().splitlines(), [
                    f"tenon: invalid argument: --tp is {tp}; accepted are 1 to 8"])

    def test_missing_model(self):
        for command in (["run"], ["run", "--processes"], ["eval", "words"]):
            found = self.refused(*command, "--model", "no/such/place")
            self.assertIn('"no/such/place": no such directory', found)
            self.assertIn("is a file", self.refused(*command, "--model", __file__))

    def test_processes_say_an_error_once_and_by_whom(self):
        empty = copy_of_model(self.directory, without=[path.name for path in pathlib.Path(MODEL).glob(
            "*.safetensors*")])
        lines = self.refused("run", "--processes", "--tp", "4", "--model", empty).splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], r"^tenon: rank \d: .*safetensors")

    def test_numbers_beyond_every_machine(self):
        for mode in ([], ["--processes"]):
            for context in ("100000000", ABSURD):
                found = self.refused("run", "--max-context", context, *mode)
                self.assertIn(f'--max-context: is "{context}"; accepted', found)
            found = self.refused("run", "--max-context", "4097", *mode)
            self.assertIn('max_context is 4097 but the checkpoint\'s "max_position_embeddings" is 4096; '
                          "accepted: at most that many", found)
            model = copy_of_model(pathlib.Path(tempfile.mkdtemp(dir=self.directory)),
                                  max_position_embeddings=1 << 20)
            found = self.refused("run", "--model", model, "--max-context", "40000", "--max-batch", "4000",
                                 *mode)
            self.assertRegex(found, r"40000 with .* GB of caches .* accepted are ")
            model = copy_of_model(pathlib.Path(tempfile.mkdtemp(dir=self.directory)),
                                  head_dim=16777216)
            found = self.refused("run", "--model", model, *mode)
            self.assertIn('"head_dim" is 16777216; accepted', found)
        self.assertIn("--max-batch", self.refused("run", "--max-batch", ABSURD))

    @unittest.skipIf(SANITIZED, "sanitizers need more addresses than the limit leaves")
    def test_memory_that_cannot_be_had_is_an_error(self):
        model = copy_of_model(self.directory, max_position_embeddings=1 << 20)
        command = [TENON, "run", "--model", model, "--max-context", "200000"]
        limit = 700 << 20
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS,
                                                                    (limit, limit)))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("out of memory", done.stderr)

    def test_chat_templates(self):
        found = json.loads((pathlib.Path(MODEL) / "tokenizer_config.json").read_text())
        found["chat_template"] = (pathlib.Path(MODEL) / "chat_template.jinja").read_text()
        names = ["chat_template.jinja", "tokenizer_config.json"]
        model = copy_of_model(self.directory, without=names)
        options = ("run", "--tp", "1", "--max-new-tokens", "4", "--model", model, "--prompt", "Tom")
        self.assertIn("no chat template", self.refused(*options, "--chat"))
        (self.directory / names[1]).write_text(json.dumps(found))
        self.assertEqual(tenon(*options, "--chat").returncode, 0)
        (self.directory / names[0]).write_text("{% if %}")
        self.assertIn("chat template", self.refused(*options, "--chat"))
        self.assertEqual(tenon(*options).returncode, 0)

    def test_bad_options(self):
        self.assertIn("auto, 1, 2, 3 and mixed", self.refused("run", "--force-stage", "7"))
        self.assertIn("max_stage", self.refused("run", "--max-stage", "9"))
        self.assertIn("accepted are cuda", self.refused("run", "--device", "abacus"))
        self.assertIn("top_p", self.refused("run", "--top-p", "0"))
        self.assertIn("no tokens", self.refused("run", "--prompt", ""))

    def test_numbers_out_of_range(self):
        for option, *command in (("--deadline-ms", "run"), ("--limit", "eval", "words"),
                                 ("--warm-up", "bench", "boundary"), ("--seed", "run"),
                                 ("--max-batch", "run"), ("--max-context", "run"),
                                 ("--max-new-tokens", "run"), ("--top-k", "run"),
                                 ("--iterations", "bench", "boundary"), ("--max-rows", "env")):
            found = self.refused(*command, option, "-5")
            self.assertIn(f"{option}: is \"-5\"; accepted are whole numbers from", found)

    def test_output_that_cannot_be_written(self):
        for command in (["run", "--json", "--max-new-tokens", "2"], ["env"], ["run", "--help"]):
            with open("/dev/full", "w", encoding="utf-8") as full:
                done = subprocess.run([TENON, *command], stdout=full, stderr=subprocess.PIPE,
                                      text=True, cwd=ROOT, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("standard output", done.stderr)
            done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", TENON, *command], text=True,
                                  stderr=subprocess.PIPE, cwd=ROOT, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("standard output is closed", done.stderr)

    def test_target_that_is_not_there(self):
        self.assertIn("not part of this build", self.refused("run", "--device", "cuda"))

    def test_malformed_knob(self):
        done = subprocess.run([TENON, "env"], capture_output=True, text=True, check=False,
                              env={**os.environ, "TENON_FORCE_STAGE": "soon"})
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("TENON_FORCE_STAGE", done.stderr)


class Agreement(unittest.TestCase):
    """A stage, a fallback or a transport never changes a token."""

    def test_tokens_agree(self):
        limit = "50" if FULL else "4"
        for tp in ("1", "2", "4"):
            want = None
            for mode in ([], ["--processes"]):
                for stage in ("1", "2", "3", "mixed"):
                    done = tenon("eval", "words", "--json", "--limit", limit, "--tp", tp,
                                 "--force-stage", stage, *mode, timeout=1200)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    tokens = json.loads(done.stdout)["tokens"]
                    want = want or tokens
                    self.assertEqual(tokens, want, f"tp {tp} stage {stage} {mode}")

    @unittest.skipUnless(FULL, "scores all problems; TEST_FULL=1")
    def test_scores_as_the_reference_does(self):
        reference = json.loads((pathlib.Path(MODEL) / "eval_reference.json").read_text())
        for tp in ("1", "2", "4"):
            done = tenon("eval", "words", "--json", "--tp", tp, timeout=1200)
            self.assertEqual(done.returncode, 0, done.stderr)
            found = json.loads(done.stdout)
            self.assertEqual(found["total"], reference["total"])
            # 2 points of 100: a few answers hang on near-ties.
            self.assertLessEqual(abs(found["correct"] - reference["correct"]),
                                 reference["total"] * 2 // 100, f"tp {tp}")

    def test_batch_does_not_change_tokens(self):
        found = [json.loads(tenon("eval", "words", "--json", "--limit", "6", "--max-batch", batch).stdout)
                 for batch in ("1", "6")]
        self.assertEqual(found[0]["tokens"], found[1]["tokens"])


class Failures(unittest.TestCase):
    """A peer that dies or stops: the others say who, within the deadline, and nothing is left."""

    DEADLINE_S = 3

    def start(self):
        process = subprocess.Popen(
            [TENON, "run", "--processes", "--ignore-eos", "--max-new-tokens", "2000", "--deadline-ms",
             str(1000 * self.DEADLINE_S)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=ROOT)
        process.stdout.read(60)  # it talks, so it decodes
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return process, int(children.split()[0])

    def ends_with_an_error(self, number):
        process, child = self.start()
        os.kill(child, number)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - begin, 1.1 * self.DEADLINE_S + 3)  # + the team's patience
        self.assertEqual(process.returncode, 1, errors)  # an error, not a signal
        self.assertIn("rank 1", errors)
        self.assertFalse(os.path.exists(f"/proc/{child}"), "a rank was left behind")

    def test_killed_rank(self):
        self.ends_with_an_error(signal.SIGKILL)

    def test_stopped_rank(self):
        self.ends_with_an_error(signal.SIGSTOP)

    def test_followers_do_not_outlive_a_killed_leader(self):
        process, child = self.start()
        process.kill()
        process.communicate()
        until = time.monotonic() + 2
        while os.path.exists(f"/proc/{child}") and time.monotonic() < until:
            time.sleep(0.05)
        self.assertFalse(os.path.exists(f"/proc/{child}"))


class Bench(unittest.TestCase):
    ARMS = ["nccl3", "split", "fused2", "fused2bf16", "fused1", "fused1bf16"]
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
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr

    def test_every_arm_equals_the_oracle(self):
        for options in (["--tp", "2"], ["--tp", "3", "--mode", "graph", "--l2", "both"],
                        ["--variant", "two_shot"], ["--variant", "two_shot", "--spread-residual"],
                        ["--variant", "one_shot_packed", "--inputs", "outliers"],
                        ["--variant", "two_shot_packed", "--inputs", "cancelling"],
                        ["--tp", "1"], ["--dtype", "f16", "--device", "emu32", "--mode", "graph"]):
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
                    if name == "nccl3" and "why_not" in arm:
                        continue
                    self.assertEqual(arm["equals_oracle"], "yes", (options, name))
                    self.assertGreater(arm["us"], 0)
                    self.assertLessEqual(arm["p10_us"], arm["us"])
                    self.assertLessEqual(arm["us"], arm["p90_us"])
                    self.assertGreater(arm["floor_us"], 0)
            for key in ("device", "date", "ranks", "dtype", "link_gbs", "memory_gbs", "latency_us"):
                self.assertIn(key, found)
            self.assertTrue(found["command"].startswith("tenon bench boundary"), found["command"])

    def test_large_shapes_are_checked_at_some_rows(self):
        found = json.loads(self.bench("--rows", "4096", "--hidden", "1280", "--arms", "fused1",
                                      "--iterations", "1", "--repeats", "1", "--json"))
        row = found["results"][0]
        self.assertLess(row["checked_rows"], 4096)
        self.assertGreater(row["checked_rows"], 500)
        self.assertEqual(row["arms"]["fused1"]["equals_oracle"], "yes")

    def test_lists_and_ranges_of_rows(self):
        found = json.loads(self.bench("--rows", "3,8..16", "--around", "--hidden", "256", "--arms",
                                      "fused1bf16", "--json"))
        self.assertEqual([row["rows"] for row in found["results"]], [3, 7, 8, 9, 15, 16, 17])

    def test_csv_and_plot(self):
        table, plot = self.directory / "t.csv", self.directory / "p.svg"
        out = self.bench("--rows", "1..4", "--hidden", "256,384", "--l2", "both", "--csv", str(table),
                         "--svg", str(plot))
        for piece in ("fused2bf16/fused1bf16", "floor_us", "cold", "GB/s"):
            self.assertIn(piece, out)
        lines = table.read_text().splitlines()
        self.assertEqual(len(lines), 1 + 2 * 2 * 3)
        self.assertEqual({line.count(",") for line in lines}, {lines[0].count(",")})
        root = xml.etree.ElementTree.parse(plot).getroot()
        space = "{http://www.w3.org/2000/svg}"
        self.assertEqual(root.tag, space + "svg")
        texts = [text.text for text in root.iter(space + "text")]
        for piece in ("hidden 256", "hidden 384", "fused1bf16", "fused1bf16, cold", "rows"):
            self.assertIn(piece, texts)
        curves = list(root.iter(space + "polyline"))
        self.assertEqual(len(curves) % (2 * 2), 0)
        for curve in curves:
            self.assertEqual(len(curve.get("points").split()), 3)

    CHOICES = ("one_shot", "one_shot_packed", "two_shot", "two_shot_packed", "two_kernels")

    def test_choices_become_a_table(self):
        table = self.directory / "tuned.def"
        found = json.loads(self.bench("--rows", "1..16", "--hidden", "256,512", "--json", "--tune",
                                      str(table)))
        choices = {(each["outputs"], each["choice"]) for each in found["choices"]}
        self.assertEqual(choices, {(outputs, choice) for outputs in ("fp8", "fp8+bf16")
                                   for choice in self.CHOICES})
        lines = table.read_text().splitlines()
        ends = [line.split(", ")[2] for line in lines if line.startswith('TENON_TUNED("host", 2, ')]
        self.assertEqual(len(ends), len(lines))
        self.assertEqual(ends[-1], "INT64_MAX")
        self.assertEqual(ends[:-1], sorted(ends[:-1], key=int))
        for line in lines:
            self.assertRegex(line, rf'"({"|".join(self.CHOICES)})"\)$')

    def test_ratios_against_a_baseline(self):
        shapes = ["--rows", "1,2", "--hidden", "256"]
        path = self.directory / "host.json"
        self.bench(*shapes, "--json-file", str(path))
        stored = json.loads(path.read_text())
        for row in stored["results"]:  # far better than it is, then far worse
            row["arms"]["fused1"]["us"] *= 100
            row["arms"]["fused1bf16"]["us"] *= 100
        path.write_text(json.dumps(stored))
        self.bench(*shapes, "--check", str(path))
        self.bench(*shapes, "--check", str(self.directory))
        for row in stored["results"]:
            row["arms"]["fused1"]["us"] /= 10000
        path.write_text(json.dumps(stored))
        found = self.refused(*shapes, "--check", str(path))
        self.assertIn("worse than the baseline by more than 3.0 %", found)
        self.assertIn("fused2/fused1", found)
        stored["ranks"] = 4
        path.write_text(json.dumps(stored))
        self.assertIn('"ranks" is 4', self.refused(*shapes, "--check", str(path)))

    def test_bad_options(self):
        self.assertIn('--arms has "fused9"; accepted are nccl3', self.refused("--arms", "fused9"))
        for rows in ("9..3", "0", "1,,2", "5..", "many", "-1"):
            self.assertIn("--rows has", self.refused("--rows", rows), rows)
        self.assertIn("accepted are 1 to 8192", self.refused("--rows", "9000"))
        self.assertIn("multiples of 128", self.refused("--hidden", "100"))
        self.assertIn('no variant is called "slow"', self.refused("--variant", "slow"))
        self.assertIn("every choice", self.refused("--sweep-variants", "--arms", "fused1"))
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
        for target in ("cpu", "emu32"):
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
        refused = tenon("env", "--boundary", "--device", "abacus")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("accepted are cuda", refused.stderr)


class Script(unittest.TestCase):
    """./x with stand-ins for the tools it calls: a step that fails is the last one."""

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.tool("dpkg-query", "echo ok installed")
        for name in ("cmake", "ctest", "clang-format-14", "clang-tidy-14"):
            self.tool(name)

    def tool(self, name, command="true"):
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho {name} "$*" >>{self.directory}/calls\n{command}\n')
        path.chmod(0o755)

    def x(self, *arguments):
        calls = self.directory / "calls"
        calls.unlink(missing_ok=True)
        environment = {**os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}"}
        done = subprocess.run([ROOT / "x", *arguments], capture_output=True, text=True, check=False,
                              env=environment)
        return done.returncode, [line.split()[0] for line in calls.read_text().splitlines()]

    def test_ci_stops_at_the_first_failure(self):
        status, calls = self.x("ci")
        self.assertEqual(status, 0)
        self.assertEqual(calls[-1], "cmake")  # the compile checks
        for tool in ("clang-format-14", "cmake", "ctest"):
            with self.subTest(tool):
                self.tool(tool, "exit 1")
                status, calls = self.x("ci")
                self.tool(tool)
                self.assertNotEqual(status, 0)
                self.assertEqual(calls[-1], tool)
                self.assertEqual(calls.count(tool), 1)

    def test_tidy_reports_findings(self):
        self.assertEqual(self.x("tidy")[0], 0)
        self.tool("clang-tidy-14", "exit 1")
        self.assertNotEqual(self.x("tidy")[0], 0)


if __name__ == "__main__":
    unittest.main()
