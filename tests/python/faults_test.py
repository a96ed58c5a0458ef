"""What is wrong becomes a Python exception that says what was asked, found and accepted: never a crash, never a
wait without end."""
from inside import NUMPY, ROOT, enter_package, launch

enter_package(__file__, NUMPY, "mypy==2.4.1")

import ctypes  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import unittest  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import tenon  # noqa: E402

HERE = ROOT / "tests/python"
U16 = np.uint16


class Elsewhere:
    """An array whose DLPack says that it lies on CUDA device 3."""

    class Tensor(ctypes.Structure):
        _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                    ("num_dims", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                    ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                    ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]

    def __init__(self, *shape):
        self.shape = shape
        self.sizes = (ctypes.c_int64 * len(shape))(*shape)
        self.tensor = self.Tensor(0x1000, 2, 3, len(shape), 4, 16, 1, ctypes.addressof(self.sizes), None, 0)

    def __dlpack__(self, stream=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


class Arguments(unittest.TestCase):
    def setUp(self):
        self.communicator = tenon.Communicator.from_team(tenon.Team(1), 0, target="cpu")
        self.boundary = tenon.Boundary(self.communicator, hidden=256, max_rows=4)
        self.good = [np.zeros((2, 256), U16), np.zeros((2, 256), U16), np.zeros(256, U16)]
        self.boundary(*self.good)

    def refused(self, *arrays, says, **outputs):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, says):
            self.boundary(*arrays, **outputs)

    def test_dtypes(self):
        partial, residual, weight = self.good
        self.refused(np.zeros((2, 256), "f4"), residual, weight, says=r"addend is f32.*made for bf16")
        self.refused(partial, np.zeros((2, 256), "i8"), weight, says=r"residual.*(i64|int64|accepted)")
        self.refused(partial, residual, np.zeros(256, "f2"), says=r"weight.*f16")
        with self.assertRaisesRegex(tenon.InvalidArgumentError, 'dtype is "f64"; accepted: bf16, f16'):
            tenon.Boundary(self.communicator, hidden=256, max_rows=4, dtype="f64")
        with self.assertRaisesRegex(tenon.InvalidArgumentError, 'layout is "x"; accepted: row'):
            tenon.Boundary(self.communicator, hidden=256, max_rows=4, layout="x")

    def test_devices(self):
        partial, residual, weight = self.good
        rows = {"rows": np.zeros((2, 256), U16), "codes": np.zeros((2, 256), "u1"),
                "scales": np.zeros((2, 2), "f4")}
        self.refused(Elsewhere(2, 256), residual, weight, says=r"partial.*(CUDA|cuda).*3", **rows)
        self.refused(partial, Elsewhere(2, 256), weight, says=r"residual.*(CUDA|cuda).*3")

    def test_shapes(self):
        partial, residual, weight = self.good
        self.refused(np.zeros((2, 128), U16), residual, weight, says="256")
        self.refused(np.zeros((5, 256), U16), np.zeros((5, 256), U16), weight, says="5.*4|4.*5")
        self.refused(partial, np.zeros((3, 256), U16), weight, says="residual")
        self.refused(partial, residual, np.zeros(128, U16), says="weight")
        self.refused(np.zeros((2, 2, 128), U16), residual, weight, says=r"\[2, 2, 128\]",
                     rows=np.zeros((2, 256), U16))
        self.refused(partial, residual, weight, says=r"scale is f32 \[2, 3\].*\[2, 2\]", rows=np.zeros((2, 256), U16),
                     codes=np.zeros((2, 256), "u1"), scales=np.zeros((2, 3), "f4"))

    def test_strides_and_alignment(self):
        partial, residual, weight = self.good
        self.refused(partial, residual, np.zeros(512, U16)[::2], says="weight")
        self.refused(np.zeros((2, 512), U16)[:, ::2], residual, weight, says="partial|addend")
        odd = np.zeros(2 * 256 + 8, U16)
        start = next(i for i in range(8) if (odd.ctypes.data + 2 * i) % 16 == 2)
        self.refused(odd[start:start + 512].reshape(2, 256), residual, weight, says="16")

    def test_streams(self):
        for wrong in ("x", -1, 1.5, 1 << 64):
            self.refused(*self.good, says="stream is .*; accepted: the number of a stream", stream=wrong)
        self.refused(*self.good, says="stream.*accept", stream=4096)

    def test_overlap(self):
        partial, residual, weight = self.good
        self.refused(partial, partial, weight, says="over|same|share")

    def test_other_objects(self):
        partial, residual, weight = self.good
        self.refused([1.0], residual, weight, says="partial is a .*list.*no __dlpack__",
                     rows=np.zeros((2, 256), U16))
        fixed = np.zeros((2, 256), U16)
        fixed.flags.writeable = False
        self.refused(partial, fixed, weight, says="residual cannot be exported: .*accepted")

    def test_bound_calls(self):
        """What cannot be exported is refused at once, what does not fit at the call."""
        partial, residual, weight = self.good
        places = dict(zip(("rows", "codes", "scales"), self.boundary.outputs_like(partial)))
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "weight is a .*list.*no __dlpack__"):
            self.boundary.bind(partial, residual, [1.0], **places)
        run = self.boundary.bind(partial, np.zeros((3, 256), U16), weight, **places)
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "residual"):
            run()
        run = self.boundary.bind(partial, residual, weight, rows=places["rows"])
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "outputs passed are rows alone; it was made for rows, and codes"):
            run()
        run = self.boundary.bind(*self.good, **places)
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "stream is 'x'; accepted"):
            run("x")
        run()
        self.boundary.close()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the boundary was closed; accepted"):
            run()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the boundary was closed; accepted"):
            self.boundary.bind(*self.good, **places)

    def test_use_after_close(self):
        self.boundary.close()
        self.refused(*self.good, says="the boundary was closed; accepted")
        self.communicator.close()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the communicator was closed; accepted"):
            self.communicator.barrier()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the communicator was closed; accepted"):
            self.communicator.all_reduce(self.good[0])

    def test_what_was_closed_makes_nothing(self):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "outputs passed are rows alone; it was made for rows, and codes"):
            self.boundary(*self.good, rows=np.zeros((2, 256), U16))
        channel, team = tenon.Channel(self.communicator, hidden=256, max_rows=4), tenon.Team(1)
        channel.close()
        team.close()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the channel was closed; accepted"):
            tenon.Boundary(channel, hidden=256, max_rows=4)
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the team was closed; accepted"):
            tenon.Communicator.from_team(team, 0, target="cpu")
        self.communicator.close()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "the communicator was closed; accepted"):
            tenon.Channel(self.communicator, hidden=256, max_rows=4)
        self.boundary(*self.good)  # keeps what it was made of

    def test_specs(self):
        for wrong, says in (({"eps": float("nan")}, "eps is nan.*accepted: finite"), ({"group": 100}, "group"),
                            ({"hidden": 100}, "hidden|100"), ({"max_rows": 0}, "rows.*accepted|max_rows"),
                            ({"force_stage": 4}, "force_stage is 4; accepted: 0 to 3")):
            with self.assertRaisesRegex(tenon.Error, says):
                tenon.Boundary(self.communicator, **{"hidden": 256, "max_rows": 4, **wrong})

    def test_sums_and_gathers(self):
        ones = np.full(16, 0x3F80, U16)
        self.assertTrue((self.communicator.all_reduce(ones) == 0x3F80).all())
        for call, says in ((lambda: self.communicator.all_reduce(np.zeros(16, "f4")), "f32"),
                           (lambda: self.communicator.all_reduce(ones, np.zeros(8, U16)), r"\[8\]"),
                           (lambda: self.communicator.all_reduce(ones[::2]), "gaps|contiguous|stride"),
                           (lambda: self.communicator.all_gather(ones, np.zeros((2, 16), U16)), r"\[2, 16\]"),
                           (lambda: self.communicator.all_gather(ones, [1]), "out is a .*list")):
            with self.assertRaisesRegex(tenon.InvalidArgumentError, says):
                call()

    def test_suspended(self):
        self.communicator.suspend()
        self.refused(*self.good, says="suspended; call resume")
        self.communicator.resume()
        self.boundary(*self.good)

    def test_options(self):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "no option is called targte; accepted: target, "):
            tenon.Communicator.from_team(tenon.Team(1), 0, targte="cpu")
        with self.assertRaisesRegex(tenon.Error, "vulkan"):
            tenon.Communicator.from_team(tenon.Team(1), 0, target="vulkan")

    def test_two_threads(self):
        """The second one in a communicator is refused, and does not wait."""
        team = tenon.Team(2)
        both = [None, None]

        def make(rank):
            both[rank] = tenon.Communicator.from_team(team, rank, target="cpu", deadline=5.0)

        makers = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        waiting = threading.Thread(target=both[0].barrier)
        waiting.start()
        time.sleep(0.3)  # until it waits for the other rank
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "another thread.*accepted: one at a time"):
            both[0].barrier()
        both[1].barrier()
        waiting.join()


