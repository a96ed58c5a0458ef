#!/usr/bin/env python3
"""tenon run on a terminal: a chat. Each test talks through a pseudo terminal."""
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
import unittest

from support import PATIENCE, QUESTION, ROOT, TENON, children_of, run_json, tenon, wait_until


class Terminal:
    """The program with a pseudo terminal as its standard streams."""

    def __init__(self, *arguments):
        self.end, other = pty.openpty()
        self.process = subprocess.Popen([TENON, *arguments], stdin=other, stdout=other, stderr=other,
                                        cwd=ROOT, start_new_session=True,
                                        preexec_fn=lambda: take_terminal(other))
        os.close(other)
        self.seen = ""

    def read_until(self, pattern):
        """Everything up to the pattern, which must come."""
        until = time.monotonic() + PATIENCE
        while True:
            found = re.search(pattern, self.seen)
            if found:
                text, self.seen = self.seen[:found.end()], self.seen[found.end():]
                return text
            if time.monotonic() > until:
                raise AssertionError(f"waited for {pattern!r}, saw {self.seen!r}")
            if not select.select([self.end], [], [], 1)[0]:
                continue
            try:
                self.seen += os.read(self.end, 4096).decode(errors="replace").replace("\r\n", "\n")
            except OSError:  # the other end is closed
                raise AssertionError(f"it ended before {pattern!r}, saw {self.seen!r}") from None

    def say(self, text):
        os.write(self.end, text.encode())

    def prompt(self):
        return self.read_until(r"(^|\n)> $")

    def ask(self, line):
        """Says a line; what comes before the next prompt, without the echo."""
        self.say(line + "\n")
        text = self.prompt()
        return text[text.index(line) + len(line):]

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.end)


def take_terminal(fd):
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


class Chat(unittest.TestCase):
    def open(self, *arguments):
        terminal = Terminal("run", *arguments)
        self.addCleanup(terminal.close)
        self.assertIn("/help", terminal.read_until(r"Ctrl-D ends it"))
        terminal.prompt()
        return terminal

    def ends(self, terminal, code=0):
        self.assertEqual(terminal.process.wait(timeout=PATIENCE), code)

    def prompt_tokens(self, text):
        return int(re.search(r"\(prompt (\d+) tokens", text)[1])

    def test_answers_as_run_does(self):
        terminal = self.open()
        found = terminal.ask(QUESTION)
        self.assertIn(run_json()["text"], found)
        self.assertRegex(found, r"\(prompt \d+ tokens, .* tokens/s")
        terminal.say("\x04")
        self.ends(terminal)

    def test_turns_are_remembered_until_reset(self):
        terminal = self.open("--max-new-tokens", "20")
        first = self.prompt_tokens(terminal.ask("What is 2 + 3?"))
        second = self.prompt_tokens(terminal.ask("What is 2 + 3?"))
        self.assertGreater(second, first)
        self.assertIn("forgotten", terminal.ask("/reset"))
        self.assertEqual(self.prompt_tokens(terminal.ask("What is 2 + 3?")), first)
        self.assertIn("system prompt is set", terminal.ask("/system Answer in one word."))
        with_system = self.prompt_tokens(terminal.ask("What is 2 + 3?"))
        self.assertGreater(with_system, first)
        self.assertIn("no system prompt", terminal.ask("/system"))
        self.assertEqual(self.prompt_tokens(terminal.ask("What is 2 + 3?")), first)
        terminal.say("/exit\n")
        self.ends(terminal)

    def test_system_option(self):
        terminal = self.open("--max-new-tokens", "4", "--system", "Answer in one word.")
        asked = self.prompt_tokens(terminal.ask("What is 2 + 3?"))
        done = tenon("run", "--max-new-tokens", "4", "--system", "Answer in one word.", "--prompt",
                     "What is 2 + 3?")
        self.assertIn(f"prompt {asked} tokens", done.stderr)

    def test_commands(self):
        terminal = self.open("--max-new-tokens", "4")
        for piece in ("/reset", "/system", "/exit", "Ctrl-C"):
            self.assertIn(piece, terminal.ask("/help"))
        self.assertIn("there is no command /rest; accepted are", terminal.ask("/rest"))
        self.assertNotIn("tokens", terminal.ask("   "))  # a blank line is no message
        self.assertIn("tokens", terminal.ask("//no command"))

    def test_a_message_that_does_not_fit_is_taken_back(self):
        terminal = self.open("--max-context", "40", "--max-new-tokens", "4")
        self.assertIn("(not answered: ", terminal.ask("Tom has pencils. " * 10))
        self.assertIn("tokens/s", terminal.ask("Tom?"))

    def test_interrupts(self):
        for options in ([], ["--processes"]):
            terminal = self.open("--ignore-eos", "--max-new-tokens", "1900", *options)
            for _ in range(2):  # the chat goes on, twice
                terminal.say(QUESTION + "\n")
                terminal.read_until(r"\n.{12}")
                terminal.say("\x03")
                self.assertIn("(interrupted)", terminal.prompt())
            children = children_of(terminal.process)
            self.assertEqual(len(children), 1 if options else 0)
            terminal.say("\x03")  # at the prompt
            self.ends(terminal, -signal.SIGINT)
            for child in children:
                self.assertTrue(wait_until(lambda child=child: not os.path.exists(f"/proc/{child}")))

    def test_quiet(self):
        terminal = Terminal("run", "--quiet", "--max-new-tokens", "4")
        self.addCleanup(terminal.close)
        terminal.prompt()
        self.assertNotIn("tokens", terminal.ask("Tom?"))

    def test_what_cannot_chat(self):
        for option in ("--json", "--raw"):
            terminal = Terminal("run", option)
            self.addCleanup(terminal.close)
            terminal.read_until("needs a prompt")
            self.ends(terminal, 2)

    def test_demo_is_no_chat(self):
        terminal = Terminal("run", "--demo", "--quiet")
        self.addCleanup(terminal.close)
        terminal.read_until(r"#### \d+")
        self.ends(terminal)


if __name__ == "__main__":
    unittest.main()
