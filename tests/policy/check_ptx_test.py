#!/usr/bin/env python3
"""tools/check_ptx.py accepts a kernel that waits first and says what is wrong with any other."""
import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import check_ptx  # noqa: E402

NAME = "_ZN5tenon4cuda7rmsnorm10row_kernelINS_4bf16ELi1ELb1EEEvNS1_7RowArgsE"
ROW = "_ZN5tenon4cuda29fused_allreduce_rmsnorm_quantL19one_shot_row_kernelINS_4bf16ENS1_5PlainELi1ELi{}ELb1ENS0_5SoundEEEvNS1_9FusedArgsE"
# What a kernel begins with: arguments, prefetches, a way around them.
HEAD = """
	.reg .pred 	%p<2>;
	ld.param.u64 	%rd2, [args+24];
	setp.ne.s32 	%p1, %r1, 0;
	@%p1 bra 	$L__BB0_2;
	// begin inline asm
	prefetch.global.L2 [%rd2];
	// end inline asm
	st.shared.u32 	[sums], %r1;
"""
WAIT = "\tgriddepcontrol.wait;\n"
START = "\tgriddepcontrol.launch_dependents;\n"
REST = "\tld.global.v4.u32 	{%r51, %r52, %r53, %r54}, [%rd31];\n\tst.global.u32 	[%rd2], %r1;\n\tret;\n"
LOAD = "\tld.relaxed.sys.global.u32 	%r1, [%rd2];\n"


def source(code, name=NAME):
    return f".version 9.0\n\n.entry {name}(\n\t.param .align 8 .b8 args[128]\n)\n.maxntid 1024, 1, 1\n{{{code}\n}}\n"


RIGHT = HEAD + "$L__BB0_2:\n" + WAIT + START + REST


class CheckPtx(unittest.TestCase):
    def complaints(self, text):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "rmsnorm.ptx"
            path.write_text(text, encoding="utf-8")
            return check_ptx.check([str(path)], [])[0]

    def assert_one(self, wanted, code, name=NAME):
        found = self.complaints(source(code, name))
        self.assertEqual(len(found), 1, found)
        self.assertRegex(found[0], wanted)

    def test_accepts_what_waits_first(self):
        self.assertEqual(self.complaints(source(RIGHT)), [])
        self.assertEqual(self.complaints(source("\n" + WAIT + REST)), [])

    def test_accepts_copies_into_shared_memory_and_traps(self):
        for step in (
            "\tcp.async.bulk.prefetch.L2.global [%rd2], %r1;\n",
            "\tcp.async.cg.shared.global [%r1], [%rd2], 16, %r2;\n\tcp.async.wait_all;\n",
            "\t@%p1 trap;\n",
            "\tld.global.nc.L1::no_allocate.b16 %rs1, [%rd2];\n",
        ):
            self.assertEqual(self.complaints(source(HEAD + step + "$L__BB0_2:\n" + WAIT + REST)), [], step)

    def test_names_what_comes_before_the_wait(self):
        for access in (
            LOAD,
            "\tld.u32 	%r1, [%rd2];\n",  # generic
            "\tld.global.nc.f32 	%f1, [%rd2];\n",
            "\tst.global.v4.u32 	[%rd2], {%r1, %r2, %r3, %r4};\n",
            "\t@%p1 atom.global.add.u32 	%r1, [%rd2], 1;\n",
            "\tred.relaxed.sys.global.add.u32 	[%rd2], 1;\n",
            "\tcp.async.cg.shared::cta.global [%r1], [%rd2], 16;\n".replace("shared::cta.", ""),
            "\tcall.uni (retval0), helper, (param0);\n",
        ):
            self.assert_one("touches memory before it has waited", HEAD + access + "$L__BB0_2:\n" + WAIT + REST)
            self.assertEqual(self.complaints(source(HEAD + "$L__BB0_2:\n" + WAIT + access + REST)), [])

    def test_looks_at_every_way(self):
        around = "\n\t@%p1 bra 	$L__BB0_2;\n" + WAIT + "$L__BB0_2:\n" + REST
        found = self.complaints(source(around))
        self.assertEqual(len(found), 3, found)  # a load, a store, an end
        self.assert_one("end before it has waited", "\n\t@%p1 bra 	$L__BB0_2;\n\tret;\n$L__BB0_2:\n" + WAIT + REST)
        self.assert_one("touches memory", "\n\tbra.uni 	$L__BB0_2;\n$L__BB0_3:\n" + WAIT + REST + "$L__BB0_2:\n" + LOAD + "\tbra 	$L__BB0_3;\n")
        guarded = "\n\t@%p1 griddepcontrol.wait;\n"
        self.assert_one("never waits", guarded + REST)
        self.assert_one("touches memory", guarded + LOAD + WAIT + REST)

    def test_names_a_start_before_the_wait(self):
        self.assert_one("lets the next kernel start", HEAD + "$L__BB0_2:\n" + START + WAIT + REST)

    def test_names_a_kernel_that_never_waits(self):
        self.assert_one("never waits", HEAD + "$L__BB0_2:\n" + REST)
        self.assert_one("code was not found", "\n")

    def test_lanes_meet_before_they_clear(self):
        meet = "\tbar.warp.sync 	-1;\n"
        self.assert_one("lanes meet", RIGHT, ROW.format(2))
        self.assertEqual(self.complaints(source("\n" + WAIT + meet + REST, ROW.format(2))), [])
        self.assertEqual(self.complaints(source(RIGHT, ROW.format(1))), [])
        for form in ("", "_row", "_rows", "_long", "_split"):
            symbol = ROW.format(4).replace("_row_kernel", f"{form}_kernel")
            self.assertIn(f"{form}_kernelI", symbol)
            self.assert_one("lanes meet", RIGHT, symbol)

    def test_sources_that_set_early_are_looked_for(self):
        early = list(check_ptx.early_sources())
        self.assertIn("tenon/ops/rmsnorm/rmsnorm.cu", early)
        self.assertIn("tenon/comm/collectives/all_reduce/all_reduce.cu", early)
        self.assertIn("tenon/ops/fused_allreduce_rmsnorm_quant/two_shot_packed.cu", early)
        self.assertNotIn("tenon/comm/collectives/vectors.cuh", early)
        found, _ = check_ptx.check([], ["tenon/ops/x/x.cu", "tenon/ops/x/x.cc"])
        self.assertEqual(len(found), 2, found)
        self.assertRegex(found[0], "PTX was not given")
        self.assertRegex(found[1], "only kernel files")

    def test_ends_with_one(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
            path = pathlib.Path(folder) / "rope.ptx"
            path.write_text(".version 9.0\n", encoding="utf-8")
            self.assertEqual(check_ptx.main([str(path)]), 1)
            self.assertIn("no kernel was found", said.getvalue())


if __name__ == "__main__":
    unittest.main()
