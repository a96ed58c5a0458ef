#!/usr/bin/env python3
"""What the server says of itself in /openapi.json against what it does; OPTIONS and foreign web pages:
serve_openapi_test.py TENON."""
import unittest

from serve_support import Server, chat

PAGE = "https://page.example"
GOOD = {"/v1/chat/completions": chat(max_tokens=1), "/v1/completions": {"prompt": "Tom", "max_tokens": 1},
        "/v1/messages": {**chat(), "max_tokens": 1}, "/v1/messages/count_tokens": chat(),
        "/generate": {"text": "Tom", "sampling_params": {"max_new_tokens": 1}},
        "/v1/chat/completions/render": chat(), "/v1/completions/render": {"prompt": "Tom"},
        "/tokenize": {"prompt": "Tom"}, "/detokenize": {"tokens": [5]}}
server = document = None


def setUpModule():
    global server, document
    server = Server("--max-context", "1024", "--served-model-name", "tiny", "--quiet")
    document = server.get("/openapi.json").json()
    unittest.addModuleCleanup(server.stop)


def resolved(schema):
    while "$ref" in schema:
        found = document
        for part in schema["$ref"].split("/")[1:]:
            found = found[part]
        schema = found
    return schema


def kinds(schema):
    """The alternatives of a schema."""
    schema = resolved(schema)
    return [kind for each in schema["anyOf"] for kind in kinds(each)] if "anyOf" in schema else [schema]


def wrong_values(schema):
    """Values that a schema does not take: of each other type, and behind its bounds."""
    found = kinds(schema)
    types = {each.get("type") for each in found}
    words = [word for each in found for word in each.get("enum", [])]
    if words:
        types |= {"string"}
        yield "no such word"
    if any("const" in each for each in found):
        types |= {"boolean"}
    for kind, value in (("string", "x"), ("boolean", True), ("object", {}), ("array", [{}])):
        if kind not in types:
            yield value
    if "integer" in types:
        yield 1.5
    elif "number" not in types:
        yield 7
    for each in found:
        if each.get("type") in ("integer", "number"):
            yield each["maximum"] + 1
            if "minimum" in each:
                yield each["minimum"] - 1
            if "exclusiveMinimum" in each:
                yield each["exclusiveMinimum"]
        if "maxItems" in each and each["items"].get("type") == "string":
            yield ["x"] * (each["maxItems"] + 1)


class Description(unittest.TestCase):
    def test_every_path_is_there(self):
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                asked = path.replace("{model}", "tiny")
                answer = server.ask(method.upper(), asked, GOOD.get(path))
                self.assertEqual(answer.status, 200, (path, answer.body))
                content = operation["responses"]["200"]["content"]
                self.assertIn(answer.fields["content-type"].split(";")[0], content)
                for other in {"get", "post", "put", "delete"} - methods.keys():
                    refused = server.ask(other.upper(), asked, {} if other != "get" else None)
                    self.assertEqual((refused.status, refused.fields["allow"]),
                                     (405, ("GET, HEAD" if method == "get" else "POST") + ", OPTIONS"))
        self.assertEqual({path for path, methods in document["paths"].items() if "post" in methods},
                         set(GOOD))

    def test_every_reference_is_there(self):
        def walk(value):
            if isinstance(value, dict):
                if "$ref" in value:
                    self.assertTrue(resolved(value))
                for each in value.values():
                    walk(each)
            elif isinstance(value, list):
                for each in value:
                    walk(each)
        walk(document)

    def test_needed_fields_are_needed(self):
        for path, good, schema in self.forms():
            for name in schema.get("required", []):
                bad = {key: value for key, value in good.items() if key != name}
                answer = server.post(path, bad)
                self.assertEqual(answer.status, 400, (path, name))
                self.assertIn("prompt" if path == "/tokenize" else name, answer.json()["error"]["message"])

    def test_fields_take_what_is_said_and_nothing_else(self):
        count = 0
        for path, good, schema in self.forms():
            for name, field in schema["properties"].items():
                if name == "sampling_params":
                    for inner, inside in kinds(field)[0]["properties"].items():
                        for value in wrong_values(inside):
                            self.refused(path, {**good, name: {inner: value}}, f"{name}.{inner}")
                            count += 1
                    continue
                # Token ids and texts are alternatives of one another.
                without = {key: value for key, value in good.items() if key not in (name, "text")}
                for value in wrong_values(field):
                    self.refused(path, {**(without if path == "/generate" else good), name: value}, name)
                    count += 1
                if name not in schema.get("required", []) and name not in good:
                    answer = server.post(path, {**good, name: None})
                    self.assertEqual(answer.status, 200, (path, name, answer.body))
        self.assertGreater(count, 300)

    def forms(self):
        """The forms of bodies: (path, a right one, its schema)."""
        for path, good in GOOD.items():
            content = document["paths"][path]["post"]["requestBody"]["content"]
            for form in kinds(content["application/json"]["schema"]):
                yield path, chat() if path == "/tokenize" and "messages" in form["required"] else good, form

    def refused(self, path, body, name):
        answer = server.post(path, body)
        self.assertIn(answer.status, (400, 404), (path, body))
        error = answer.json()["error"]
        where = error.get("param") or error["message"]
        self.assertIn(name, where.replace("messages[0]", "messages"), (path, body))


