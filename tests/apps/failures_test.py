#!/usr/bin/env python3
"""Signals, and ranks that are processes."""
import json
import os
import signal
import time
import unittest

from support import PATIENCE, children_of, start, wait_until, wait_until_caught


class Failures(unittest.TestCase):
    """A peer that dies or stops: the others say who, within the deadline, and nothing is left."""

    DEADLINE_S = 3

    def start(self):
        process = start("run", "--demo", "--processes", "--ignore-eos", "--max-new-tokens", "2000",
                        "--deadline-ms", str(1000 * self.DEADLINE_S))
        process.stdout.read(60)  # it talks, so it decodes
        return process, children_of(process)[0]

    def ends_with_an_error(self, number):
        process, child = self.start()
        os.kill(child, number)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=60)
        # The team's budget and a busy machine included; the usual deadline is 30 s.
        self.assertLess(time.monotonic() - begin, self.DEADLINE_S + 17)
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


class Interrupted(unittest.TestCase):
    """Ctrl-C: what was measured is told, then the process dies by the signal and leaves nothing."""

    ENDLESS = ("--demo", "--ignore-eos", "--max-new-tokens", "1900")

    def begin(self, *arguments):
        # A session of its own: signals go to the whole group, as a terminal's do.
        process = start(*arguments, start_new_session=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def run_until_it_talks(self, *options):
        process = self.begin("run", *self.ENDLESS, *options)
        process.stdout.read(20)
        return process

    def finish(self, process, number=signal.SIGINT):
        children = children_of(process)
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, -number, errors)
        for child in children:
            self.assertTrue(wait_until(lambda child=child: not os.path.exists(f"/proc/{child}")))
        return out, errors

    def test_run_tells_what_there_is(self):
        for options in ([], ["--processes"]):
            for number in (signal.SIGINT, signal.SIGTERM):
                out, errors = self.finish(self.run_until_it_talks(*options), number)
                self.assertTrue(out.endswith("\n"), options)
                self.assertRegex(errors, r"\n[^\n]*\d+ tokens \(interrupted\), decode [0-9.]+ tokens/s")
                self.assertTrue(errors.endswith("\ninterrupted\n"), errors)

    def test_json_is_whole(self):
        for options in ([], ["--processes"]):
            process = self.begin("run", *self.ENDLESS, "--json", *options)
            wait_until_caught(process, signal.SIGINT)
            out, errors = self.finish(process)
            self.assertEqual(errors, "")
            found = json.loads(out)
            self.assertEqual(found["finish"], "interrupted")
            self.assertLess(len(found["tokens"]), 1900)

    def test_eval_scores_what_is_finished(self):
        process = self.begin("eval", "words", "--json", "--max-batch", "4")
        self.assertTrue(any("20 of 200" in line for line in process.stderr))
        found = json.loads(self.finish(process)[0])
        self.assertEqual((found["finish"], found["total"]), ("interrupted", 200))
        self.assertGreaterEqual(found["finished"], 20)
        self.assertLess(found["finished"], 200)
        self.assertGreater(found["correct"], 0)

    def test_the_second_signal_ends_it_at_once(self):
        process = self.run_until_it_talks("--processes", "--deadline-ms", "600000")
        children = children_of(process)
        for child in children:
            os.kill(child, signal.SIGSTOP)  # so that no step ends
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=PATIENCE), -signal.SIGINT)
        for child in children:
            self.assertTrue(wait_until(lambda child=child: not os.path.exists(f"/proc/{child}")))


if __name__ == "__main__":
    unittest.main()
