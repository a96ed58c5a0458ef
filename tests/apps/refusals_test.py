#!/usr/bin/env python3
"""What tenon refuses, and how it says so."""
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import unittest

from support import ABSURD, MODEL, ROOT, SANITIZED, TENON, copy_of_model, tenon


class Refusals(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def refused(self, *arguments):
        done = tenon(*arguments)
        self.assertIn(done.returncode, (1, 2), done.stderr)  # not a signal
        self.assertEqual(done.stdout, "")
        self.assertTrue(done.stderr.startswith("tenon: "), done.stderr)
        return done.stderr

    def model_of_long_contexts(self):
        return copy_of_model(pathlib.Path(tempfile.mkdtemp(dir=self.directory)),
                             max_position_embeddings=1 << 20)

    def test_impossible_tp(self):
        self.assertIn('tenon: invalid argument: --tp is 3; "checkpoints/tiny" accepts 1, 2 and 4: a team '
                      "of 3 ranks does not divide num_attention_heads = 4",
                      self.refused("run", "--demo", "--tp", "3"))
        for mode in ([], ["--processes"]):
            for tp in ("99", "0", "-1", "two"):
                self.assertIn(f'tenon: run: --tp is "{tp}"; accepted are whole numbers from 1 to 8',
                              self.refused("run", "--tp", tp, *mode))

    def test_no_checkpoint(self):
        found = self.refused("run", "--demo", "--model", str(self.directory))
        self.assertIn("is no checkpoint: it has no config.json, tokenizer.json or *.safetensors; a "
                      "checkpoint has", found)
        model = copy_of_model(self.directory, without=["tokenizer.json"])
        for command in (["run", "--demo"], ["eval", "words"]):
            self.assertIn("it has no tokenizer.json; a checkpoint has",
                          self.refused(*command, "--model", model))

    def test_missing_model(self):
        for command in (["run", "--demo"], ["run", "--demo", "--processes"], ["eval", "words"]):
            found = self.refused(*command, "--model", "no/such/place")
            self.assertIn('"no/such/place": no such directory', found)
            self.assertIn("is a file", self.refused(*command, "--model", __file__))

    def test_processes_say_an_error_once_and_by_whom(self):
        shard = "model-00001-of-00003.safetensors"
        broken = copy_of_model(self.directory, without=[shard])
        (self.directory / shard).write_bytes((pathlib.Path(MODEL) / shard).read_bytes()[:5000])
        lines = self.refused("run", "--demo", "--quiet", "--processes", "--tp", "4", "--model",
                             broken).splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], r"^tenon: rank \d: .*safetensors")

    def test_numbers_beyond_every_machine(self):
        for mode in ([], ["--processes"]):
            for context in ("100000000", ABSURD):
                found = self.refused("run", "--demo", "--max-context", context, *mode)
                self.assertIn(f'--max-context is "{context}"; accepted', found)
            found = self.refused("run", "--demo", "--quiet", "--max-context", "4097", *mode)
            self.assertIn('max_context is 4097 but the checkpoint\'s "max_position_embeddings" is 4096; '
                          "accepted: at most that many", found)
            model = self.model_of_long_contexts()
            found = self.refused("run", "--demo", "--quiet", "--model", model, "--max-context", "40000",
                                 "--max-batch", "4000", *mode)
            self.assertRegex(found, r"40000 with .* GB of caches .* accepted are ")
            model = copy_of_model(pathlib.Path(tempfile.mkdtemp(dir=self.directory)),
                                  head_dim=16777216)
            found = self.refused("run", "--demo", "--model", model, *mode)
            self.assertIn('"head_dim" is 16777216; accepted', found)
        self.assertIn("--max-batch", self.refused("run", "--demo", "--max-batch", ABSURD))

    @unittest.skipIf(SANITIZED, "sanitizers need more addresses than the limit leaves")
    def test_memory_that_cannot_be_had_is_an_error(self):
        command = [TENON, "run", "--demo", "--quiet", "--model", self.model_of_long_contexts(),
                   "--max-context", "200000"]
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
        self.assertIn("no chat template", self.refused(*options, "--system", "Be brief."))
        self.assertEqual(tenon(*options).returncode, 0)
        (self.directory / names[1]).write_text(json.dumps(found))
        self.assertEqual(tenon(*options, "--chat").returncode, 0)
        (self.directory / names[0]).write_text("{% if %}")
        self.assertIn("chat template", self.refused(*options, "--chat"))
        self.assertIn("--raw leaves the chat template out", self.refused(*options))
        self.assertEqual(tenon(*options, "--raw").returncode, 0)

    def test_bad_options(self):
        self.assertIn("auto, 1, 2, 3, mixed", self.refused("run", "--force-stage", "7"))
        self.assertIn("numbers from 1 to 3", self.refused("run", "--max-stage", "9"))
        self.assertIn("accepted are cuda", self.refused("run", "--target", "abacus"))
        self.assertIn("auto, threads, ipc, shm, ccl", self.refused("run", "--transport", "pigeon"))
        self.assertIn("above 0 to 1", self.refused("run", "--top-p", "0"))
        self.assertIn("0 to 100", self.refused("run", "--temperature", "nan"))
        self.assertIn("--prompt is empty", self.refused("run", "--prompt", ""))
        self.assertIn("standard input holds no prompt", self.refused("run"))
        self.assertIn("cannot read the prompt", self.refused("run", "--prompt", "@/no/such/file"))
        self.assertIn("one of them", self.refused("run", "--prompt", "a", "--prompt-file", "b"))
        self.assertIn("--raw", self.refused("run", "--demo", "--raw", "--system", "Be brief."))
        self.assertIn("--stop", self.refused("run", "--demo", "--stop", ""))
        self.assertIn('--memory-fraction is "2"; accepted are numbers from 0.01 to 1',
                      self.refused("run", "--memory-fraction", "2"))
        for text in ("0", "nan", "inf", "-1"):
            self.assertIn(f'--link-gbs is "{text}"; accepted are numbers above 0 (',
                          self.refused("bench", "boundary", "--link-gbs", text))
        self.assertIn("accepted are numbers 0 or more", self.refused("bench", "boundary", "--tolerance", "nan"))
        self.assertIn('--only is "nothing"; accepted are pieces of "delta net',
                      self.refused("bench", "ops", "--only", "nothing"))
        self.assertIn("--sequences has 9999; accepted are 1 to 8128",
                      self.refused("bench", "decode", "--sequences", "9999"))
        self.assertIn("--weights-seed is 3 and the weights are read from files; accepted is a seed with --load-format dummy",
                      self.refused("run", "--demo", "--weights-seed", "3"))
        for command in (["run", "--prompt-ids"], ["bench", "decode", "--stages"], ["bench", "boundary", "--arms"],
                        ["bench", "serve", "--compare-stages"]):
            for text in ("1,,2", "1,", ",1", ","):
                where = self.refused(*command, text)
                self.assertIn(f'{command[-1]} is "', where)
                if command[1] in ("--prompt-ids", "boundary") or text.startswith(","):
                    self.assertIn(f'is "{text}"; accepted are values with one comma between two', where)
        for option in ("--csv", "--json-file", "--svg"):  # a variable of the shell that is not set
            self.assertIn(f'{option} is ""; accepted is a path', self.refused("bench", "decode", option, ""))
        for tp in ("0", "9"):
            self.assertIn(f'--tp is "{tp}"', self.refused("env", "--boundary", "--tp", tp))

    def test_inputs_without_an_end(self):
        """What is no file is read only as far as a text may go, and no log is looked for in a device."""
        problems = str(ROOT / "tests/data/gsm8k/made.jsonl")
        for command, piece in ((["run", "--prompt-file", "/dev/zero"],
                                'cannot read the prompt in "/dev/zero": it has more'),
                               (["eval", "words", "--file", "/dev/zero"], "cannot read the problems in"),
                               (["eval", "words", "--file", "/"], "Is a directory"),
                               (["eval", "gsm8k", "--data", problems, "--shots", "2", "--quiet", "--log",
                                 "/dev/full"],
                                "/dev/full: is a device")):
            self.assertIn(piece, self.refused(*command))
        os.mkfifo(self.directory / "config.json")
        for command in (["run", "--demo", "--load-format", "dummy", "--model"], ["bench", "ops", "--model"],
                        ["inspect"]):
            self.assertIn("is a FIFO", self.refused(*command, str(self.directory)))

    def test_a_log_is_looked_at_before_a_model_is_loaded(self):
        shard = "model-00001-of-00003.safetensors"
        broken = copy_of_model(self.directory, without=[shard])
        (self.directory / shard).write_bytes((pathlib.Path(MODEL) / shard).read_bytes()[:5000])
        command = ["eval", "gsm8k", "--data", str(ROOT / "tests/data/gsm8k/made.jsonl"), "--shots", "2", "--quiet",
                   "--model", broken]
        self.assertIn(shard, self.refused(*command))
        self.assertIn('cannot write the log "/no/such/place"', self.refused(*command, "--log", "/no/such/place"))
        log = self.directory / "log"
        log.write_text("hello\n")
        self.assertIn("is no line of such a log", self.refused(*command, "--log", str(log)))

    def test_numbers_out_of_range(self):
        for option, *command in (("--deadline-ms", "run"), ("--limit", "eval", "words"),
                                 ("--warm-up", "bench", "boundary"), ("--seed", "run"),
                                 ("--max-batch", "run"), ("--max-context", "run"),
                                 ("--max-new-tokens", "run"), ("--top-k", "run"),
                                 ("--iterations", "bench", "boundary"), ("--max-rows", "env")):
            found = self.refused(*command, option, "-5")
            self.assertIn(f"{option} is \"-5\"; accepted are whole numbers from", found)

    def test_output_that_cannot_be_written(self):
        for command in (["run", "--demo", "--json", "--max-new-tokens", "2"], ["env"], ["run", "--help"]):
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
        self.assertIn("not part of this build", self.refused("run", "--demo", "--target", "cuda"))

    def test_malformed_knob(self):
        done = subprocess.run([TENON, "env"], capture_output=True, text=True, check=False,
                              env={**os.environ, "TENON_FORCE_STAGE": "soon"})
        self.assertEqual(done.returncode, 2)
        self.assertIn("TENON_FORCE_STAGE", done.stderr)


if __name__ == "__main__":
    unittest.main()
