"""What the tests of the command line share. Each of them runs alone: NAME_test.py PATH_TO_TENON.

They need checkpoints/tiny. TEST_FULL=1 compares 50 prompts over every stage, mode and team size instead
of a few, and scores all problems against the reference that lies with the model.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TENON = str(pathlib.Path(sys.argv.pop(1)).resolve()) if len(sys.argv) > 1 and os.path.isfile(
    sys.argv[1]) else str(ROOT / "build/cpu/apps/tenon")
MODEL = str(ROOT / "checkpoints/tiny")
FULL = bool(os.environ.get("TEST_FULL"))
QUESTION = "Tom has 3 boxes of 12 pencils. How many pencils does he have?"
LAYERS = 8
SANITIZED = any(mark in pathlib.Path(TENON).read_bytes() for mark in (b"__asan_", b"__tsan_"))
BUILT = subprocess.run([TENON, "--version"], capture_output=True, text=True, check=True).stdout.split(
    "targets: ")[1].splitlines()[0].split(", ")
ABSURD = "2147483647"
PATIENCE = 120  # seconds, on a machine that does other things as well
# A shell starts what it runs in the background with an ignored Ctrl-C, and programs inherit that. Those of
# the tests are to be reached by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def tenon(*arguments, timeout=300, stdin="", cwd=ROOT):
    return subprocess.run([TENON, *arguments], capture_output=True, text=True, cwd=cwd, input=stdin,
                          timeout=timeout, check=False)


def run_json(*arguments):
    done = tenon("run", "--json", "--prompt", QUESTION, *arguments)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def copy_of_model(directory, without=(), **config):
    """checkpoints/tiny, less some files, with some keys of its text_config replaced."""
    for path in pathlib.Path(MODEL).iterdir():
        if path.name not in without:
            os.symlink(path, directory / path.name)
    wanted = json.loads((pathlib.Path(MODEL) / "config.json").read_text())
    wanted.get("text_config", wanted).update(config)
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(wanted))
    return str(directory)


def start(*arguments, **more):
    """The program, with pipes."""
    return subprocess.Popen([TENON, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def children_of(process):
    found = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in found.split()]


def wait_until_caught(process, number):
    """Until the process has a handler of its own for a signal."""
    status = pathlib.Path(f"/proc/{process.pid}/status")

    def caught():
        mask = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        return mask >> (number - 1) & 1

    assert wait_until(caught)


def wait_until(is_true, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_true():
            return True
        time.sleep(0.02)
    return False
