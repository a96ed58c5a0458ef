"""Starts `tenon serve`, asks it over HTTP as a client of OpenAI's API, shows the answer as it comes, and ends it.

    serve.py PROGRAM [MODEL]      build/cpu/apps/tenon; checkpoints/tiny where no model is named
"""
import json
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

TINY = pathlib.Path(__file__).resolve().parents[2] / "checkpoints/tiny"
QUESTION = "Tom has 3 boxes of 12 pencils. How many pencils does he have?"


def start(program, model):
    """The process, and the address that it says it listens at once its first step has run."""
    server = subprocess.Popen([program, "serve", "--model", model, "--tp", "2", "--port", "0"],
                              stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"served on (http://[\w.:]+)", line)
        if found:
            return server, found[1]
    sys.exit(f"the server ended with {server.wait()} before it listened")


def ask(address, **fields):
    data = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, **fields}).encode()
    request = urllib.request.Request(address + "/v1/chat/completions", data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    server, address = start(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else TINY)
    try:
        whole = json.load(ask(address))["choices"][0]["message"]["content"]
        streamed = ""
        with ask(address, stream=True) as answer:
            for line in answer:  # server-sent events: "data: {...}"
                if line.startswith(b"data: {"):
                    piece = json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    print(piece, end="", flush=True)
                    streamed += piece
        print()
        if streamed != whole:
            sys.exit(f"streamed, it is another answer: {whole}")
    finally:
        server.send_signal(signal.SIGTERM)  # answers that run are finished first
        server.communicate(timeout=60)


if __name__ == "__main__":
    main()
