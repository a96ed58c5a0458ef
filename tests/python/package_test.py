"""The Python package on the cpu: bits, errors, processes, the engine, types. Arguments: the folder that holds
the package tenon, and a folder for a virtual environment, which is made once (NumPy and mypy from PyPI)."""
import os
import pathlib
import socket
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIPPED = 77


def environment(folder):
    """The interpreter of the environment in `folder`; None where it cannot be made."""
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=False)
        wanted = [python, "-m", "pip", "-q", "install", "numpy==1.26.4", "mypy==2.4.1"]
        if made.returncode or subprocess.run(wanted, check=False).returncode:
            return None
        (folder / "ready").touch()
    return python


class Processes(unittest.TestCase):
    def ranks(self, count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(count):
            launched = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                            LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            started.append(subprocess.Popen([sys.executable, ROOT / "tests/python/rank_main.py"], env=launched,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        for process in started:
            told, _ = process.communicate(timeout=60)
            self.assertEqual((process.returncode, told), (0, "equal 3\n"))

    def test_two_are_equal_to_the_bit(self):
        self.ranks(2)

    def test_four_are_equal_to_the_bit(self):
        self.ranks(4)


class Refusals(unittest.TestCase):
    def setUp(self):
        import numpy
        import tenon
        self.numpy, self.tenon = numpy, tenon
        self.communicator = tenon.Communicator.from_team(tenon.Team(1), 0, target="cpu")
        self.boundary = tenon.Boundary(self.communicator, hidden=256, max_rows=4)
        self.good = [numpy.zeros((2, 256), numpy.uint16), numpy.zeros((2, 256), numpy.uint16),
                     numpy.zeros(256, numpy.uint16)]
        self.boundary(*self.good)

    def refused(self, *arrays, says, **outputs):
        with self.assertRaisesRegex(self.tenon.InvalidArgumentError, says):
            self.boundary(*arrays, **outputs)

    def test_arguments(self):
        zeros, u16 = self.numpy.zeros, self.numpy.uint16
        partial, residual, weight = self.good
        self.refused(zeros((2, 128), u16), residual, weight, says="256")
        self.refused(zeros((5, 256), u16), zeros((5, 256), u16), weight, says="4")
        self.refused(zeros((2, 256), "f4"), residual, weight, says="f32.*bf16|bf16.*f32")
        self.refused(partial, residual, zeros(512, u16)[::2], says="weight")
        self.refused(zeros((2, 512), u16)[:, ::2], residual, weight, says="partial|addend")
        self.refused([1.0], residual, weight, says="no __dlpack__|list",
                     rows=zeros((2, 256), u16))
        self.refused(partial, partial, weight, says="over|same|share")
        with self.assertRaisesRegex(self.tenon.InvalidArgumentError, 'layout is "x"; accepted: row'):
            self.tenon.Boundary(self.communicator, hidden=256, max_rows=4, layout="x")

    def test_use_after_close(self):
        self.boundary.close()
        self.refused(*self.good, says="boundary was closed")

    def test_fork(self):
        child = os.fork()
        if child == 0:
            try:
                self.boundary(*self.good)
            except self.tenon.UnsupportedError:
                os._exit(0)
            finally:
                os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)

    def test_a_lost_rank_ends_the_wait(self):
        with self.assertRaises((self.tenon.DeadlineError, self.tenon.PeerLostError)):
            self.tenon.Communicator.from_team(self.tenon.Team(2), 0, target="cpu", deadline=0.5)


class Engines(unittest.TestCase):
    def test_answers(self):
        import tenon
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
            with self.assertRaisesRegex(tenon.InvalidArgumentError, "temperature"):
                engine.submit("a", tenon.Sampling(temperature=-1))
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "closed"):
            engine.encode("a")


class Types(unittest.TestCase):
    def test_strict(self):
        found = subprocess.run([sys.executable, "-m", "mypy", "--strict", ROOT / "bindings/python/tenon"],
                               capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        package, folder = sys.argv[1:]
        python = environment(pathlib.Path(folder))
        if python is None:
            print("skipped: NumPy and mypy cannot be installed from PyPI")
            sys.exit(SKIPPED)
        sys.exit(subprocess.run([python, __file__], env=dict(os.environ, PYTHONPATH=package)).returncode)
    unittest.main()
