#!/usr/bin/env python3
"""tenon env, for people and for programs: env_test.py PATH_TO_TENON."""
import json
import os
import pathlib
import subprocess
import sys
import unittest

from support import BUILT, TENON


def env(*arguments, **variables):
    done = subprocess.run([TENON, "env", *arguments], capture_output=True, text=True, check=False,
                          env={**os.environ, **variables}, timeout=120)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


class Env(unittest.TestCase):
    def test_no_process_is_made_up(self):
        text = env()
        self.assertIn("rank 1 is in another process", text)
        self.assertNotIn("pid", text)

    def test_json_is_one_object_with_all_of_it(self):
        found = json.loads(env("--json", "--links", "--boundary", "--max-rows", "4", "--hidden", "512"))
        self.assertEqual([device["target"] for device in found["devices"] if device["why_not"] is None],
                         BUILT)
        missing = [device for device in found["devices"] if device["why_not"]]
        self.assertTrue(all("not part of this build" in device["why_not"] for device in missing))
        threads = [line for line in found["transports"]
                   if line["transport"] == "threads" and line["target"] in BUILT]
        self.assertEqual(len(threads), len(BUILT))
        for line in threads:
            self.assertIs(line["threads"], True)
            self.assertIs(line["processes"], False)
            self.assertEqual(line["why_not_processes"], "rank 1 is in another process")
        self.assertIn({"op": "rope", "target": "cpu", "variants": ["elementwise"]},
                      [{**op, "variants": ["elementwise"]} for op in found["ops"]])
        self.assertIn("TENON_DEADLINE_MS", [line["variable"] for line in found["variables"]])
        self.assertIsInstance(found["instructions"]["avx2"], bool)
        self.assertGreater(found["cores"], 0)
        self.assertGreater(found["memory_bytes"], 0)
        self.assertEqual(found["links"], [])
        self.assertEqual(found["boundary"]["hidden"], 512)
        self.assertEqual({bucket["outputs"] for bucket in found["boundary"]["buckets"]},
                         {"fp8", "fp8+bf16", "bf16"})

    def test_every_op_has_a_plan(self):
        waves = "emu32" in BUILT  # not under the thread sanitizer
        found = json.loads(env("--json", "--ops", "--hidden", "1024", "--max-rows", "100", "--tp", "4", "--device",
                               "emu32" if waves else "cpu"))
        plans = found["plans"]
        self.assertEqual({plan["op"] for plan in plans}, {op["op"] for op in found["ops"]})
        for plan in plans:
            self.assertNotIn("why_not", plan)
            self.assertTrue(plan["launches"], plan)
            self.assertIn(plan["bits"], ("reference", "own"))
            self.assertEqual(plan["bits"] == "own", plan["bits_name"] != "")
            self.assertGreaterEqual(min(launch["threads"] for launch in plan["launches"]), 1)
        of = lambda op: [plan for plan in plans if plan["op"] == op]  # noqa: E731
        if waves:
            self.assertEqual([launch["kernel"] for launch in of("gated_delta_net")[1]["launches"]],
                             ["conv_kernel", "decode_kernel", "chunked_kernel", "finish_kernel"])
            self.assertEqual(of("fused_allreduce_rmsnorm_quant")[0]["settings"]["ranks, at most"], 4)
        self.assertGreater(of("fp8_gemm")[0]["flops"], 0)

    def test_plans_follow_what_is_forced(self):
        text = env("--ops", "--max-rows", "4", TENON_FORCE_VARIANT="fp8_gemm:simt")
        self.assertRegex(text, r"fp8_gemm +4 rows +simt +simt_fp32 +simt_kernel \d+ x 1")
        missing = env("--ops", "--max-rows", "4", TENON_FORCE_VARIANT="fp8_gemm:none")
        self.assertIn('no variant is called "none"', missing)

    def test_says_what_a_report_of_a_fault_needs(self):
        found = json.loads(env("--json"))
        for name in ("compiler", "targets"):
            self.assertTrue(found["build"][name])
        self.assertEqual(found["build"]["targets"], ", ".join(BUILT))
        self.assertIn(os.uname().release, found["software"]["system"])
        text = env()
        for part in ("build", "software"):
            for name, value in found[part].items():
                self.assertIn(f"{name}: {value}\n", text)

    def test_a_library_that_is_there_has_a_version(self):
        fake = pathlib.Path(TENON).parent.parent / "tests/fake_ccl.so"
        if not fake.exists():
            self.skipTest("fake_ccl.so is not built")
        found = json.loads(env("--json", TENON_CCL_LIBRARY=str(fake)))
        self.assertRegex(found["software"]["NCCL"], r"^\d+\.\d+\.\d+ \(.*fake_ccl\.so\)$")


if __name__ == "__main__":
    unittest.main()
