"""A headless Chromium, driven by the DevTools protocol over a pipe: no port, no driver, no packages."""
import base64
import fcntl
import itertools
import json
import os
import pathlib
import queue
import shlex
import shutil
import subprocess
import tempfile
import threading

from support import PATIENCE, wait_until

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
MISSING = f"there is no browser; looked for {', '.join(NAMES)}: apt-get install chromium-headless-shell"


def pipe_above_9():
    ends = os.pipe()
    above = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return above


class Browser:
    def __init__(self):
        self.home = tempfile.TemporaryDirectory()
        # It reads from 3 and writes to 4: its ends lie above both, whatever else is open here.
        to_read, self.to = pipe_above_9()
        self.back, to_write = pipe_above_9()
        options = ["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                   "--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server",
                   f"--user-data-dir={self.home.name}", "--window-size=1280,900"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which root cannot have
        command = f"exec {shlex.join([FOUND, *options])} 3<&{to_read} 4>&{to_write}"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_read, to_write),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.ids = itertools.count(1)
        self.answers, self.events = {}, queue.Queue()
        self.arrived = threading.Condition()
        self.is_open = True
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        held = b""
        while data := os.read(self.back, 1 << 16):
            held += data
            *whole, held = held.split(b"\0")
            for each in map(json.loads, whole):
                if "id" not in each:
                    self.events.put(each)
                    continue
                with self.arrived:
                    self.answers[each["id"]] = each
                    self.arrived.notify_all()
        with self.arrived:
            self.is_open = False
            self.arrived.notify_all()

    def call(self, method, session=None, **params):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        with self.arrived:
            if not self.arrived.wait_for(lambda: number in self.answers or not self.is_open, PATIENCE):
                raise AssertionError(f"the browser did not answer {method} in {PATIENCE} s")
            if number not in self.answers:
                raise AssertionError(f"the browser ended at {method}")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        self.reader.join(5)  # a helper of the browser may hold the pipe a little longer
        shutil.rmtree(self.home.name, ignore_errors=True)
        self.home._finalizer.detach()


class Page:
    """A tab with its own storage."""

    def __init__(self, browser, address):
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        assert wait_until(lambda: self.value("document.readyState === 'complete' && location.href !== 'about:blank'"))

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def value(self, script):
        """Of an expression; of a promise what it becomes."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def text(self, selector):
        return self.value(f"document.querySelector({json.dumps(selector)})?.textContent")

    def count(self, selector):
        return self.value(f"document.querySelectorAll({json.dumps(selector)}).length")

    def wait(self, script, seconds=PATIENCE):
        if not wait_until(lambda: self.value(script), seconds):
            raise AssertionError(f"not in {seconds} s: {script}\n{self.text('body')}")

    def fill(self, element, text):
        """As a person does: what is there is replaced, and the field is left."""
        self.value(f"document.getElementById({json.dumps(element)}).focus(), "
                   f"document.getElementById({json.dumps(element)}).select?.()")
        assert self.value("document.activeElement.id") == element, f"{element} cannot be reached"
        if self.value("document.activeElement.type") == "number":  # takes keys alone
            for sign in text:
                self.call("Input.dispatchKeyEvent", type="char", text=sign)
        else:
            self.call("Input.insertText", text=text)

    def press(self, key, code=None, number=0, text=None, modifiers=0):
        more = {"key": key, "code": code or key, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **more, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def enter(self, modifiers=0):
        self.press("Enter", number=13, text="\r", modifiers=modifiers)

    def click(self, element):
        self.value(f"document.getElementById({json.dumps(element)}).click()")

    def screenshot(self, path, scheme, width=1280, height=900):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        pathlib.Path(path).write_bytes(data)
        return data

    def complaints(self):
        """What the browser's console has of errors and refused loads, so far."""
        found = []
        while not self.browser.events.empty():
            event = self.browser.events.get()
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"])
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"])
        return found

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
