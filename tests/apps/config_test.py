#!/usr/bin/env python3
"""tenon serve --config: options from a file, and what is refused of one."""
import pathlib
import tempfile
import unittest

from serve_support import Server
from support import tenon


class Config(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "tenon.toml"

    def test_the_file_speaks_where_the_command_line_does_not(self):
        self.file.write_text('# a server\nmax-context = 512\nmax-batch = 3\nserved-model-name = ["one", "two"]\n'
                             "no-page = true\nquiet = true\n")
        server = Server("--config", str(self.file), "--max-context", "256")
        self.addCleanup(server.stop)
        models = server.get("/v1/models").json()["data"]
        self.assertEqual([(each["id"], each["max_model_len"]) for each in models], [("one", 256), ("two", 256)])
        self.assertEqual(server.metric("tenon_max_batch"), 3)
        self.assertEqual(server.get("/").status, 404)
        self.assertFalse([line for line in server.log if "GET /v1/models" in line])

    def test_refusals(self):
        for text, why in (("max-batsh = 3\n", '"max-batsh"'), ("[serve]\nport = 1\n", 'section "serve"'),
                          ("max-batch = 0\n", "--max-batch"), ("max-batch = [1, 2]\n", "--max-batch"),
                          ("config = other\n", '"config"'), ("quiet = perhaps\n", '"quiet" is "perhaps"; accepted are true and false')):
            self.file.write_text(text)
            done = tenon("serve", "--config", str(self.file))
            self.assertEqual(done.returncode, 2, (text, done.stderr))
            self.assertIn(why, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        done = tenon("serve", "--config", str(self.file) + "x")
        self.assertEqual(done.returncode, 2)
        self.assertIn("there is no such file", done.stderr)


if __name__ == "__main__":
    unittest.main()
