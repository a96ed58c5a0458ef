#!/usr/bin/env python3
"""The program under limits of the system that are too small: limits_test.py PATH_TO_TENON.

Every start ends with success, or with an exit code and one sentence: never by a signal, never with
two complaints, and within its deadline. Needs checkpoints/tiny.
"""
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = sys.argv.pop(1) if len(sys.argv) > 1 else str(ROOT / "build/cpu/apps/tenon")
SANITIZED = any(mark in pathlib.Path(TENON).read_bytes() for mark in (b"__asan_", b"__tsan_"))
MIB = 1 << 20
MODES = {"threads": [], "processes": ["--processes"]}
# What the loader says when the program itself cannot be brought into memory.
LOADER = re.compile("error while loading shared libraries|cannot allocate TLS|^out of memory")


def run(limits, *arguments, before=lambda: None, **variables):
    """The program's exit code and complaints under {resource: limit}, after before() in the child."""
    def set_limits():
        before()
        for which, limit in limits.items():
            resource.setrlimit(which, (int(limit), int(limit)))

    command = [TENON, "run", "--json", "--prompt", "Tom", "--max-new-tokens", "2", "--deadline-ms",
               "30000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
                          env={**os.environ, **variables}, preexec_fn=set_limits)
    return done.returncode, done.stderr


@unittest.skipIf(SANITIZED, "sanitizers need more than the limits leave")
class Limits(unittest.TestCase):
    def one_sentence(self, code, complaint):
        self.assertIn(code, (0, 1, 2), complaint)  # no signal
        if code == 0:
            return ""
        self.assertEqual(len(complaint.splitlines()), 1, complaint)
        self.assertTrue(complaint.startswith("tenon: "), complaint)
        return complaint

    def sweep(self, which, limits, **variables):
        """Runs under each limit in both modes: what was complained of, by limit and mode."""
        found = {}
        for limit in limits:
            for mode, options in MODES.items():
                with self.subTest(limit=limit, mode=mode):
                    code, complaint = run({which: limit}, *options, **variables)
                    if code == 127 and LOADER.search(complaint):
                        continue
                    if code == -signal.SIGSEGV and which == resource.RLIMIT_AS and limit < os.path.getsize(TENON):
                        continue  # the kernel's answer to a program that it cannot map
                    found[limit, mode] = self.one_sentence(code, complaint)
        return found

    def test_addresses(self):
        sizes = [MIB * size for size in (12, 14, 17, 20, 24, 28, 36, 48, 64, 90, 130, 180, 240)]
        # Where the program just fits, its first objects do not.
        sizes += range(os.path.getsize(TENON) - MIB, os.path.getsize(TENON) + 12 * MIB, MIB // 16)
        found = self.sweep(resource.RLIMIT_AS, sizes)
        self.assertTrue(any(found.values()))
        largest = self.sweep(resource.RLIMIT_AS, [2000 * MIB])
        self.assertEqual(set(largest.values()), {""})

    def test_data(self):
        sizes = [MIB * size for size in (0.3, 0.6, 1, 1.1, 2, 6, 12, 20, 40, 80, 150)]
        found = self.sweep(resource.RLIMIT_DATA, sizes)
        self.assertTrue(any(found.values()))

    def test_caches_that_do_not_fit_say_how_large_they_are(self):
        with tempfile.TemporaryDirectory() as model:  # checkpoints/tiny, but for longer contexts
            for path in (ROOT / "checkpoints/tiny").iterdir():
                os.symlink(path, pathlib.Path(model) / path.name)
            config = pathlib.Path(model) / "config.json"
            longer = json.loads(config.read_text())
            longer["text_config"]["max_position_embeddings"] = 1 << 20
            config.unlink()
            config.write_text(json.dumps(longer))
            code, complaint = run({resource.RLIMIT_AS: 700 * MIB}, "--model", model, "--max-context", "200000")
        self.one_sentence(code, complaint)
        self.assertRegex(complaint, r"max_context 200000 with max_batch 16, prefix_states 16 asks for \d+ MB of "
                                    r"caches on each rank, of which \d+ MB could be had; accepted are smaller")

    def test_threads(self):
        for size in (100, 1000, 4000):
            found = self.sweep(resource.RLIMIT_AS, [size * MIB], TENON_CPU_THREADS="1024")
            for complaint in found.values():
                self.assertIn("run on 1024 threads (TENON_CPU_THREADS takes fewer): ", complaint)
        code, complaint = run({}, TENON_CPU_THREADS="1025")
        self.one_sentence(code, complaint)
        self.assertIn('TENON_CPU_THREADS: is "1025" but must be 0 to 1024', complaint)

    @unittest.skipUnless(os.geteuid() == 0, "counts the processes of a user that has none")
    def test_processes_of_a_user(self):
        nobody = 54321

        def limited(most):
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
            os.setgroups([])
            os.setresgid(nobody, nobody, nobody)
            os.setresuid(nobody, nobody, nobody)

        for most in (1, 2, 3, 5):
            for mode, options in MODES.items():
                with self.subTest(most=most, mode=mode):
                    code, complaint = run({}, "--tp", "4", *options, before=lambda: limited(most))
                    if "Permission denied" in complaint:
                        self.skipTest("the tree is not for everybody")
                    found = self.one_sentence(code, complaint)
                    if most == 1:
                        self.assertIn("could not start", found)

    def test_stacks(self):
        found = self.sweep(resource.RLIMIT_STACK, [1024 * kib for kib in (128, 160, 192, 256, 1024)])
        for (limit, mode), complaint in found.items():
            if limit < 192 * 1024:
                self.assertIn("kernels of the cpu target need 192 KiB", complaint)
            elif limit > 192 * 1024:
                self.assertEqual(complaint, "", (limit, mode))

    def test_descriptors(self):
        found = self.sweep(resource.RLIMIT_NOFILE, (5, 6, 7, 8, 12, 16, 32))
        self.assertEqual(found[32, "threads"] + found[32, "processes"], "")


if __name__ == "__main__":
    unittest.main()
