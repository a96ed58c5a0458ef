"""Tensors of torch, and torch.compile without a graph break: ctest -C clients -L clients."""
from inside import ROOT, TORCH, enter_package, launch

enter_package(__file__, *TORCH, name="python_torch")

import re  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import unittest  # noqa: E402

import tenon  # noqa: E402
import tenon.torch  # noqa: E402
import torch  # noqa: E402

HERE = ROOT / "tests/python"
BF16 = torch.bfloat16


def alone(**spec):
    communicator = tenon.Communicator.from_team(tenon.Team(1), 0, target="cpu")
    return tenon.torch.Boundary(communicator, hidden=256, max_rows=8, **spec)


def arrays(rows=4):
    return torch.randn(rows, 256, dtype=BF16), torch.randn(rows, 256, dtype=BF16), torch.randn(256, dtype=BF16)


class Ranks(unittest.TestCase):
    def test_two_are_equal_to_the_bit(self):
        self.are_equal(2, "inductor")

    def test_four_are_equal_to_the_bit(self):
        self.are_equal(4, "aot_eager")

    def are_equal(self, ranks, backend):
        for code, told in launch(ranks, HERE / "torch_main.py", backend):  # torch may say things before
            self.assertTrue(code == 0 and told.endswith("equal\n"), told)


class Adapters(unittest.TestCase):
    def test_are_equal_to_the_bit(self):
        for code, told in launch(2, HERE / "adapters_main.py"):
            self.assertTrue(code == 0 and told.endswith("equal\n"), told)

    def test_a_decoder_layer_before_and_after(self):
        told = launch(2, ROOT / "examples/05_python/decoder_layer.py")
        for code, text in told:
            self.assertEqual(code, 0, text)
        found = re.search(r"residual: ([0-9.]+)% apart.*codes: ([0-9]+)%.*compiled: the same bits", told[0][1])
        self.assertTrue(found and float(found[1]) < 1 and int(found[2]) < 10, told[0][1])


class Compiled(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()

    def test_has_no_break(self):
        boundary = alone()
        explained = torch._dynamo.explain(lambda *of: boundary(*of).rows)(*arrays())
        self.assertEqual((explained.graph_count, explained.graph_break_count), (1, 0), explained)

    def test_takes_any_number_of_rows(self):
        boundary = alone()
        compiled = torch.compile(lambda *of: boundary(*of).rows, fullgraph=True, dynamic=True)
        for rows in (1, 2, 3, 7):
            partial, residual, weight = arrays(rows)
            expected = boundary(partial, residual.clone(), weight).rows
            self.assertTrue(torch.equal(compiled(partial, residual, weight), expected))

    def test_writes_where_it_is_told_to(self):
        boundary = alone()
        partial, residual, weight = arrays()
        expected = boundary(partial, residual.clone(), weight)
        places = dict(zip(("rows", "codes", "scales"), boundary.outputs_like(partial)))
        out = torch.compile(lambda *of: boundary(*of, **places), fullgraph=True)(partial, residual, weight)
        self.assertTrue(torch.equal(places["rows"], expected.rows))
        self.assertTrue(torch.equal(out.scales, expected.scales))

    def test_outputs_are_those_of_the_plain_boundary(self):
        for spec in ({}, {"layout": "mn_major"}, {"layout": "ue8m0_packed", "group": 64}, {"want_fp8": False},
                     {"want_rows": False, "fp8": "e4m3fnuz"}):
            boundary = alone(**spec)
            for rows in (1, 4, 5):
                shown = [[None if each is None else (each.shape, each.dtype) for each in of(boundary, arrays(rows)[0])]
                         for of in (tenon.Boundary.outputs_like, tenon.torch.Boundary.outputs_like)]
                self.assertEqual(*shown)

    def test_a_pass_puts_it_in(self):
        """As docs/drop-in.md has it for vLLM, whose sum and norm one operator stands for here."""
        from torch._higher_order_ops.auto_functionalize import auto_functionalized
        from torch._inductor import config, pattern_matcher
        library = torch.library.Library("stand_in", "DEF")
        library.define("sum_add_norm(Tensor input, Tensor residual, Tensor weight) -> (Tensor, Tensor)")
        torch.library.register_fake("stand_in::sum_add_norm", lambda input, residual, weight:
                                    (torch.empty_like(input), torch.empty_like(input)), lib=library)
        boundary = alone(want_fp8=False)

        def pattern(residual, input, weight):
            return torch.ops.stand_in.sum_add_norm(input, residual, weight)

        def replacement(residual, input, weight):
            done = auto_functionalized(torch.ops.tenon.boundary.default, name=boundary.name, partial=input,
                                       residual=residual, weight=weight, rows=torch.empty_like(input), codes=None,
                                       scales=None)
            return done[2], done[1]

        patterns = pattern_matcher.PatternMatcherPass()
        with torch._subclasses.FakeTensorMode():  # nothing runs while the two are looked at
            pattern_matcher.register_replacement(pattern, replacement, list(arrays()), pattern_matcher.fwd_only,
                                                 patterns)
        partial, residual, weight = arrays()
        expected = boundary(partial, residual.clone(), weight)
        with config.patch(post_grad_custom_pre_pass=patterns.apply), torch.no_grad():
            rows, kept = torch.compile(lambda r, p, w: torch.ops.stand_in.sum_add_norm(p * 1, r + 0, w))(
                residual, partial, weight)
        self.assertTrue(torch.equal(rows, expected.rows) and torch.equal(kept, expected.residual))

    def test_operator_is_sound(self):
        boundary = alone(want_fp8=False)  # which opcheck cannot compare
        partial, residual, weight = arrays()
        torch.library.opcheck(torch.ops.tenon.boundary.default,
                              (boundary.name, partial, residual, weight, *boundary.outputs_like(partial)),
                              test_utils=("test_schema", "test_faketensor"))

    def test_says_what_it_refuses(self):
        boundary = alone()
        partial, residual, weight = arrays()
        places = boundary.outputs_like(partial)
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "addend is f32"):
            torch.compile(lambda *of: boundary(*of).rows, fullgraph=True)(partial.float(), residual, weight)
        name = boundary.name
        del boundary
        torch._dynamo.reset()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, f"boundary {name} .*is gone; accepted"):
            torch.ops.tenon.boundary(name, partial, residual, weight, *places)


