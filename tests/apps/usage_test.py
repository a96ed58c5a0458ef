#!/usr/bin/env python3
"""What tenon says of itself: version, help, unknown words, completion, man page."""
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from support import ROOT, TENON, tenon

VERBS = (["run"], ["eval", "words"], ["bench", "boundary"], ["env"])
OPTION = re.compile(r"(?m)^  ((?:-\w, )?(?:--[a-z0-9-]+(?:, )?)+)(.*)")


def options_of(verb):
    """{option: what help says of it}, read from the help of a verb."""
    done = tenon(*verb, "--help")
    assert done.returncode == 0, done.stderr
    found = {}
    for names, text in OPTION.findall(re.sub(r"\n {30}", " ", done.stdout)):
        for name in names.replace(",", " ").split():
            found[name] = text.strip()
    return found


class Version(unittest.TestCase):
    def test_version_names_this_build(self):
        done = tenon("--version")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^tenon \d+\.\d+\.\d+\n")
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                              check=False).stdout.strip()
        commit = re.search(r"(?m)^commit: ([0-9a-f]{12}|unknown)", done.stdout)[1]
        self.assertTrue(head.startswith(commit) or commit == "unknown", (head, commit))
        for line in ("build: ", "compiler: ", "targets: cpu"):
            self.assertIn("\n" + line, done.stdout)


class Words(unittest.TestCase):
    def test_unknown_words_get_the_nearest_name_and_2(self):
        for words, near in ((["runn"], 'no verb "runn"; the nearest is run '),
                            (["bench", "bondary"], 'no verb "bondary"; the nearest is boundary '),
                            (["run", "--promt", "x"], 'no option "--promt"; the nearest is --prompt '),
                            (["run", "--max-new=3"], 'no option "--max-new"; the nearest is --max-new-'),
                            (["env", "--tarqet"], 'no option "--tarqet"; the nearest is --target '),
                            (["--vresion"], 'no option "--vresion"; the nearest is --version '),
                            (["xylophone"], 'no verb "xylophone" ('),
                            ([], "a verb is missing; accepted are run"),
                            (["eval"], "a verb is missing; accepted are words"),
                            (["run", "hello"], '"hello" is one word too many'),
                            (["run", "--tp"], "--tp needs a value"),
                            (["run", "--tp", "1", "--tp", "2"], "--tp has more than one value; accepted is one"),
                            (["run", "--chat", "--raw"], "excludes"),
                            (["bench", "boundary", "--mode", "slow"], '--mode is "slow"; accepted are auto')):
            done = tenon(*words)
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
            self.assertTrue(done.stderr.startswith("tenon: "), done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(near, done.stderr)

    def test_failures_are_1(self):
        self.assertEqual(tenon("run", "--demo", "--model", "no/such/place").returncode, 1)
        self.assertEqual(tenon("eval", "words", "--file", "/no/such/file").returncode, 1)


class Help(unittest.TestCase):
    def test_every_option_has_a_text(self):
        for verb in VERBS:
            found = options_of(verb)
            self.assertGreater(len(found), 3, verb)
            for name, text in found.items():
                self.assertGreater(len(re.sub(r"^[A-Z]+ +", "", text)), 10, (verb, name, text))

    def test_groups_defaults_and_examples(self):
        text = tenon("run", "--help").stdout
        for group in ("Prompt", "Model", "Ranks", "Sampling", "Output"):
            self.assertIn(f"\n{group}:\n", text)
        self.assertIn("\n  tenon run --prompt", text)
        self.assertIn("usage: tenon completion SHELL [options]\n\nWords:\n  SHELL  ",
                      tenon("completion", "--help").stdout)
        self.assertIn("Exit codes: 0", tenon("--help").stdout)
        self.assertNotIn("Exit codes", tenon("env", "--help").stdout)
        found = options_of(["run"])
        self.assertIn("default: 256", found["--max-new-tokens"])
        self.assertLess(max(len(line) for line in text.splitlines()), 101)

    def test_transports_are_those_of_the_list(self):
        listed = re.findall(r"(?m)^TENON_TRANSPORT\((\w+)\)",
                            (ROOT / "tenon/comm/transport/transports.def").read_text())
        self.assertIn("(" + ", ".join(["auto", *listed]) + ";", options_of(["run"])["--transport"])


class Generated(unittest.TestCase):
    """Completion and man page come from the options: none of them may be missing."""

    def test_every_option_occurs(self):
        texts = {shell: tenon("completion", shell).stdout for shell in ("bash", "zsh", "fish")}
        texts["man"] = tenon("man").stdout.replace("\\-", "-")
        for verb in VERBS:
            for name, text in options_of(verb).items():
                for kind, whole in texts.items():
                    spelled = name
                    if kind == "fish":
                        spelled = f" -l {name[2:]} " if name.startswith("--") else f" -s {name[1:]} "
                    self.assertIn(spelled, whole, (kind, verb))
                    if kind == "man":
                        words = re.sub(r"^[A-Z]+ +", "", text)[:20].strip()
                        self.assertIn(words, " ".join(whole.split()), (verb, name))
        self.assertEqual(tenon("completion", "csh").returncode, 2)
        self.assertNotIn("completion", tenon("--help").stdout)

    def test_the_manual_is_the_same_wherever_it_is_made(self):
        there, elsewhere = (tenon("man", cwd=folder).stdout for folder in (ROOT, "/"))
        self.assertEqual(there, elsewhere)
        self.assertNotIn(str(ROOT), elsewhere)

    def complete(self, *words):
        """What bash offers for the last of the words."""
        listed = " ".join(f"'{word}'" for word in ("tenon", *words))
        script = (f"source <('{TENON}' completion bash); compopt() {{ :; }}; "
                  f"COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _tenon; "
                  "printf '%s\\n' \"${COMPREPLY[@]}\"")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False,
                              cwd=ROOT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.split()

    def test_bash_completes(self):
        self.assertEqual(self.complete("r"), ["run"])
        self.assertEqual(self.complete("eval", ""), ["words", "gsm8k", "-h", "--help"])
        self.assertEqual(self.complete("run", "--temp"), ["--temperature"])
        self.assertEqual(self.complete("run", "--force-stage", "m"), ["mixed"])
        self.assertEqual(self.complete("run", "--processes", "--transport", "t"), ["threads"])
        self.assertEqual(self.complete("run", "--model", "checkp"), ["checkpoints"])
        self.assertEqual(self.complete("run", "--top-k", ""), [])
        self.assertIn("--verbose", self.complete("eval", "words", "--v"))

    @unittest.skipUnless(shutil.which("zsh"), "zsh is not here")
    def test_zsh_reads_its_file(self):
        self.reads("zsh", "-n")

    @unittest.skipUnless(shutil.which("fish"), "fish is not here")
    def test_fish_reads_its_file(self):
        self.reads("fish", "--no-execute")

    def reads(self, shell, option):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "completion"
            path.write_text(tenon("completion", shell).stdout)
            done = subprocess.run([shell, option, str(path)], capture_output=True, text=True,
                                  check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
