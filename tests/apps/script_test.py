#!/usr/bin/env python3
"""./x: its verbs, names of tests, and where it runs."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from support import ROOT, TENON


class Stubbed(unittest.TestCase):
    """./x with stand-ins for the tools it calls."""

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

    def done(self, *arguments, cwd=None, **variables):
        calls = self.directory / "calls"
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}", **variables}
        return subprocess.run([ROOT / "x", *arguments], capture_output=True, text=True, check=False,
                              env=environment, cwd=cwd, stdin=subprocess.DEVNULL)

    def calls(self):
        """The calls of tools other than dpkg-query, which only looks."""
        return [line for line in (self.directory / "calls").read_text().splitlines()
                if not line.startswith("dpkg-query ")]

    def x(self, *arguments):
        status = self.done(*arguments).returncode
        return status, [line.split()[0] for line in self.calls()]


class Words(Stubbed):
    """What is not understood is refused before anything is done."""

    VERBS = ("build", "test", "compile", "fmt", "tidy", "new", "docs", "deps", "ci", "api", "install",
             "package")

    def test_unknown_options_do_nothing(self):
        for verb in self.VERBS:
            done = self.done(verb, "--chekc")
            self.assertEqual((done.returncode, self.calls()), (2, []), verb)
            self.assertIn("x: ", done.stderr)
        for words in (("fmt", "--check", "more"), ("build", "cpu", "more"), ("new", "op"), ("frob",), ("install",),
                      ("install", "a", "b"), ("package", "cpu"), ("api", "html")):
            self.assertEqual(self.done(*words).returncode, 2, words)
            self.assertEqual(self.calls(), [], words)

    def test_help_does_nothing_else(self):
        for verb in self.VERBS:
            for option in ("-h", "--help"):
                done = self.done(verb, option)
                self.assertEqual((done.returncode, self.calls(), done.stderr), (0, [], ""), verb)
                self.assertIn(f"./x {verb}", done.stdout)
        self.assertIn("cuda", self.done("build", "--help").stdout)
        self.assertIn("TENON_PRESET=cuda ./x run", self.done().stdout)

    def test_presets(self):
        known = [each["name"] for each in json.loads((ROOT / "CMakePresets.json").read_text())[
            "configurePresets"] if not each.get("hidden")]
        done = self.done("build", "nope")
        self.assertEqual((done.returncode, self.calls()), (2, []))
        self.assertIn(f'"nope"; accepted are {", ".join(known)}', done.stderr)
        for verb in ("run", "env", "test"):
            for preset in ("nope", "cuda-compile"):
                done = self.done(verb, TENON_PRESET=preset)
                self.assertEqual((done.returncode, self.calls()), (2, []))
                self.assertIn(f'TENON_PRESET is "{preset}"; accepted are cpu,', done.stderr)
        for words, variables in ((("build", "cuda"), {}), (("build",), {"TENON_PRESET": "cuda"}),
                                 (("run",), {"TENON_PRESET": "cuda"})):
            self.done(*words, **variables)
            self.assertIn("cmake --build build/cuda ", "\n".join(self.calls()))


def floor_targets(floor):
    """The test executables of a floor, one for each source."""
    return sorted(f"{floor}_{each.stem}" for each in (ROOT / "tests" / floor).glob("*_test.cc"))


class Names(Stubbed):
    """./x test NAME builds and runs what the name means, and fails where it means nothing."""

    def test_names(self):
        for name, targets, runs in (
                ("boundary_matrix_test", "boundary_matrix_test",
                 ["-L ^(boundary_matrix_test)$"]),
                ("Env.ReadsEveryKnob", "core_env_test", ["-R Env.ReadsEveryKnob -L ^(core_env_test)$"]),
                ("policy.layers", "build.ninja", [r"-R ^(policy\.layers)$"]),
                ("apps.run", "tenon", [r"-R ^(apps\.run)$"]),
                ("apps.memory", "scarce_memory tenon", [r"-R ^(apps\.memory)$"]),
                ("apps", " ".join(floor_targets("apps") + ["scarce_memory", "tenon"]), ["-L ^apps(_|$)"])):
            self.assertEqual(self.done("test", name).returncode, 0, name)
            calls = self.calls()
            self.assertTrue(calls[-1 - len(runs)].endswith("--target " + targets), calls)
            self.assertEqual([call.partition(" -j ")[2].partition(" ")[2] for call in calls[-len(runs):]],
                             runs)
            self.assertTrue(all("--no-tests=error" in call for call in calls[-len(runs):]), calls)

    def test_a_floor_is_all_its_executables(self):
        self.done("test", "comm", "core_env_test")
        build, floor, single = self.calls()[-3:]
        files = {f"comm_{path.stem}" for path in (ROOT / "tests/comm").glob("*_test.cc")}
        self.assertEqual(set(build.partition("--target ")[2].split()), files | {"core_env_test"})
        self.assertIn("-L ^comm(_|$)", floor)
        self.assertIn("-L ^(core_env_test)$", single)

    def test_nonsense_is_refused_before_anything_is_built(self):
        for words in (("nonsense",), ("core", "nonsense"), ("core_env_tset",), ("Env.(",)):
            done = self.done("test", *words)
            self.assertEqual((done.returncode, self.calls()), (2, []), words)
            self.assertIn(words[-1], done.stderr)
        self.assertIn("near it are core_env_test", self.done("test", "core_env_tset").stderr)
        self.assertIn("comm, core, device", self.done("test", "nonsense").stderr)

    def test_a_run_that_fails_fails(self):
        self.tool("ctest", "exit 8")
        self.assertEqual(self.done("test", "Env.ReadsEveryKnob").returncode, 8)

    def test_every_name_that_documents_use(self):
        floors = "core|text|reference|device|comm|ops|boundary|layers|models|runtime|serve|apps|policy|install"
        names = set()
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            names |= set(re.findall(rf"`((?:{floors})_\w+_test)\b", path.read_text()))
            names |= set(re.findall(r"`((?:policy|apps)\.\w+)`", path.read_text()))
        self.assertGreater(len(names), 5)
        for name in sorted(names):
            done = subprocess.run([sys.executable, ROOT / "tools/find_tests.py", name],
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)


class Place(Stubbed):
    """The program runs where the caller stands."""

    def setUp(self):
        super().setUp()
        build = pathlib.Path(TENON).parent.parent
        if build.parent != ROOT / "build":
            self.skipTest("the program does not lie where a preset puts it")
        self.preset = {"TENON_PRESET": build.name}

    def test_paths_are_the_callers(self):
        (self.directory / "question.txt").write_text("What is 2 + 3?")
        (self.directory / "mine").symlink_to(ROOT / "checkpoints/tiny")
        done = self.done("run", "--json", "--max-new-tokens", "2", "--model", "./mine",
                         "--prompt-file", "question.txt", cwd=self.directory, **self.preset)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["model"], "./mine")

    def test_without_anything_run_answers_a_question(self):
        done = self.done("run", cwd=self.directory, **self.preset)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"#### \d+\n$")
        self.assertIn("2 ranks on cpu", done.stderr)

    def test_nothing_to_build_says_nothing(self):
        self.tool("cmake", "echo '[0/2] Re-checking globbed directories...'; "
                           "echo 'ninja: no work to do.'")
        done = self.done("run", "--quiet", cwd=self.directory, **self.preset)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.tool("cmake", "echo '[1/1] Linking'; echo 'broken' >&2; exit 1")
        done = self.done("run", cwd=self.directory, **self.preset)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr, "[1/1] Linking\nbroken\n")


class Steps(Stubbed):
    """A step that fails is the last one."""

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


class Scaffold(unittest.TestCase):
    """./x new op NAME, in a tree of its own that has nothing but the list of ops."""

    def setUp(self):
        self.tree = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tree)
        for path in ("tools/new.py", "tenon/core/ops.def"):
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.tree / path)

    def new(self, *words):
        return subprocess.run([sys.executable, self.tree / "tools/new.py", *words], check=False,
                              capture_output=True, text=True)

    def files(self):
        return {str(path.relative_to(self.tree)) for path in self.tree.rglob("*") if path.is_file()}

    def compile(self, path, target, wave, header):
        done = subprocess.run(
            ["c++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow", "-Wconversion",
             "-Wno-sign-conversion", "-Werror", f"-I{self.tree}", f"-I{ROOT}",
             f"-DTENON_TARGET={target}", f"-DTENON_WAVE={wave}",
             f'-DTENON_DEVICE_HEADER="tenon/device/{header}/device.cuh"', "-x", "c++",
             self.tree / path], check=False, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), path)

    def test_what_it_writes_compiles(self):
        before = self.files()
        done = self.new("op", "two_words")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        folder, test = "tenon/ops/two_words/", "tests/ops/two_words_test.cc"
        self.assertEqual(self.files() - before,
                         {folder + "two_words.h", folder + "two_words.cc", folder + "two_words.cu",
                          folder + "variants.def", test})
        for path in self.files() - before:
            self.assertNotRegex((self.tree / path).read_text(), r"\bNAME\b|SUITE")
        self.assertIn("TEST(TwoWords, ", (self.tree / test).read_text())
        self.assertTrue((self.tree / "tenon/core/ops.def").read_text().endswith(
            "TENON_OP(two_words, ops/two_words)\n"))
        # What CMake makes of variants.def.
        (self.tree / folder / "built_variants.def").write_text(
            'TENON_BUILT_VARIANT(Cpu, cpu, rows, kReference, "")\n')
        for path in (folder + "two_words.cc", test, folder + "two_words.cu"):
            self.compile(path, "cpu", 1, "cpu")
        self.compile(folder + "two_words.cu", "emu32", 32, "emu")

    def test_refusals_change_nothing(self):
        self.assertEqual(self.new("op", "taken").returncode, 0)
        before = {path: (self.tree / path).read_text() for path in self.files()}
        for words in (("op", "taken"), ("op", "TwoWords"), ("op", "two-words"), ("op",), ("layer", "x")):
            done = self.new(*words)
            self.assertNotEqual(done.returncode, 0, words)
            self.assertTrue(done.stderr, words)
            self.assertEqual({path: (self.tree / path).read_text() for path in self.files()}, before)


if __name__ == "__main__":
    unittest.main()