class ForeignPages(unittest.TestCase):
    ASKS = [("origin", PAGE), ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type")]

    def options(self, where, path, fields):
        client = where.client()
        self.addCleanup(client.close)
        client.ask("OPTIONS", path, fields=fields)
        answer = client.read(bodyless=True)
        client.ask("GET", "/health")  # the connection goes on: there was no body
        self.assertEqual(client.read().json(), {"status": "ok"})
        return answer

    def start(self, *options):
        other = Server("--max-context", "256", "--served-model-name", "tiny", "--api-key", "secret",
                       "--quiet", *options)
        self.addCleanup(other.stop)
        return other

    def test_none_unless_allowed(self):
        answer = self.options(server, "/v1/chat/completions", self.ASKS)
        self.assertEqual((answer.status, answer.fields["allow"]), (204, "POST, OPTIONS"))
        self.assertNotIn("content-length", answer.fields)
        for each in (answer, server.get("/health", [("origin", PAGE)])):
            self.assertFalse([name for name in each.fields if name.startswith("access-control")])
        self.assertEqual(server.ask("OPTIONS", "/nowhere").status, 404)

    def test_one_that_is_allowed(self):
        other = self.start("--allow-origin", PAGE, "--allow-origin", "http://localhost:3000")
        for origin in (PAGE, "http://localhost:3000"):
            asks = [("origin", origin), *self.ASKS[1:]]
            answer = self.options(other, "/v1/chat/completions", asks)
            self.assertEqual((answer.status, answer.fields["access-control-allow-origin"]), (204, origin))
            self.assertEqual(answer.fields["access-control-allow-headers"], "authorization, content-type")
            self.assertEqual(answer.fields["access-control-allow-methods"], "POST, OPTIONS")
            key = ("authorization", "Bearer secret")
            for body, fields, status in ((chat(max_tokens=1), [key], 200),
                                         (chat(max_tokens=1, stream=True), [key], 200),
                                         (chat(), [], 401), (chat(n=0), [key], 400)):
                found = other.post("/v1/chat/completions", body, [("origin", origin), *fields])
                self.assertEqual((found.status, found.fields["access-control-allow-origin"],
                                  found.fields["vary"]), (status, origin, "origin"))
        answer = other.get("/health", [("origin", "https://other.example")])
        self.assertEqual(answer.fields["vary"], "origin")
        self.assertNotIn("access-control-allow-origin", answer.fields)

    def test_all(self):
        other = self.start("--allow-origin", "*")
        self.assertEqual(other.get("/health").fields["access-control-allow-origin"], "*")


class Names(unittest.TestCase):
    def test_any(self):
        other = Server("--max-context", "256", "--served-model-name", "tiny", "--any-model-name", "--quiet")
        self.addCleanup(other.stop)
        self.assertEqual(other.get("/v1/models/other").json()["id"], "other")

    def test_codes_of_a_path(self):
        self.assertEqual(server.get("/v1/models/t%69ny").json()["id"], "tiny")
        for name in ("tin%", "tin%7", "%zz", "tiny%00", "tiny%20"):
            self.assertEqual(server.get("/v1/models/" + name).status, 404, name)


if __name__ == "__main__":
    unittest.main()
