#!/usr/bin/env python3
"""Two servers behind vllm-router: serve_vllm_router_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "vllm-router==0.1.17")

import sys  # noqa: E402
import unittest  # noqa: E402

from router_support import RouterCases  # noqa: E402


class VllmRouter(RouterCases, unittest.TestCase):
    command = (sys.executable, "-m", "vllm_router.launch_router")
    idle_load = -1  # not known: it reads another form of /get_load than SGLang's servers and router have

    def check_how_prompts_were_read(self):
        rendered = 'path="/v1/chat/completions/render",status="200"'
        self.assertTrue(any(rendered in each.get("/metrics").body.decode() for each in self.servers))


if __name__ == "__main__":
    unittest.main()
