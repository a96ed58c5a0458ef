"""What libtenon.so shows and needs: usage: symbols_test.py LIBRARY. It shows the functions of tenon.h, with a
version, and nothing else; it holds no engine, no Boost and no JSON."""
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIBRARY = pathlib.Path(sys.argv.pop(1))
HEADER = (ROOT / "bindings/c/tenon.h").read_text()
# The loader's and the compiler's own; CUDA's and HIP's where the build has them.
NEEDED = re.compile(r"^(libcrypto|libstdc\+\+|libm|libgcc_s|libc|ld-linux[\w-]*|linux-vdso|libpthread|libdl|librt|"
                    r"libasan|libubsan|libtsan|libamdhip64|libhsa[\w-]*)\.so")


def output(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


class Symbols(unittest.TestCase):
    def test_shows_the_header_and_nothing_else(self):
        declared = set(re.findall(r"^TENON_API [\w ]+\*?\s*(tenon_\w+)\(", HEADER, re.M))
        shown = set(re.findall(r" [A-Za-z] (\S+)$", output("nm", "-D", "--defined-only", LIBRARY), re.M))
        shown.discard("TENON_1")
        self.assertEqual({name.replace("@@", "@") for name in shown}, {f"{name}@TENON_1" for name in declared})
        self.assertGreater(len(declared), 30)

    def test_is_named_by_the_number_of_the_interface(self):
        number = re.search(r"#define TENON_ABI (\d+)", HEADER).group(1)
        self.assertIn(f"[libtenon.so.{number}]", output("readelf", "-d", LIBRARY))
        self.assertIn("NODELETE", output("readelf", "-d", LIBRARY))

    def test_needs_no_more_than_it_says(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", LIBRARY))
        self.assertTrue(needed)
        self.assertEqual([name for name in needed if not NEEDED.match(name)], [])

    def test_holds_no_engine(self):
        inside = output("nm", "-C", LIBRARY)
        ops = re.findall(r"^TENON_OP\((\w+), ops/", (ROOT / "tenon/core/ops.def").read_text(), re.M)
        names = set(ops) - {"fused_allreduce_rmsnorm_quant", "rmsnorm"} | {"layers", "models", "runtime", "serve",
                                                                            "jinja"}
        self.assertEqual(re.findall(r"tenon::(?:\w+::)?(?:" + "|".join(names) + ")::", inside), [])
        self.assertEqual(re.findall(r"boost::|nlohmann|pcre2_|utf8proc_|CLI::", inside), [])
        self.assertIn("tenon::Boundary::run", inside)


if __name__ == "__main__":
    unittest.main()
