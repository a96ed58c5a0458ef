#!/usr/bin/env python3
"""Whether a server gives the same answers however it runs:

    same_answers.py TENON [--stages auto,3] [--parallel 1,64] [--words N] [--gsm8k FILE --shots N --limit N]
                    [--json-file FILE] [-- OPTIONS OF tenon serve]

Starts `tenon serve` once for each stage policy and asks it all problems, so many at a time, by
`tenon eval words --url` and, where a file is given, `tenon eval gsm8k --url`. Answers are compared problem by
problem, the ones of words as token ids, those of gsm8k as texts. Prints a table; ends with 1 where an answer
differs from that of the first line, or a problem has none. docs/measure.md.
"""
import argparse
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

START_SECONDS = 900


class Server:
    """`tenon serve` on a free port."""

    def __init__(self, tenon, options):
        self.process = subprocess.Popen([tenon, "serve", "--port", "0", "--quiet", *options],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        late = threading.Timer(START_SECONDS, self.process.kill)
        late.start()
        said, self.url = [], ""
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"served on (http://\S+?),? ", line):
                self.url = found[1]
                break
        late.cancel()
        if not self.url:
            self.process.wait()
            sys.exit("the server did not start:\n" + "".join(said[-20:]))
        self.reader = threading.Thread(target=self.process.stderr.read, daemon=True)
        self.reader.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def evaluate(tenon, *options):
    done = subprocess.run([tenon, "eval", *options, "--json"], capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(f"tenon eval {' '.join(options)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def words(tenon, url, parallel, asked):
    """How many are right, and every answer; None where there is none."""
    found = evaluate(tenon, "words", "--url", url, "--parallel", str(parallel), "--limit", str(asked.words),
                     "--file", str(pathlib.Path(asked.model) / "eval.jsonl"), "--quiet")
    return found["correct"], [each or None for each in found["tokens"]]


def gsm8k(tenon, url, parallel, asked):
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log.jsonl"
        found = evaluate(tenon, "gsm8k", "--url", url, "--parallel", str(parallel), "--data", asked.gsm8k,
                         "--shots", str(asked.shots), "--limit", str(asked.limit), "--log", str(log), "--quiet")
        answers = [None] * found["total"]
        for line in log.read_text().splitlines():
            each = json.loads(line)
            answers[each["problem"] - 1] = each["text"]
        return found["correct"], answers


def table_of(rows):
    head = ("problems", "stages", "at a time", "answered", "correct", "differ")
    cells = [head, *[tuple(str(row[name]) for name in head) for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def main():
    own, serve = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, serve = own[:at], own[at + 1:]
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("tenon")
    parser.add_argument("--model", default="checkpoints/tiny")
    parser.add_argument("--stages", default="auto,3")
    parser.add_argument("--parallel", default="1,64")
    parser.add_argument("--words", type=int, default=0, help="only the first so many; 0: all")
    parser.add_argument("--gsm8k", default="")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--json-file", default="")
    asked = parser.parse_args(own)
    parallels = [int(each) for each in asked.parallel.split(",")]
    kinds = [("words", words)] + ([("gsm8k", gsm8k)] if asked.gsm8k else [])
    first, rows = {}, []
    for stages in asked.stages.split(","):
        server = Server(asked.tenon, ["--model", asked.model, "--force-stage", stages, "--max-batch",
                                      str(max(parallels)), *serve])
        try:
            for name, ask in kinds:
                for parallel in parallels:
                    correct, answers = ask(asked.tenon, server.url, parallel, asked)
                    wanted = first.setdefault(name, answers)
                    differing = [at + 1 for at, (one, other) in enumerate(zip(wanted, answers)) if one != other]
                    rows.append({"problems": name, "stages": stages, "at a time": parallel,
                                 "answered": f"{len(answers) - answers.count(None)} of {len(answers)}",
                                 "correct": correct, "differ": len(differing), "differing": differing,
                                 "missing": answers.count(None)})
                    print(f"{name}, stages {stages}, {parallel} at a time: {correct} correct", file=sys.stderr)
        finally:
            server.stop()
    print(table_of(rows))
    if asked.json_file:
        version = subprocess.run([asked.tenon, "--version"], capture_output=True, text=True, check=True).stdout
        pathlib.Path(asked.json_file).write_text(json.dumps(
            {"model": asked.model, "serve": serve, "version": version.splitlines()[0], "rows": rows,
             "answers": first}, indent=1) + "\n")
    for row in rows:
        if row["differing"]:
            print(f"{row['problems']}, stages {row['stages']}, {row['at a time']} at a time: problems "
                  f"{row['differing'][:10]} differ from the first line", file=sys.stderr)
    return 1 if any(row["differ"] or row["missing"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
