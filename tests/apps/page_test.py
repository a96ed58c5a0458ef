#!/usr/bin/env python3
"""The page of tenon serve: how it is sent, and what it does in a browser where there is one.

    page_test.py TENON [FOLDER] [TEST ...]    FOLDER, with a slash in it, gets pictures: light, dark, narrow
"""
import json
import pathlib
import sys
import tempfile
import unittest

import browser
from serve_support import Server, long_chat
from support import QUESTION, ROOT, wait_until

PICTURES = pathlib.Path(sys.argv.pop(1)) if len(sys.argv) > 1 and "/" in sys.argv[1] else None
FILES = sorted(path.name for path in (ROOT / "apps/server/page").iterdir())
HOSTILE = """<img src=x onerror="window.broken=1"> <script>window.broken=2</script>
[a](javascript:window.broken=3) [b](data:text/html,<script>window.broken=4</script>) ![c](https://example.com/c.png)
<javascript:window.broken=5> [d](https://example.com/"onmouseover="window.broken=6)
```<b>js
<script>window.broken=7</script>
```
| <b>x</b> | y |
|---|:-:|
| <i>1</i> | `<u>` |
"""
server = None


def setUpModule():
    global server
    server = Server("--max-context", "2048", "--served-model-name", "tiny", "--quiet")
    unittest.addModuleCleanup(server.stop)


class Wire(unittest.TestCase):
    def test_files_are_those_of_the_tree(self):
        for name in FILES:
            answer = server.get("/" if name == "index.html" else f"/{name}")
            self.assertEqual(answer.status, 200, name)
            self.assertEqual(answer.body, (ROOT / "apps/server/page" / name).read_bytes(), name)
            self.assertIn(answer.fields["content-type"].split(";")[0], ("text/html", "text/css", "text/javascript"))
            policy = dict(part.strip().partition(" ")[::2] for part in answer.fields["content-security-policy"].split(";"))
            self.assertEqual(policy["default-src"], "'none'")
            self.assertEqual(policy["script-src"], "'self'")
            self.assertEqual(policy["frame-ancestors"], "'none'")
            self.assertNotIn("unsafe", answer.fields["content-security-policy"])
            self.assertEqual(answer.fields["x-content-type-options"], "nosniff")

    def test_nothing_comes_from_elsewhere(self):
        for name in FILES:
            text = (ROOT / "apps/server/page" / name).read_text().replace("http://www.w3.org/2000/svg", "")
            self.assertNotRegex(text, r"(?:src|href|import|url)\W{0,3}https?:", name)
            self.assertNotIn("innerHTML", text, name)

    def test_only_what_is_asked_for(self):
        self.assertEqual(server.post("/", {}).status, 405)
        for path in ("/index.html", "/page", "/page.js/", "/../page.js"):
            self.assertEqual(server.get(path).status, 404, path)

    def test_left_out(self):
        other = Server("--no-page", "--quiet")
        self.addCleanup(other.stop)
        self.assertEqual(other.get("/").status, 404)
        self.assertEqual(other.get("/page.js").status, 404)
        self.assertEqual(other.get("/health").status, 200)

    def test_needs_no_key_where_the_api_does(self):
        other = Server("--api-key", "secret", "--quiet")
        self.addCleanup(other.stop)
        self.assertEqual(other.get("/").status, 200)
        self.assertEqual(other.get("/v1/models").status, 401)