class Worlds(unittest.TestCase):
    def test_impossible_ranks(self):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "rank"):
            tenon.Communicator.from_id(tenon.unique_id(), 2, 2, target="cpu")
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "1 to 8|accepted"):
            tenon.Team(9)
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "128"):
            tenon.Communicator.from_id(b"short", 0, 1, target="cpu")

    def test_a_rank_that_does_not_come(self):
        started = time.monotonic()
        with self.assertRaises((tenon.DeadlineError, tenon.PeerLostError)):
            tenon.Communicator.from_team(tenon.Team(2), 0, target="cpu", deadline=0.5)
        self.assertLess(time.monotonic() - started, 30)

    def test_ranks_that_differ(self):
        """The same error on both, after which their communicator works on."""
        told = launch(2, HERE / "fault_main.py", "differ")
        for code, text in told:
            self.assertEqual(code, 0, text)
            self.assertRegex(text, "hidden")

    def test_ranks_that_bring_different_rows(self):
        for code, text in launch(2, HERE / "fault_main.py", "differ_in_rows"):
            self.assertEqual(code, 0, text)
            self.assertRegex(text, r"InvalidArgumentError|PeerLostError")
            self.assertRegex(text, "rows")

    def test_a_rank_that_is_killed(self):
        started = time.monotonic()
        (code, text), (killed, _) = launch(2, HERE / "fault_main.py", "killed")
        self.assertEqual((code, killed), (0, -signal.SIGKILL), text)
        self.assertRegex(text, r"(PeerLost|Deadline)Error: .*rank 1")
        self.assertLess(time.monotonic() - started, 55)


