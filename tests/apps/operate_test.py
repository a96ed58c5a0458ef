#!/usr/bin/env python3
"""docs/operate.md and docs/serve.md say what is true of `tenon serve`: operate_test.py PATH_TO_TENON."""
import pathlib
import re
import time
import unittest

from serve_support import Server
from support import ROOT, tenon, wait_until

PAGE = (ROOT / "docs/operate.md").read_text()
CLIENTS_PAGE = re.sub(r"^```.*?^```", "", (ROOT / "docs/serve.md").read_text(), flags=re.S | re.M)
NAMED = re.compile(r"`([^`]+)`")
STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


def section(name, page=PAGE):
    return page.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def rows(text):
    """The cells of all rows of tables, heads among them."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def sentences():
    """What the program may say: for each statement of its sources the texts in it, one behind the other."""
    found = []
    for folder in ("apps", "tenon"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".cc", ".h", ".cuh"):
                text = re.sub(r'"\s*\n\s*"', "", path.read_text())  # one literal over several lines
                for statement in text.split(";\n"):
                    found.append([each.replace('\\"', '"') for each in STRING.findall(statement)])
    return found


def says(statements, parts):
    """Whether a statement has all parts, in their order."""
    for literals in statements:
        whole, at = "\0".join(literals), 0
        for part in parts:
            at = whole.find(part, at)
            if at < 0:
                break
            at += len(part)
        else:
            return True
    return False


def sent_with_a_status():
    """What the server says with a status that is more than a wrong field: (status, its texts)."""
    found = []
    for name in ("http.cc", "service.cc", "generation.cc"):
        text = re.sub(r'"\s*\n\s*"', "", (ROOT / "apps/server" / name).read_text())
        for match in re.finditer(r"[({]\s*(40[1458]|41\d|42\d|431|5\d\d),", text):
            said = [each.replace('\\"', '"') for each in STRING.findall(text[match.end():].split(";\n", 1)[0])]
            if any(" " in each.strip() for each in said):
                found.append((match[1], said))
    return found


def fields_of(document, schema):
    """The names that an object may have, its alternatives' too."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    found = set(schema.get("properties", {}))
    for kind in ("allOf", "anyOf", "oneOf"):
        for each in schema.get(kind, []):
            found |= fields_of(document, each)
    return found


class Page(unittest.TestCase):
    # What /openapi.json lists is what the server reads: serve_openapi_test.py holds it to that.
    def test_paths_and_fields_of_requests(self):
        server = Server("--quiet", "--max-context", "256")
        self.addCleanup(server.stop)
        document = server.get("/openapi.json").json()
        named = " ".join(NAMED.findall(CLIENTS_PAGE))
        paths = {path.replace("{model}", "NAME") for path in document["paths"]}
        self.assertEqual(paths - set(re.findall(r"/[\w./]*", named)), set())
        fields = set()
        for operations in document["paths"].values():
            for operation in operations.values():
                if "requestBody" in operation:
                    fields |= fields_of(document, operation["requestBody"]["content"]["application/json"]["schema"])
        self.assertGreater(len(fields), 50)
        self.assertEqual(fields - set(re.findall(r"\w+", named)), set())
        told = {each.split(".")[0] for row in rows(section("Fields", CLIENTS_PAGE))[1:]
                for each in NAMED.findall(re.sub(r"\([^)]*\)", "", row[0])) if not each.startswith("/")}
        self.assertEqual(told - fields, set())

    def test_options(self):
        told = re.findall(r"^  (?:-h, )?(--[a-z-]+(?:, --[a-z-]+)*)", tenon("serve", "--help").stdout, re.M)
        there = {each for names in told for each in names.split(", ")}
        named = {each for row in rows(section("Options")) for each in NAMED.findall(row[0])}
        self.assertGreater(len(there), 30)
        self.assertEqual(named, there)

    def test_metrics(self):
        server = Server("--quiet", "--max-context", "256")
        self.addCleanup(server.stop)
        self.assertEqual(server.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 3}).status, 200)
        self.assertTrue(wait_until(lambda: server.metric("tenon_engine_steps_total") > 0))
        there = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").body.decode(), re.M))
        named = {each for row in rows(section("Metrics")) for each in NAMED.findall(row[0])}
        self.assertGreater(len(there), 30)
        self.assertEqual(named, there)

    def test_messages(self):
        statements = sentences()
        # Behind the word "behind" stands what another part of the program says in front.
        named = [each for row in rows(section("Messages")) for each in NAMED.findall(row[0].split(" behind ")[0])]
        self.assertGreater(len(named), 25)
        missing = []
        for each in named:
            parts = [part for part in re.split(r"\s*…\s*", each) if part]
            if not says(statements, parts):
                missing.append(each)
        self.assertEqual(missing, [])
        self.assertFalse(says(statements, ["the engine is asleep: "]))

    def test_no_status_is_left_out(self):
        named = [each for row in rows(section("Messages")) for each in NAMED.findall(row[0])]
        found = sent_with_a_status()
        self.assertGreater(len(found), 10)
        self.assertGreater({status for status, _ in found}, {"401", "404", "405", "408", "413", "415", "431", "503"})
        missing = [(status, said) for status, said in found
                   if not any(says([said], [part for part in re.split(r"\s*…\s*", each) if part]) for each in named)]
        self.assertEqual(missing, [])

    def test_tests_exist(self):
        named = 0
        for _, _, held in rows(section("What users of other servers ran into"))[1:]:
            for part in held.split("; "):
                files = [each for each in NAMED.findall(part) if "/" in each]
                for name in NAMED.findall(part):
                    if "/" in name:
                        self.assertTrue((ROOT / name).is_file(), name)
                    else:
                        self.assertRegex((ROOT / files[0]).read_text(), rf"\b{re.escape(name)}\b")
                        named += 1
        self.assertGreater(named, 15)

    # Nothing is compiled, tried or tuned: the second start is no quicker than the first needs to be.
    def test_a_start_is_short(self):
        began = time.monotonic()
        server = Server("--quiet")
        seconds = time.monotonic() - began
        self.addCleanup(server.stop)
        loaded = float(re.search(r"loaded in ([\d.]+) s", "".join(server.log))[1])
        self.assertLess(loaded, 10)  # a tenth of a second where nothing else runs
        self.assertLess(loaded, seconds)
        self.assertLess(seconds, 20)
        self.assertEqual(server.get("/health").status, 200)

    # What is kept is in the table of memory, and an option of it is never passed over.
    def test_the_start_says_what_is_kept(self):
        body, kept = {"prompt": [7] * 200, "max_tokens": 1, "temperature": 0}, {}
        for states in ("0", "4"):
            server = Server("--max-context", "256", "--max-batch", "2", "--prefix-states", states)
            self.addCleanup(server.stop)
            [line] = [line for line in server.log if line.startswith("kept states")]
            kept[states] = int(line.split()[2])
            cached = [server.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                      for _ in range(2)]
            self.assertEqual([each > 0 for each in cached], [False, states != "0"])
        self.assertEqual(kept["0"], 0)
        self.assertGreater(kept["4"], 0)


if __name__ == "__main__":
    unittest.main()
