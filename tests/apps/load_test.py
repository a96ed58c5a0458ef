#!/usr/bin/env python3
"""tenon bench serve, and tenon eval over HTTP: load_test.py PATH_TO_TENON."""
import csv
import http.server
import json
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree

from serve_support import Server
from support import PATIENCE, ROOT, children_of, start, tenon, wait_until

DATA = ROOT / "tests/data/gsm8k/made.jsonl"
PROBLEMS = [json.loads(line) for line in DATA.read_text().splitlines()]


class Scripted(http.server.ThreadingHTTPServer):
    """A server of OpenAI's API whose answers the test makes: script(body, number of the request) yields
    pieces (seconds to wait, text) or bytes that are sent as they are, or gives a status."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script, silent_close=False):
        self.silent_close = silent_close  # connections end after each answer, which does not say so
        self.script, self.bodies, self.times, self.lock = script, [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients leave; what goes wrong in a script is seen by the client


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def whole(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/models":
            return self.whole(200, {"data": [{"id": "scripted"}]})
        return self.whole(404, {"error": {"message": "no such path"}})

    def piece(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, value):
        self.piece(b"data: " + json.dumps(value).encode() + b"\n\n")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.times.append(time.monotonic())
        answer = self.server.script(body, number)
        if isinstance(answer, int):
            return self.whole(answer, {"error": {"message": "as the script says"}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        count = 0
        for each in answer:
            if isinstance(each, bytes):
                self.piece(each)
                continue
            if each is None:  # cut off
                self.wfile.write(b"0\r\n\r\n")
                return None
            if each == "close":
                self.close_connection = True
                return None
            wait, text = each
            time.sleep(wait)
            count += 1
            self.event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
        self.piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = self.server.silent_close
        return None


class Case(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def scripted(self, script, **more):
        server = Scripted(script, **more)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def served(self, *options):
        server = Server("--quiet", *options)
        self.addCleanup(server.stop)
        return f"http://127.0.0.1:{server.port}"

    def load(self, *options, code=0):
        done = tenon("bench", "serve", "--json", *options)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout)

    def eval(self, *options, code=0):
        done = tenon("eval", *options, "--json")
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout)


class Load(Case):
    def test_stages_are_compared_by_their_servers(self):
        plot, table, file = (self.directory / name for name in ("plot.svg", "table.csv", "all.json"))
        done = tenon("bench", "serve", "--compare-stages", "auto,3", "--concurrency", "1,3", "--num-prompts", "4",
                     "--input-tokens", "20", "--output-tokens", "6", "--warm-up", "1", "--svg", str(plot), "--csv",
                     str(table), "--json-file", str(file))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("what stages auto gains", done.stdout)
        found = json.loads(file.read_text())
        rows = found["results"]
        self.assertEqual([(row["concurrency"], row["arm"]) for row in rows],
                         [(count, "stages " + stage) for count in (1, 3) for stage in ("auto", "3")])
        for row in rows:
            self.assertEqual((row["completed"], row["failed"]), (4, 0))
            self.assertEqual((row["input_tokens"], row["output_tokens"]), (80, 24))
            self.assertAlmostEqual(row["output_tokens_per_s"], 24 / row["duration_s"], places=6)
            self.assertGreater(row["ttft_median_ms"], 0)
            self.assertLessEqual(row["ttft_p99_ms"] + row["tpot_mean_ms"], row["e2e_p99_ms"] * 2)
            self.assertLessEqual(row["tpot_median_ms"], row["tpot_p99_ms"])
            self.assertLess(row["ttft_median_ms"], row["e2e_median_ms"])
        for count in (0, 2):  # the same answers whatever the stage
            self.assertEqual(found["answers"][count], found["answers"][count + 1])
        self.assertNotEqual(found["answers"][0], found["answers"][2])  # other prompts
        gain = found["gains_percent"][1]
        new, old = rows[2], rows[3]
        self.assertEqual((gain["new"], gain["old"], gain["concurrency"]), ("stages auto", "stages 3", 3))
        for key, sign in (("output_tokens_per_s", 1), ("requests_per_s", 1), ("ttft_median_ms", -1), ("e2e_p99_ms", -1)):
            self.assertAlmostEqual(gain[key], sign * 100 * (new[key] - old[key]) / old[key], places=6)
        self.assertEqual(len(list(csv.DictReader(table.read_text().splitlines()))), 4)
        xml.etree.ElementTree.parse(plot)

    def test_prompts_may_share_prefixes_and_become_a_chat(self):
        url = self.served()
        found = self.load("--url", url, "--backend", "openai-chat", "--prompts", "shared-prefix", "--prefix-tokens", "80",
                          "--groups", "2", "--input-tokens", "8", "--output-tokens", "4", "--num-prompts", "4",
                          "--rate", "50")
        self.assertEqual(found["results"][0]["completed"], 4)
        self.assertEqual(found["results"][0]["output_tokens"], 16)

    def test_errors_are_counted_by_kind(self):
        def script(_, number):
            answers = ([(0, "one")], 429, [(0, "one"), None], [b'data: {"error": {"message": "broke"}}\n\n'],
                       [b"data: {no json\n\n"], 503, [(0, "one"), "close"], [(0, "one"), (3, "late")])
            return answers[number]
        server = self.scripted(script)
        found = self.load("--url", server.url, "--num-ids", "50", "--num-prompts", "8", "--concurrency", "1",
                          "--warm-up", "0", "--patience-seconds", "1", code=1)
        kinds = ("http 429", "http 503", "cut off", "error event", "malformed", "broken", "out of time")
        self.assertEqual(found["errors"], {kind: 1 for kind in kinds})
        self.assertEqual((found["results"][0]["completed"], found["results"][0]["failed"]), (1, 7))

    def test_kept_connections_may_have_been_closed(self):
        server = self.scripted(lambda *_: [(0.01, "a")], silent_close=True)
        row = self.load("--url", server.url, "--num-ids", "50", "--num-prompts", "6", "--concurrency", "2",
                        "--warm-up", "0")["results"][0]
        self.assertEqual((row["completed"], row["failed"], len(server.bodies)), (6, 0, 6))

    def test_a_signal_tells_what_is_whole_and_ends_the_server(self):
        file = self.directory / "all.json"
        process = start("bench", "serve", "--num-prompts", "2", "--output-tokens", "2", "--repeats", "1000",
                        "--warm-up", "0", "--json-file", str(file))
        self.addCleanup(process.kill)
        self.assertTrue(wait_until(lambda: children_of(process)))
        child = children_of(process)[0]
        self.assertTrue(wait_until(lambda: children_of(process) not in ([], [child])))  # a turn is over
        last = children_of(process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, -signal.SIGINT, error)
        self.assertIn("tenon serve", out)
        found = json.loads(file.read_text())
        self.assertFalse(found["complete"])
        self.assertGreaterEqual(found["results"][0]["turns"], 1)
        self.assertFalse(any(pathlib.Path(f"/proc/{each}").exists() for each in last))

    def test_times_are_those_of_the_tokens(self):
        server = self.scripted(lambda *_: [(0.2, "a")] + [(0.05, "b")] * 4)
        row = self.load("--url", server.url, "--num-ids", "50", "--num-prompts", "3", "--concurrency", "3",
                        "--warm-up", "0")["results"][0]
        # Sleeps are never shorter; how much longer they are depends on the machine.
        for key, least in (("ttft_median_ms", 200), ("tpot_median_ms", 50), ("itl_mean_ms", 50), ("e2e_median_ms", 400)):
            self.assertGreaterEqual(row[key], least - 1, key)
            self.assertLess(row[key], least + 400, key)
        self.assertLess(row["duration_s"], 3 * 0.4 + 1)
        self.assertEqual((row["input_tokens"], row["output_tokens"]), (21, 15))

    def test_what_is_asked_follows_the_options(self):
        server = self.scripted(lambda *_: [(0, "a")])
        options = ("--url", server.url, "--num-ids", "50", "--num-prompts", "8", "--warm-up", "0", "--seed", "5")
        self.load(*options, "--prompts", "shared-prefix", "--prefix-tokens", "30", "--groups", "2", "--input-tokens", "10",
                  "--range-ratio", "0.5", "--output-tokens", "20", "--concurrency", "1")
        bodies = server.bodies[:]
        self.assertEqual([body["prompt"][:30] == bodies[i % 2]["prompt"][:30] for i, body in enumerate(bodies)], [True] * 8)
        self.assertNotEqual(bodies[0]["prompt"][:30], bodies[1]["prompt"][:30])
        lengths = {len(body["prompt"]) - 30 for body in bodies}
        self.assertTrue(lengths <= set(range(5, 11)) and len(lengths) > 1, lengths)
        self.assertTrue(all(10 <= body["max_tokens"] <= 20 for body in bodies))
        self.assertTrue(all(0 <= each < 50 for body in bodies for each in body["prompt"]))
        self.assertTrue(all(body["ignore_eos"] and body["stream"] and body["model"] == "scripted" for body in bodies))
        for _ in range(2):
            self.load(*options, "--prompts", "sharegpt", "--concurrency", "1", "--stop-at-eos")
        self.assertEqual(server.bodies[8:16], server.bodies[16:24])  # a seed says everything
        self.assertGreater(len({len(body["prompt"]) for body in server.bodies[8:16]}), 4)
        self.assertNotIn("ignore_eos", server.bodies[8])

    def test_a_rate_spreads_the_requests(self):
        server = self.scripted(lambda *_: [(0, "a")])
        row = self.load("--url", server.url, "--num-ids", "50", "--num-prompts", "20", "--warm-up", "0", "--rate",
                        "40")["results"][0]
        # 19 gaps of 25 ms on the average, from a seed that is fixed.
        self.assertGreater(server.times[-1] - server.times[0], 0.2)
        self.assertGreater(row["duration_s"], 0.2)

    def test_what_cannot_be_is_refused(self):
        for words in (("--url", "http://127.0.0.1:1", "--compare-stages", "auto,3"), ("--url", "https://a"),
                      ("--compare-stages", "auto,auto"), ("--prompts", "all"), ("--concurrency", "none")):
            done = tenon("bench", "serve", *words)
            self.assertEqual((done.returncode, done.stdout), (2, ""), (words, done.stderr))
        done = tenon("bench", "serve", "--url", "http://127.0.0.1:1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no server", done.stderr)
        done = tenon("bench", "serve", "--serve", "--model /nowhere")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the server ended before it served", done.stderr)


class Gsm8k(Case):
    def test_the_last_number_counts(self):
        def script(body, _):
            question = body["prompt"].rsplit("Question: ", 1)[1].split("\nAnswer:")[0]
            if question.startswith("Sue"):
                return [(0, " 5 * 250 is"), (0, " $1,250.00.")]
            if question.startswith("A farm"):
                return [(0, " No idea.")]
            if question.startswith("Ben"):
                return 500 if self.broken else [(0, " 48 / 6 = 8")]
            return [(0, " It is 77, I think.")]
        self.broken = True
        server = self.scripted(script)
        log = self.directory / "log.jsonl"
        options = ("gsm8k", "--data", str(DATA), "--shots", "2", "--url", server.url, "--parallel", "3", "--log", str(log))
        found = self.eval(*options, code=1)
        self.assertEqual((found["correct"], found["finished"], found["total"], found["failed"]), (1, 5, 6, 1))
        self.assertEqual(found["answers"], ["77", "77", "77", "1250", "", ""])
        self.assertEqual((found["accuracy"], found["invalid_rate"]), (0.2, 0.2))
        self.assertAlmostEqual(found["wilson_low"], 0.0362, places=4)
        self.assertAlmostEqual(found["wilson_high"], 0.6245, places=4)
        shots = "".join(f"Question: {each['question']}\nAnswer: {each['answer']}\n\n" for each in PROBLEMS[:2])
        first = next(body for body in server.bodies if "A train" in body["prompt"])
        self.assertEqual(first["prompt"], shots + f"Question: {PROBLEMS[2]['question']}\nAnswer:")
        self.assertEqual((first["temperature"], first["max_tokens"]), (0, 512))
        self.assertEqual(first["stop"], ["Question", "Assistant:", "<|separator|>"])
        # The same command goes on: half a line at the end is what a killed run leaves.
        self.broken = False
        with log.open("a") as file:
            file.write('{"problem": 6, "ke')
        asked = len(server.bodies)
        found = self.eval(*options)
        self.assertEqual(len(server.bodies), asked + 1)
        self.assertEqual((found["correct"], found["finished"], found["failed"]), (2, 6, 0))
        self.assertEqual(sorted(json.loads(line)["problem"] for line in log.read_text().splitlines()), [1, 2, 3, 4, 5, 6])
        done = tenon("eval", *options, "--max-new-tokens", "9")
        self.assertEqual(done.returncode, 2)
        self.assertIn("is of another model, prompt or --max-new-tokens", done.stderr)

    def test_answers_do_not_depend_on_who_else_asks(self):
        texts = []

        def ask(*options):
            log = self.directory / f"log{len(texts)}"
            found = self.eval("gsm8k", "--data", str(DATA), "--shots", "2", "--max-new-tokens", "24", "--log", str(log),
                              *options)
            self.assertEqual((found["finished"], found["failed"]), (6, 0))
            lines = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda line: line["problem"])
            texts.append([line["text"] for line in lines])
        for stage in ("auto", "3"):
            url = self.served("--force-stage", stage)
            for parallel in ("1", "8"):
                ask("--url", url, "--parallel", parallel)
        ask("--parallel", "3")
        self.assertEqual([each for each in texts if each != texts[0]], [])
        self.assertTrue(any(texts[0]))

    def test_words_over_http_are_those_of_the_process(self):
        here = self.eval("words", "--limit", "4")
        there = self.eval("words", "--limit", "4", "--url", self.served())
        self.assertEqual(there["answers"], here["answers"])
        self.assertEqual((there["correct"], there["finished"]), (here["correct"], here["finished"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