class Processes(unittest.TestCase):
    def test_fork(self):
        communicator = tenon.Communicator.from_team(tenon.Team(1), 0, target="cpu")
        boundary = tenon.Boundary(communicator, hidden=256, max_rows=4)
        with warnings.catch_warnings():  # Python's own, about fork in a process with threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                boundary(np.zeros((1, 256), U16), np.zeros((1, 256), U16), np.zeros(256, U16))
            except tenon.UnsupportedError as error:
                os._exit(0 if "fork" in str(error) else 2)
            finally:
                os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)

    def ends(self, how, says=""):
        """The interpreter of fault_main.py `how` ends by itself, soon, with 0."""
        started = time.monotonic()
        found = subprocess.run([sys.executable, HERE / "fault_main.py", how], capture_output=True, text=True,
                               timeout=120)
        self.assertEqual((found.returncode, found.stdout, found.stderr), (0, says, ""))
        self.assertLess(time.monotonic() - started, 60)

    def test_exit_while_a_thread_waits_for_a_rank(self):
        self.ends("exit_while_waiting", "left\n")

    def test_exit_while_a_call_waits_for_a_rank(self):
        self.ends("exit_while_calling", "left\n")

    def test_exit_while_a_wait_ends(self):
        self.ends("exit_at_the_deadline", "left\n")

    def test_exit_with_an_engine_at_work(self):
        self.ends("exit_while_answering", "left\n")


if __name__ == "__main__":
    unittest.main()