class Tensors(unittest.TestCase):
    def test_weights_that_want_gradients(self):
        partial, residual, weight = arrays()
        boundary = alone()
        expected = boundary(partial, residual.clone(), weight).rows
        self.assertTrue(torch.equal(boundary(partial, residual, torch.nn.Parameter(weight)).rows, expected))

    def test_a_bound_call_keeps_memory_that_torch_takes_away(self):
        boundary = alone(want_fp8=False)
        partial, residual, weight = arrays()
        expected = boundary(partial, residual.clone(), weight).rows
        rows = torch.empty_like(partial)
        seen = rows.view(-1)[:]  # of the same memory
        run = boundary.bind(partial, residual, weight, rows=rows)
        partial.set_(torch.zeros(1, dtype=BF16).untyped_storage(), 0, (0, 256))
        rows.data = torch.zeros(2, 256, dtype=BF16)
        del residual, weight
        run()
        self.assertTrue(torch.equal(seen.view(4, 256), expected))
        self.assertEqual(float(rows.float().abs().sum()), 0)

    def test_what_has_no_memory(self):
        _, residual, weight = arrays()
        with self.assertRaisesRegex(tenon.InvalidArgumentError, r"partial (cannot be exported|is .*meta)[^\n]*accepted"):
            alone()(torch.empty(4, 256, dtype=BF16, device="meta"), residual, weight,
                    rows=torch.empty(4, 256, dtype=BF16))
        with self.assertRaisesRegex(tenon.InvalidArgumentError, r"partial cannot be exported[^\n]*accepted"):
            alone()(torch.eye(4, 256, dtype=BF16).to_sparse(), residual, weight, rows=torch.empty(4, 256, dtype=BF16))
        with self.assertRaisesRegex(tenon.InvalidArgumentError, r"residual cannot be exported[^\n]*accepted"):
            alone().bind(residual, torch.eye(4, 256, dtype=BF16).to_sparse(), weight)

    @unittest.skipUnless(torch.cuda.is_available(), "no GPU")
    def test_on_a_gpu(self):
        """One rank; tests/python/cuda_check.py is for several."""
        if not tenon.device_count("cuda"):
            self.skipTest("built without CUDA")
        found = subprocess.run([sys.executable, HERE / "cuda_check.py"], capture_output=True, text=True, timeout=300)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)


class Times(unittest.TestCase):
    def test_the_table_of_the_host(self):
        for code, told in launch(2, HERE / "host_cost.py", "cpu"):
            self.assertEqual(code, 0, told)
        for code, told in launch(1, HERE / "host_cost.py", "cpu"):
            self.assertEqual(code, 0, told)
            self.assertRegex(told, r"(?m)^   0( +[0-9.]+ \([0-9.]+\)){5}$")


class Types(unittest.TestCase):
    def test_strict(self):
        found = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir=/dev/null",
                                "--follow-imports=silent", ROOT / "bindings/python/tenon"],
                               cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)


if __name__ == "__main__":
    unittest.main()
