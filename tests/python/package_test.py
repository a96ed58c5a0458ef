"""The Python package on the cpu: bits of ranks that are processes, the engine, versions, types."""
from inside import NUMPY, ROOT, enter_package, launch

enter_package(__file__, NUMPY, "mypy==2.4.1")

import subprocess  # noqa: E402
import sys  # noqa: E402
import unittest  # noqa: E402

import tenon  # noqa: E402


class Processes(unittest.TestCase):
    def test_two_are_equal_to_the_bit(self):
        self.assertEqual(launch(2, ROOT / "tests/python/rank_main.py"), [(0, "equal 3\n")] * 2)

    def test_four_are_equal_to_the_bit(self):
        self.assertEqual(launch(4, ROOT / "tests/python/rank_main.py"), [(0, "equal 3\n")] * 4)


class Engines(unittest.TestCase):
    def test_answers(self):
        question = [{"role": "user", "content": "Tom has 3 boxes of 12 pencils. How many?"}]
        with tenon.Engine(ROOT / "checkpoints/tiny", tp=2, target="cpu") as engine:
            answer = engine.chat(question, tenon.Sampling(max_tokens=50))
            self.assertIn("36", answer.text)
            self.assertEqual(engine.decode(answer.tokens), answer.text)
            parts = list(engine.submit_chat(question, tenon.Sampling(max_tokens=50)))
            self.assertEqual("".join(part.text for part in parts), answer.text)
            prompt = engine.encode(engine.render(question))
            self.assertEqual(engine.generate([prompt], tenon.Sampling(max_tokens=50))[0].tokens, answer.tokens)
            endless = engine.submit("a", tenon.Sampling(max_tokens=3000, ignore_eos=True))
            endless.cancel()
            self.assertEqual(endless.complete().outcome.finish_reason, "cancelled")
            self.assertEqual(engine.counts["cancelled"], 1)
            with self.assertRaisesRegex(tenon.InvalidArgumentError, "temperature"):
                engine.submit("a", tenon.Sampling(temperature=-1))
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "closed"):
            engine.encode("a")

    def test_is_loaded_when_asked_for(self):
        asked = "import sys, tenon; print('tenon._engine' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
        self.assertEqual(found.stdout, "False\n")


class Versions(unittest.TestCase):
    def test_say_which_build_this_is(self):
        cmake = (ROOT / "CMakeLists.txt").read_text()
        self.assertIn(f"VERSION {tenon.__version__} ", cmake)
        self.assertIn(f'version = "{tenon.__version__}"', (ROOT / "pyproject.toml").read_text())
        self.assertRegex(tenon.commit(), r"^([0-9a-f]{12}\+?|unknown)$")
        self.assertRegex(tenon.build_info(), r"^\w+.*, (GNU|Clang) [0-9.]+, targets .*cpu")


class Types(unittest.TestCase):
    def test_strict(self):
        found = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir=/dev/null",
                                ROOT / "bindings/python/tenon"],
                               cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)


if __name__ == "__main__":
    unittest.main()
