#!/usr/bin/env python3
"""Two servers behind sglang-router: serve_sglang_router_test.py TENON [FOLDER]."""
from clients_support import enter

enter(__file__, "sglang-router==0.3.2")

import sys  # noqa: E402
import unittest  # noqa: E402

from router_support import RouterCases  # noqa: E402


class SglangRouter(RouterCases, unittest.TestCase):
    command = (sys.executable, "-m", "sglang_router.launch_router")


if __name__ == "__main__":
    unittest.main()
