#!/usr/bin/env python3
"""tenon bench boundary as a person uses it: bench_test.py PATH_TO_TENON."""
import csv
import json
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from support import PATIENCE, TENON, wait_until_caught

QUICK = ["--iterations", "3", "--repeats", "2", "--warm-up", "1"]
SMALL = ["--hidden", "256", "--rows", "1,2"]
ARMS = ["vendor", "three-kernels", "two-kernels-fp8", "two-kernels", "one-kernel-fp8", "one-kernel"]
LONG = ["--hidden", "256", "--arms", "three-kernels,one-kernel", "--mode", "eager"]


class Case(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def command(self, *arguments):
        return [TENON, "bench", "boundary", *arguments]

    def bench(self, *arguments, code=0):
        quick = [] if "--iterations" in arguments else QUICK
        done = subprocess.run(self.command(*quick, *arguments), capture_output=True, text=True,
                              cwd=self.directory, timeout=300, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def refused(self, *arguments):
        """A command line that cannot be: nothing is measured, and the exit code is not a signal."""
        quick = [] if "--iterations" in arguments else QUICK
        done = subprocess.run(self.command(*quick, *arguments), capture_output=True, text=True,
                              cwd=self.directory, timeout=300, check=False)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        return done.stderr

    def on_terminal(self, columns, *arguments):
        """What a terminal of so many columns shows of standard output."""
        leader, follower = pty.openpty()
        size = {**os.environ, "COLUMNS": str(columns)}
        subprocess.run(["stty", "cols", str(columns)], stdin=follower, check=True)
        process = subprocess.Popen(self.command(*QUICK, *arguments), cwd=self.directory, env=size,
                                   stdout=follower, stderr=subprocess.DEVNULL)
        os.close(follower)
        seen = b""
        try:
            while piece := os.read(leader, 65536):
                seen += piece
        except OSError:  # the other end is closed
            pass
        os.close(leader)
        self.assertEqual(process.wait(), 0)
        return seen.decode().replace("\r\n", "\n")


class Forms(Case):
    def test_a_range_has_both_its_ends(self):
        for rows, wanted in (("1..3", [1, 2, 3]), ("3..5", [3, 4, 5]), ("6..7", [6, 7])):
            found = json.loads(self.bench("--rows", rows, "--hidden", "256", "--json").stdout)
            self.assertEqual([row["rows"] for row in found["results"]], wanted)

    def test_csv_holds_plain_numbers(self):
        names = {"device", "target", "dtype", "inputs", "mode", "l2", "variant", "wrong_arms",
                 "own_order_arms"}
        self.bench("--rows", "1,48", "--hidden", "256,1024", "--l2", "both", "--csv", "t.csv")
        with open(self.directory / "t.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 8)
        for row in rows:
            self.assertNotIn(None, row)
            for name, cell in row.items():
                if name not in names and cell:  # empty: it did not run
                    float(cell)
            for name in ("link_bytes", "memory_bytes", "floor_us", "of_floor_percent", "one-kernel-fp8_us",
                         "one-kernel-fp8_p10_us", "one-kernel-fp8_p90_us", "three-kernels/one-kernel", "checked_rows"):
                self.assertGreater(float(row[name]), 0, name)
            self.assertEqual(row["equals_oracle"], "1")
            self.assertEqual(row["wrong_arms"], "")

    def test_json_says_yes_in_its_own_words(self):
        found = json.loads(self.bench(*SMALL, "--json").stdout)
        self.assertIs(found["complete"], True)
        for row in found["results"]:
            self.assertIs(row["arms"]["one-kernel-fp8"]["equals_oracle"], True)
            self.assertEqual(row["arms"]["one-kernel-fp8"]["repeats"], 2)

    def test_the_table_fits_the_terminal(self):
        for columns in (60, 80, 200):
            seen = self.on_terminal(columns, *SMALL, "--l2", "both")
            table = seen[seen.index("\nrows"):seen.index("not run:")]
            for line in table.splitlines():
                self.assertLessEqual(len(line), columns, line)
            for arm in ARMS:
                self.assertRegex(table, rf"(?m)^rows .*\b{arm}\b", "no column is dropped")
        wide = self.bench(*SMALL, "--wide").stdout
        self.assertRegex(wide, r"(?m)^device .*two-kernels/one-kernel .*links .*equals_oracle$")
        self.assertLess(max(map(len, self.bench(*SMALL).stdout.splitlines())), 140)

    def test_names_are_explained(self):
        places = [subprocess.run(self.command("--help"), capture_output=True, text=True,
                                 check=True).stdout, self.on_terminal(120, *SMALL)]
        for text in places:
            for name in ARMS + ["gain", "of_floor", "equal"]:
                self.assertRegex(text, rf"(?m)^  {name} {{2,}}\S")


class Check(Case):
    def baseline(self, factor):
        self.bench(*SMALL, "--json-file", "b.json")
        path = self.directory / "b.json"
        stored = json.loads(path.read_text())
        for row in stored["results"]:
            row["arms"]["one-kernel-fp8"]["us"] *= factor
            row["arms"]["one-kernel"]["us"] *= factor
        path.write_text(json.dumps(stored))
        return stored

    def test_what_is_slower_ends_with_1_and_a_table(self):
        self.baseline(0.0001)
        done = self.bench(*SMALL, "--check", "b.json", code=1)
        self.assertNotIn("internal", done.stderr)
        self.assertNotIn("tenon:", done.stderr)
        self.assertRegex(done.stdout, r"\d+ of \d+ ratios are worse than the baseline by more than 3.0 %")
        self.assertRegex(done.stdout, r"(?m)^ +[12] +256 +eager +warm +two-kernels-fp8/one-kernel-fp8 +[\d.]+ +[\d.]+ +(9\d|100)\.\d%")
        found = self.bench(*SMALL, "--check", "b.json", "--json", code=1)
        check = json.loads(found.stdout)["check"]
        self.assertEqual({"rows", "hidden", "mode", "l2", "slow", "fast", "was", "now",
                          "worse_percent"}, set(check["worse"][0]))
        self.assertIn("worse than the baseline", found.stderr)

    def test_what_is_not_slower_ends_with_0(self):
        self.baseline(10_000)
        found = json.loads(self.bench(*SMALL, "--check", "b.json", "--json").stdout)["check"]
        self.assertEqual(found["worse"], [])
        self.assertGreater(found["compared"], 0)

    def test_another_team_is_refused_before_anything_is_measured(self):
        stored = self.baseline(1)
        stored["ranks"] = 4
        (self.directory / "b.json").write_text(json.dumps(stored))
        self.assertIn('"ranks" is 4', self.refused(*SMALL, "--check", "b.json"))


class Files(Case):
    OPTIONS = ("--csv", "--json-file", "--svg", "--tune")

    def test_what_cannot_be_opened_is_found_before_the_run(self):
        os.mkfifo(self.directory / "nobody_reads")
        (self.directory / "is_a_folder").mkdir()
        for option in self.OPTIONS:
            for path in ("no/such/folder/x", "is_a_folder", "nobody_reads"):
                done = self.bench(*SMALL, "--iterations", "1000000", option, path, code=1)
                self.assertEqual(done.stdout, "")
                self.assertIn(f'{option}: cannot write "{path}"', done.stderr)

    def test_one_file_for_two_forms_is_refused(self):
        self.assertIn("--json-file and --csv name the same file",
                      self.refused(*SMALL, "--csv", "x", "--json-file", "./x"))
        self.assertFalse((self.directory / "x").exists())

    def test_a_path_is_bytes(self):
        name = b"a\xff\xfe\x80b"
        for option in self.OPTIONS:
            path = os.path.join(os.fsencode(self.directory), name + option.encode())
            command = self.command(*QUICK, *SMALL, "--json", option)
            done = subprocess.run([os.fsencode(word) for word in command] + [path],
                                  capture_output=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("tenon bench boundary", json.loads(done.stdout.decode("utf-8"))["command"])
            self.assertGreater(os.path.getsize(path), 0)
            if option == "--json-file":
                json.loads(pathlib.Path(os.fsdecode(path)).read_text(encoding="utf-8"))

    def test_results_are_printed_whatever_happens_to_files(self):
        done = self.bench(*SMALL, "--csv", "/dev/full", "--json-file", "kept.json", code=1)
        self.assertIn("one-kernel", done.stdout)
        self.assertIn("--csv: could not write all", done.stderr)
        self.assertEqual(len(json.loads((self.directory / "kept.json").read_text())["results"]), 2)

    def test_a_refused_run_leaves_files_as_they_were(self):
        (self.directory / "old.csv").write_text("old")
        self.refused(*SMALL, "--csv", "old.csv", "--json-file", "new.json", "--variant", "slow")
        self.assertEqual((self.directory / "old.csv").read_text(), "old")
        self.assertFalse((self.directory / "new.json").exists())
        (self.directory / "old.csv").write_text("x" * 100_000)
        self.bench(*SMALL, "--csv", "old.csv")
        self.assertNotIn("x" * 100, (self.directory / "old.csv").read_text())

    def test_pipes_are_files_too(self):
        done = subprocess.run(self.command(*QUICK, *SMALL, "--csv", "/dev/stdout"), capture_output=True,
                              text=True, check=True)
        self.assertIn("one-kernel_p90_us", done.stdout)


class Signals(Case):
    def measures(self, process):
        """Waits until it says how far it is, which it does after some seconds of measuring; that line."""
        for line in process.stderr:
            if " left" in line:
                return line
        return self.fail(f"it ended with {process.wait()}")

    def interrupted(self, number, *arguments):
        process = subprocess.Popen(self.command(*LONG, *arguments), cwd=self.directory, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.measures(process)
        process.send_signal(number)
        out, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, -number, errors)
        return out, errors

    def test_what_was_measured_is_printed_and_written(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            out, errors = self.interrupted(
                number, "--rows", "1,2,4000", "--iterations", "20", "--repeats", "4000", "--csv", "t.csv",
                "--json-file", "j.json", "--svg", "p.svg")
            self.assertRegex(out, r"(?m)^ +1 +256 ")
            self.assertRegex(errors, r"stopped with [123] of 3 rows")
            found = json.loads((self.directory / "j.json").read_text())
            self.assertIs(found["complete"], False)
            self.assertGreater(found["results"][0]["arms"]["one-kernel"]["us"], 0)
            self.assertIn("one-kernel_us", (self.directory / "t.csv").read_text())
            self.assertIn("<svg", (self.directory / "p.svg").read_text())

    def test_a_single_long_repeat_ends_early(self):
        out, _ = self.interrupted(signal.SIGINT, "--rows", "64", "--iterations", "2000000000",
                                  "--repeats", "1", "--json")
        arm = json.loads(out)["results"][0]["arms"]["three-kernels"]
        self.assertGreater(arm["us"], 0)
        self.assertLess(arm["iterations"], 2_000_000_000)

    def test_a_table_of_choices_needs_all_shapes(self):
        (self.directory / "tuned.json").write_text('{"tables": []}')
        process = subprocess.Popen(self.command("--hidden", "256", "--rows", "1..64", "--repeats",
                                                "100000", "--tune", "tuned.json"), cwd=self.directory,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.measures(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, -signal.SIGINT)
        self.assertIn("no table of choices is made from a part", errors)
        self.assertEqual((self.directory / "tuned.json").read_text(), '{"tables": []}')

    def test_the_second_signal_ends_at_once(self):
        process = subprocess.Popen(self.command("--rows", "8192", "--hidden", "16384", "--repeats", "1"),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until_caught(process, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, -signal.SIGINT)

    def test_a_long_run_says_how_far_it_is(self):
        for numbers in (["--iterations", "2000000000", "--repeats", "1"],
                        ["--iterations", "20", "--repeats", "2000000000"]):
            process = subprocess.Popen(self.command(*LONG, "--rows", "64", *numbers), text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            line = self.measures(process)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
            self.assertRegex(line, r"^bench boundary: 64 x 256, 0 %, .*(min|s|years) left$")

    def test_graphs_of_any_length_are_refused(self):
        self.assertIn("--mode eager", self.refused(*SMALL, "--mode", "graph", "--iterations",
                                                   "2000000000"))


if __name__ == "__main__":
    unittest.main()
