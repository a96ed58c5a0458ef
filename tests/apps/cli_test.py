#!/usr/bin/env python3
"""The command line as a person uses it: cli_test.py PATH_TO_TENON. Needs models/tiny.

TEST_FULL=1 compares 50 prompts over every stage, mode and team size instead of a few.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = sys.argv.pop(1) if len(sys.argv) > 1 else str(ROOT / "build/cpu/apps/tenon")
MODEL = str(ROOT / "models/tiny")
FULL = bool(os.environ.get("TEST_FULL"))
QUESTION = "Tom has 3 boxes of 12 pencils. How many pencils does he have?"
LAYERS = 8


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
        for stage in (1, 2, 3):
            found = run_json("--max-new-tokens", "4", "--force-stage", str(stage))
            self.assertEqual({use["stage"] for use in found["boundaries"]}, {stage})
            self.assertTrue(stage == 1 or all(use["reason"] for use in found["boundaries"]))
        found = run_json("--max-new-tokens", "4", "--max-stage", "2")
        self.assertEqual({use["stage"] for use in found["boundaries"]}, {2})
        found = run_json("--max-new-tokens", "4", "--force-stage", "mixed")
        self.assertEqual({use["stage"] for use in found["boundaries"]}, {1, 2, 3})

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


class Refusals(unittest.TestCase):
    def refused(self, *arguments):
        done = tenon(*arguments)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout.strip(), "")
        return done.stderr

    def test_impossible_tp(self):
        self.assertIn("3", self.refused("run", "--tp", "3"))
        self.assertIn("accepted are 1 to 8", self.refused("run", "--tp", "99"))

    def test_missing_model(self):
        self.assertIn("no/such/place", self.refused("run", "--model", "no/such/place"))

    def test_bad_options(self):
        self.assertIn("auto, 1, 2, 3 and mixed", self.refused("run", "--force-stage", "7"))
        self.assertIn("max_stage", self.refused("run", "--max-stage", "9"))
        self.assertIn("accepted are cuda", self.refused("run", "--device", "abacus"))
        self.assertIn("top_p", self.refused("run", "--top-p", "0"))

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
    def test_every_arm_equals_the_oracle(self):
        done = tenon("bench", "boundary", "--rows", "1,5", "--hidden", "256", "--iterations", "3",
                     "--repeats", "2", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        for row in json.loads(done.stdout)["results"]:
            for arm in ("split", "fused2", "fused1", "fused1bf16"):
                self.assertTrue(row[f"{arm}_equals_oracle"])
                self.assertGreater(row[f"{arm}_us"], 0)

    def test_env_explains_itself(self):
        done = tenon("env", "--boundary", "--max-rows", "64")
        self.assertEqual(done.returncode, 0, done.stderr)
        for piece in ("emu64", "threads", "fp8_gemm", "TENON_MAX_STAGE", "one kernel"):
            self.assertIn(piece, done.stdout)


if __name__ == "__main__":
    unittest.main()