@unittest.skipUnless(browser.FOUND, browser.MISSING)
class InABrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = browser.Browser()
        cls.addClassCleanup(cls.browser.close)

    def open(self, port=None):
        page = browser.Page(self.browser, f"http://127.0.0.1:{port or server.port}/")
        self.addCleanup(page.close)
        return page

    def ready(self):
        page = self.open()
        page.wait("document.getElementById('model').textContent.startsWith('tiny')")
        return page

    def ended(self, page, answers):
        page.wait(f"document.querySelectorAll('#turns > .model:not([aria-busy])').length === {answers}"
                  " && document.getElementById('stop').disabled")

    def set(self, page, element, text):
        page.value("document.getElementById('settings').open = true")
        page.fill(element, text)
        page.value("document.activeElement.blur()")

    def test_a_chat(self):
        page = self.ready()
        self.set(page, "temperature", "0")
        page.fill("question", QUESTION)
        page.enter()
        self.ended(page, 1)
        wanted = server.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}).json()
        wanted = wanted["choices"][0]["message"]["content"]
        shown = page.text("#turns > .model .text")
        self.assertEqual("".join(shown.split()), "".join(wanted.replace("#### ", "").split()))
        self.assertIn("36", shown)
        self.assertIn(QUESTION, page.text("#turns > .user"))
        self.assertIn("The answer", page.text("#spoken"))
        self.assertIn("tokens for a prompt of", page.text("#turns > .model .note"))
        # Again: the same place, the same answer, and the conversation goes on.
        page.click("again")
        self.ended(page, 1)
        self.assertEqual(page.text("#turns > .model .text"), shown)
        page.fill("question", "And two boxes more?")
        page.enter()
        self.ended(page, 2)
        self.assertEqual(page.count("#turns > li"), 4)
        page.wait("document.querySelectorAll('#boundaries td').length >= 4")
        page.wait("document.getElementById('first-chart').querySelector('rect') !== null")
        if PICTURES:
            PICTURES.mkdir(parents=True, exist_ok=True)
            light = page.screenshot(PICTURES / "page-light.png", "light")
            dark = page.screenshot(PICTURES / "page-dark.png", "dark")
            self.assertNotEqual(light, dark)
            page.screenshot(PICTURES / "page-narrow.png", "light", 400, 900)
            self.assertFalse(page.value("document.documentElement.scrollWidth > innerWidth"), "wider than a telephone")
        self.assertEqual(page.complaints(), [])
        page.click("fresh")
        self.assertEqual(page.count("#turns > li"), 0)

    def test_streams_and_stops(self):
        page = self.ready()
        # The tiny model ends by itself; so the page's request is made one that does not.
        page.value("""window.plain = fetch, window.fetch = (url, more) => {
          if (more?.body) more.body = JSON.stringify({...JSON.parse(more.body), ignore_eos: true});
          return plain(url, more); }, 0""")
        page.fill("question", QUESTION)
        page.enter()
        page.wait("document.querySelector('#turns > .model .text')?.textContent.length > 20")
        length = "document.querySelector('#turns > .model .text').textContent.length"
        before = page.value(length)
        page.wait(f"{length} > {before}")
        self.assertTrue(page.value("document.querySelector('.model').hasAttribute('aria-busy')"))
        self.assertEqual(server.metric("vllm:num_requests_running"), 1)
        page.wait("document.getElementById('running').textContent.startsWith('1 of')")
        page.wait("parseFloat(document.getElementById('rate').textContent) > 0")
        page.press("Escape", number=27)
        self.ended(page, 1)
        self.assertIn("stopped", page.text("#turns > .model .note"))
        self.assertTrue(wait_until(lambda: server.metric("vllm:num_requests_running") == 0))
        page.wait("document.getElementById('running').textContent.startsWith('0 of')")

    def test_lines_and_empty_messages(self):
        page = self.ready()
        page.fill("question", "one")
        page.enter(modifiers=8)  # Shift
        page.call("Input.insertText", text="two")
        self.assertEqual(page.value("document.getElementById('question').value"), "one\ntwo")
        page.fill("question", "  ")
        page.enter()
        self.assertEqual(page.count("#turns > li"), 0)

    def test_settings_are_sent_and_kept(self):
        page = self.ready()
        page.value("""window.plain = fetch, window.fetch = (url, more) => {
          if (more?.body) window.sent = more.body;
          return plain(url, more); }, 0""")
        wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 3}
        for name, value in wanted.items():
            self.set(page, name, str(value))
        self.set(page, "system", "Be brief.")
        page.fill("question", QUESTION)
        page.enter()
        self.ended(page, 1)
        sent = json.loads(page.value("window.sent"))
        self.assertEqual({name: sent[name] for name in wanted}, wanted)
        self.assertEqual(sent["messages"][0], {"role": "system", "content": "Be brief."})
        self.assertIn("cut off", page.text("#turns > .model .note"))
        self.assertEqual(json.loads(page.value("localStorage.getItem('tenon.settings')"))["max_tokens"], "3")
        self.set(page, "temperature", "7")
        page.fill("question", QUESTION)
        page.enter()
        page.wait("document.getElementById('trouble').textContent.startsWith('Temperature')")

    def fake(self, page, events):
        """The next answers are these events, each in two pieces, and sent when the test calls window.more()."""
        page.value(f"""(() => {{
          const plain = fetch, waiting = [], events = {json.dumps(events)};
          window.more = () => waiting.shift()();
          window.fetch = (url, more) => !more?.body ? plain(url, more) : Promise.resolve(new Response(
            new ReadableStream({{async start(to) {{
              for (const event of events) {{
                await new Promise((ring) => waiting.push(ring));
                const bytes = new TextEncoder().encode('data: ' + JSON.stringify(event) + '\\n\\n');
                to.enqueue(bytes.slice(0, bytes.length >> 1));
                to.enqueue(bytes.slice(bytes.length >> 1));
              }}
              to.close(); }} }})));
        }})()""")

    def test_thoughts_are_folded(self):
        page = self.ready()
        said = lambda finish=None, **delta: {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        self.fake(page, [said(role="assistant", reasoning_content="Let me <b>see</b>: ü…"), said(content="**36**"),
                         said("stop"), {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}])
        page.fill("question", QUESTION)
        page.enter()
        page.wait("window.more && document.querySelector('.model') !== null")
        page.value("more()")
        page.wait("document.querySelector('.thoughts summary').textContent === 'Thinking…'")
        self.assertFalse(page.value("document.querySelector('.thoughts').open"))
        self.assertEqual(page.text(".thoughts div"), "Let me <b>see</b>: ü…")
        page.value("more()")
        page.wait("document.querySelector('.model .text strong')?.textContent === '36'")
        self.assertEqual(page.text(".thoughts summary"), "Thoughts")
        page.value("more()")
        page.wait("document.querySelector('.model').hasAttribute('aria-busy')")
        page.value("more()")
        self.ended(page, 1)
        self.assertIn("9 tokens for a prompt of 7", page.text(".model .note"))

    def test_a_broken_stream_is_told(self):
        page = self.ready()
        self.fake(page, [{"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]},
                         {"error": {"message": "the engine is dead"}}])
        page.fill("question", QUESTION)
        page.enter()
        page.wait("document.querySelector('.model') !== null")
        page.value("more()")
        page.wait("document.querySelector('.model .text').textContent === 'Half'")
        page.value("more()")
        self.ended(page, 1)
        self.assertIn("broken off", page.text(".model .note"))
        self.assertEqual(page.text("#trouble"), "the engine is dead")

    def test_refusals_are_told(self):
        page = self.ready()
        page.fill("question", "long " * 3000)
        page.enter()
        page.wait("!document.getElementById('trouble').hidden")
        self.assertIn("2048", page.text("#trouble"))
        self.assertFalse(page.value("document.getElementById('send').disabled"))

    def test_asks_for_a_key(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write("secret\n")
            keys.flush()
            other = Server("--api-key-file", keys.name, "--served-model-name", "tiny", "--quiet")
        self.addCleanup(other.stop)
        page = self.open(other.port)
        page.wait("document.activeElement.id === 'key'")
        self.assertIn("API key", page.text("#trouble"))
        self.set(page, "key", "secret")
        page.wait("document.getElementById('model').textContent.startsWith('tiny')")
        page.fill("question", QUESTION)
        page.enter()
        self.ended(page, 1)
        self.assertNotIn("secret", page.value("localStorage.getItem('tenon.settings')"))

    def test_no_text_is_markup(self):
        page = self.ready()
        page.value(f"""import('/markdown.js').then(({{markdown}}) => {{
          window.box = document.createElement('div');
          box.append(...markdown({json.dumps(HOSTILE)}));
          document.body.append(box); }})""")
        self.assertEqual(page.value("box.querySelectorAll('img, script, b, i, u, iframe, style').length"), 0)
        self.assertEqual(page.value("[...box.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
                                    ".filter(name => name.startsWith('on')).length"), 0)
        links = page.value("[...box.querySelectorAll('a')].map(a => a.protocol)")
        self.assertTrue(links)
        self.assertEqual(set(links), {"https:"})
        self.assertIn('<img src=x onerror="window.broken=1">', page.value("box.textContent"))
        page.fill("question", HOSTILE)
        page.click("send")
        self.ended(page, 1)
        self.assertEqual(page.count("#turns img, #turns script"), 0)
        # And if it were: the policy refuses it.
        self.assertTrue(page.value("(() => { try { box.innerHTML = '<b>x</b>'; } catch { return true; } })()"))
        self.assertIsNone(page.value("window.broken"))

    def test_markdown(self):
        page = self.ready()
        cases = {
            "# A *b*": "<h3>A <em>b</em></h3>",
            "a\n\n**b** `c*d*` ~~e~~": "<p>a</p><p><strong>b</strong> <code>c*d*</code> <del>e</del></p>",
            "- a\n- b\n  1. c\n  2. d\n- e": "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li><li>e</li></ul>",
            "3. a\n\n4. b": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
            "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
            "```c++\na < b;\n```": '<pre tabindex="0" role="group" aria-label="code, c++"><code>a &lt; b;</code></pre>',
            "```\nopen": '<pre tabindex="0" role="group" aria-label="code"><code>open</code></pre>',
            "|a|b|\n|-|-:|\n|1|2\\|3|": '<div class="table"><table><thead><tr><th scope="col">a</th>'
                                        '<th class="right" scope="col">b</th></tr></thead><tbody><tr><td>1</td>'
                                        '<td class="right">2|3</td></tr></tbody></table></div>',
            "a\n---": "<p>a</p><hr>",
            "2 * 3 * 4 and a_b_c": "<p>2 * 3 * 4 and a_b_c</p>",
            "\\*a\\* &amp; <b>": "<p>*a* &amp;amp; &lt;b&gt;</p>",
            "a  \nb": "<p>a<br>b</p>",
        }
        for text, wanted in cases.items():
            found = page.value(f"""import('/markdown.js').then(({{markdown}}) => {{
              const box = document.createElement('div');
              box.append(...markdown({json.dumps(text)}));
              return box.innerHTML; }})""")
            self.assertEqual(found, wanted, text)

    def test_no_text_takes_long(self):
        page = self.ready()
        for part in ("*", "**a ", "`", "[", "![](", "_a", "> ", "- ", " ", "|", "|-", "# ", "~~~ ", "http://", "1. ", "\\"):
            for text in (part * 30000, (part * 30 + "\n") * 1000, part * 20000 + "\n" + part * 20000):
                passed = page.value(f"""import('/markdown.js').then(({{markdown}}) => {{
                  const from = performance.now();
                  markdown({json.dumps(text)});
                  return performance.now() - from; }})""")
                self.assertLess(passed, 10000, (part, len(text)))

    def test_everything_has_a_name(self):
        page = self.ready()
        page.value("document.getElementById('settings').open = true")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        asked = ("button", "textbox", "spinbutton", "combobox", "link", "log", "img", "image", "table", "region",
                 "searchbox", "DisclosureTriangle")
        found = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes
                 if not each.get("ignored") and each["role"]["value"] in asked]
        self.assertGreater(len(found), 12)
        self.assertEqual([each for each in found if not each[1]], [], "without a name")
        self.assertEqual(page.value("document.documentElement.lang"), "en")
        # Every control is reached with the keyboard alone.
        page.value("document.activeElement.blur()")
        reached = set()
        for _ in range(40):
            page.press("Tab", number=9)
            reached.add(page.value("document.activeElement.id"))
        for name in ("question", "send", "fresh", "turns", "temperature", "top_p", "max_tokens", "thinking", "system", "key"):
            self.assertIn(name, reached)

    def test_a_dead_server_is_told(self):
        other = Server("--served-model-name", "tiny", "--quiet")
        page = self.open(other.port)
        page.wait("document.getElementById('engine-state').textContent === 'Alive.'")
        other.stop()
        page.wait("document.getElementById('engine-state').textContent.startsWith('No numbers')")


class Busy(unittest.TestCase):
    def test_sent_while_the_engine_works(self):
        client = server.client()
        self.addCleanup(client.close)
        client.ask("POST", "/v1/chat/completions", long_chat(stream=True))
        client.head()
        self.assertEqual(server.get("/").status, 200)


if __name__ == "__main__":
    unittest.main(verbosity=2)
