#!/usr/bin/env python3
"""What HTTP adds to the engine: the table of docs/serve.md, printed: serve_overhead.py PATH_TO_TENON.

The same work, 16 prompts of 128 tokens, once in the process of the engine (tenon bench prefill and decode) and once
through tenon serve (tenon bench serve, streams), in turns, each the median of three: up to the last first token, where
nobody draws more than that one, and then 48 tokens of each. The best turn counts, so that other work of the machine
does not; of the gaps between tokens the median, as at first others read their prompts in between. One rank; its
threads have all cores, and so have the server's and the client.
ROUNDS=3 is a shorter one.
"""
import json
import os
import pathlib
import statistics
import subprocess

from serve_support import Server
from support import BUILT, MODEL, ROOT, TENON

ROUNDS = int(os.environ.get("ROUNDS", "12"))
SEQUENCES, PROMPT, DRAWN = 16, 128, 48
ENGINE = ("--model", MODEL, "--tp", "1")


def bench(*words):
    done = subprocess.run([TENON, "bench", *words, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def seconds_of(process):
    """Processor seconds of the threads of a process, by name; threads of HTTP together."""
    found = {}
    for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        name = "http" if name.startswith("tenon http") else name
        found[name] = found.get(name, 0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def load(server, drawn):
    """Turns of a load on it."""
    told = bench("serve", "--url", f"http://127.0.0.1:{server.port}", "--concurrency", str(SEQUENCES), "--num-prompts",
                 str(SEQUENCES), "--input-tokens", str(PROMPT), "--output-tokens", str(drawn), "--repeats", "3")
    turns = told["turns"][0]
    assert not any(turn["failed"] for turn in turns)
    return turns


def main():
    assert "cpu" in BUILT
    server = Server(*ENGINE, "--max-context", "2048", "--prefix-states", "0", "--quiet")
    within, served, tokens = [], [], 0
    before = seconds_of(server.process)
    try:
        for _ in range(ROUNDS):
            first = bench("prefill", *ENGINE, "--prompts", str(SEQUENCES), "--tokens", str(PROMPT), "--stages", "auto",
                          "--repeats", "3")
            step = bench("decode", *ENGINE, "--sequences", str(SEQUENCES), "--context", str(PROMPT), "--steps",
                         str(DRAWN), "--stages", "auto", "--repeats", "3")
            within.append((first["results"][0]["first_token_ms"], step["results"][0]["step_ms"]))
            prompts, streams = load(server, 1), load(server, DRAWN)
            served.append((statistics.median(turn["ttft_p99_ms"] for turn in prompts),
                           statistics.median(turn["itl_median_ms"] for turn in streams)))
            tokens += sum(turn["output_tokens"] for turn in prompts + streams)
        spent = {name: value - before.get(name, 0) for name, value in seconds_of(server.process).items()}
    finally:
        server.stop()
    print("| | in the process, ms | through HTTP, ms | more |\n|---|---|---|---|")
    for at, what in enumerate((f"the last of {SEQUENCES} first tokens", f"a token of each of {SEQUENCES} streams")):
        inside, outside = min(each[at] for each in within), min(each[at] for each in served)
        print(f"| {what} | {inside:.2f} | {outside:.2f} | {100 * (outside / inside - 1):.1f} % |")
    http, all_threads = spent.get("http", 0), sum(spent.values())
    print(f"\nOf the server's processor time the threads of HTTP took {100 * http / all_threads:.1f} %: "
          f"{1e6 * http / tokens:.0f} µs a token.")


if __name__ == "__main__":
    main()
