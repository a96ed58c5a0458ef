"""A running `tenon serve` and the plainest HTTP client, for the tests of the server."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

from support import PATIENCE, ROOT, TENON, wait_until


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_built_without_grammars(server, fields=()):
    """A program may be built without the library that grammars need."""
    asked = {"prompt": "Tom", "max_tokens": 1, "guided_regex": "a"}
    return b"built without grammars" in server.post("/v1/completions", asked, fields).body


def skip_without_grammars(test, server, fields=()):
    if is_built_without_grammars(server, fields):
        test.skipTest("built without grammars")


class Answer:
    def __init__(self, status, fields, body, chunked):
        self.status, self.fields, self.body, self.chunked = status, fields, body, chunked

    def json(self):
        return json.loads(self.body)

    def events(self):
        """Of a stream: the JSON of every event; exactly `data: …` and a blank line each, [DONE] last."""
        text = self.body.decode()
        assert text.endswith("data: [DONE]\n\n"), text[-200:]
        lines = text.split("\n\n")[:-2]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines), text[:500]
        return [json.loads(line[6:]) for line in lines]


class Client:
    """One connection."""

    def __init__(self, port, timeout=PATIENCE, receive_bytes=None):
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.held = b""

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, method, path, body=None, fields=(), version="1.1"):
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.lower() for name, _ in fields}
        lines = [f"{method} {path} HTTP/{version}", "host: localhost"]
        if body is not None and "content-type" not in names:
            lines.append("content-type: application/json")
        if body is not None or method == "POST":
            lines.append(f"content-length: {len(data)}")
        lines += [f"{name}: {value}" for name, value in fields]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + data)

    def more(self):
        data = self.socket.recv(65536)
        self.held += data
        return bool(data)

    def until(self, mark):
        while mark not in self.held:
            if not self.more():
                raise EOFError(f"the server closed; so far {self.held[:300]!r}")
        found, _, self.held = self.held.partition(mark)
        return found

    def exactly(self, count):
        while len(self.held) < count:
            if not self.more():
                raise EOFError(f"the server closed; so far {self.held[:300]!r}")
        found, self.held = self.held[:count], self.held[count:]
        return found

    def head(self):
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), fields

    def read(self, bodyless=False):
        status, fields = self.head()
        if bodyless:
            return Answer(status, fields, b"", False)
        if "content-length" in fields:
            return Answer(status, fields, self.exactly(int(fields["content-length"])), False)
        body = b""
        if "transfer-encoding" in fields:
            while True:
                size = int(self.until(b"\r\n"), 16)
                body += self.exactly(size)
                self.until(b"\r\n")
                if size == 0:
                    return Answer(status, fields, body, True)
        while self.more():
            pass
        body, self.held = self.held, b""
        return Answer(status, fields, body, False)

    def closed(self):
        """Whether the server closes without a further byte."""
        try:
            return not self.more()
        except ConnectionError:
            return True

    def close(self):
        self.socket.close()


class NotServed(AssertionError):
    """Of a server that has ended with this code, or was not there in time: None."""

    def __init__(self, code, log):
        super().__init__(log)
        self.code = code


class Server:
    def __init__(self, *options, port=0, environment=()):
        self.process = subprocess.Popen([TENON, "serve", "--port", str(port), *options], cwd=ROOT, text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, env={**os.environ, **dict(environment)})
        self.log, self.port = [], None
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if not wait_until(lambda: self.port or self.process.poll() is not None) or not self.port:
            code = self.process.poll()
            self.process.kill()
            self.process.wait()
            self.reader.join(1)
            self.process.stderr.close()
            raise NotServed(code, "".join(self.log))

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"served on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])

    def client(self, **more):
        return Client(self.port, **more)

    def ask(self, method, path, body=None, fields=()):
        """What the engine works for may take long, everything else may not."""
        client = PatientClient(self) if method == "POST" else self.client()
        try:
            client.ask(method, path, body, fields)
            return client.read()
        finally:
            client.close()

    def get(self, path, fields=()):
        return self.ask("GET", path, fields=fields)

    def post(self, path, body, fields=()):
        return self.ask("POST", path, body, fields)

    def metric(self, name):
        """The sum over its labels."""
        text = self.get("/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if re.match(re.escape(name) + r"[{ ]", line))

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.reader.join(PATIENCE)
        self.process.stderr.close()
        return code


class PatientClient(Client):
    """Waits as long as the engine makes steps for somebody."""

    def __init__(self, server):
        super().__init__(server.port, timeout=60)
        self.server = server

    def more(self):
        steps = -1
        while True:
            try:
                return super().more()
            except TimeoutError as late:
                told = {name: self.server.metric(name) for name in (
                    "tenon_engine_steps_total", "vllm:num_requests_running", "vllm:num_requests_waiting",
                    "tenon_http_requests_in_progress")}
                if told["tenon_engine_steps_total"] == steps or told["vllm:num_requests_running"] == 0:
                    raise TimeoutError(f"{self.socket.gettimeout()} s without a step of the engine: {told}") from late
                steps = told["tenon_engine_steps_total"]


def chat(text="Tom has 3 boxes of 12 pencils. How many pencils does he have?", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def long_chat(**more):
    """One that does not end by itself."""
    return chat(ignore_eos=True, **more)
