#!/usr/bin/env python3
"""tools/check_isa.py accepts a kernel that is as it must be and says what is wrong with any other."""
import contextlib
import io
import pathlib
import re
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import check_isa  # noqa: E402

# A one_shot_kernel<bf16, 2, 8> cut down to what is looked at.
NAME = "_ZN5tenon3hip29fused_allreduce_rmsnorm_quantL15one_shot_kernelINS_4bf16ELi2ELi8ENS0_5SoundEEEvNS1_9FusedArgsE"
CODE = """
	global_store_dwordx2 v[0:1], v[2:3], off sc0 sc1
	global_load_dwordx2 v[2:3], v[0:1], off sc0 sc1
	s_waitcnt vmcnt(0)
	buffer_inv sc0 sc1
	v_cvt_pk_bf16_f32 v2, v2, v3
	v_cvt_pk_fp8_f32 v2, v2, v3
	v_sqrt_f32_e32 v2, v2
	v_cmp_class_f32_e32 vcc, v2, v3
	v_rcp_f32_e32 v3, v2
	v_div_fixup_f32 v2, v3, v2, v2
	s_waitcnt vmcnt(0) lgkmcnt(0)
	s_barrier
	buffer_wbl2 sc0 sc1
	v_mov_b32_e32 v9, 0                     ; may stand between
	s_waitcnt vmcnt(0)
	global_store_dword v[0:1], v2, off sc0 sc1
	s_endpgm
"""
MODES = "".join(f"\t\t.amdhsa_{key} {value}\n" for key, value in check_isa.MODES.items())
TAIL = """
	.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count:     0
    .args:
      - .offset:         0
        .size:           8
    .group_segment_fixed_size: 128
    .max_flat_workgroup_size: 512
    .name:           {name}
    .private_segment_fixed_size: 0
    .uses_dynamic_stack: false
    .vgpr_count:     200
    .vgpr_spill_count: 0
...
	.end_amdgpu_metadata
"""


def source(code=CODE):
    head = f"\n{NAME}:                ; @{NAME}\n; %bb.0:{code}"
    directives = f"\t.amdhsa_kernel {NAME}\n{MODES}\t.end_amdhsa_kernel\n.Lfunc_end0:\n"
    return head + directives + TAIL.format(name=NAME)


class CheckIsa(unittest.TestCase):
    def complaints(self, text, arch="gfx950", stem="fused_allreduce_rmsnorm_quant"):
        """Those about one kernel of one file."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"tenon.ops.{stem}.{stem}.{arch}.s"
            path.write_text(text, encoding="utf-8")
            found, _, num_kernels = check_isa.check(str(path))
        self.assertLessEqual(num_kernels, 1)
        return found

    def assert_one(self, wanted, text, **where):
        found = self.complaints(text, **where)
        self.assertEqual(len(found), 1, found)
        self.assertRegex(found[0], wanted)

    def change(self, before, after):
        text = source()
        self.assertEqual(len(re.findall(before, text)), 1, before)
        return re.sub(before, after, text)

    def test_accepts_what_is_right(self):
        self.assertEqual(self.complaints(source()), [])

    def test_names_lost_instructions(self):
        self.assert_one("fp8 codes by instruction", self.change("v_cvt_pk_fp8_f32", "v_med3_f32"))
        self.assert_one("bf16 by instruction", self.change("v_cvt_pk_bf16_f32", "v_add3_u32"))
        self.assert_one("stored past every cache", self.change("(store_dwordx2 .*) sc0 sc1", r"\1"))
        self.assert_one("polled past every cache", self.change("(load_dwordx2 .*) sc0 sc1", r"\1 sc1"))
        self.assert_one("drops what caches hold", self.change("buffer_inv sc0 sc1", "buffer_inv sc1"))
        self.assert_one("writes caches back", self.change("buffer_wbl2 sc0 sc1", "buffer_wbl2 sc1"))

    def test_bf16_is_rounded_by_integers_on_gfx942(self):
        self.assertEqual(self.complaints(self.change("v_cvt_pk_bf16_f32", "v_add3_u32"), arch="gfx942"), [])

    def test_names_missing_waits(self):
        before = r"s_waitcnt vmcnt\(0\) lgkmcnt\(0\)\n"
        self.assert_one("before s_barrier", self.change(before, "s_waitcnt lgkmcnt(0)\n\tglobal_store_byte v, v\n"))
        self.assert_one("before s_barrier", self.change(before, "s_waitcnt vmcnt(0)\n.LBB0_1:\n"))
        after = r"s_waitcnt vmcnt\(0\)\n\tglobal_store_dword "
        self.assert_one("after buffer_wbl2", self.change(after, "global_store_dword "))

    def test_names_what_must_not_be_there(self):
        self.assert_one("rounds towards zero", source(CODE + "\tv_cvt_pkrtz_f16_f32 v0, v0, v1\n"))
        self.assert_one("calls a function", source(CODE + "\ts_swappc_b64 s[30:31], s[4:5]\n"))

    def test_names_rough_arithmetic(self):
        self.assert_one("1 v_sqrt_f32 but 0 v_cmp_class", self.change("v_cmp_class_f32", "v_cmp_eq_f32"))
        self.assert_one("2 v_rcp_f32 but 1 v_div_fixup", source(CODE + "\tv_rcp_f32_e32 v3, v2\n"))
        self.assert_one("not rounded correctly", source(CODE + "\tv_rsq_f32_e32 v3, v2\n"))
        of_integers = CODE + "\tv_rcp_f32_e32 v3, v2\n\tv_mul_f32_e32 v3, 0x5f7ffffc, v3\n"
        self.assertEqual(self.complaints(source(of_integers)), [])
        self.assert_one("is a square root", self.change("v_sqrt_f32_e32 v2, v2\n", ""))
        found = self.complaints(self.change("v_div_fixup_f32", "v_mul_f32"))
        self.assertEqual(len([each for each in found if "quotient" in each]), len(found), found)

    def test_names_limits(self):
        self.assert_one("vgpr_count is 257, at most 256", self.change("vgpr_count:     200", "vgpr_count: 257"))
        self.assert_one("group_segment.* is 512, at most 256", self.change("(group.*size:) 128", r"\1 512"))
        self.assert_one("private_segment.* is 4, at most 0", self.change("(private.*size:) 0", r"\1 4"))
        self.assert_one("vgpr_spill_count is 1", self.change("(vgpr_spill_count:) 0", r"\1 1"))
        self.assert_one("dynamic stack", self.change("(uses_dynamic_stack:) false", r"\1 true"))

    def test_names_modes(self):
        self.assert_one("float_denorm_mode_32 is 0, must be 3", self.change("(denorm_mode_32) 3", r"\1 0"))
        self.assert_one("tg_split is 1, must be 0", self.change("(tg_split) 0", r"\1 1"))
        self.assert_one("fp16_overflow is None", self.change(r"\t\t.amdhsa_fp16_overflow 0\n", ""))

    def test_own_fp8_type(self):
        of = lambda dtype: source().replace(  # noqa: E731
            NAME, f"_ZN5tenon3hip8vec_testL10fp8_kernelILNS_5DTypeE{dtype}EEEvNS_8vec_test7Fp8ArgsE"
        )
        self.assert_one("DType 3 must not", of(3), arch="gfx942", stem="vec_test")
        for dtype, arch in ((4, "gfx942"), (3, "gfx950"), (4, "gfx950")):
            self.assertEqual(self.complaints(of(dtype), arch=arch, stem="vec_test"), [])

    def test_ends_with_one(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
            path = pathlib.Path(folder) / "tenon.ops.rope.rope.gfx942.s"
            path.write_text("\t.text\n", encoding="utf-8")
            self.assertEqual(check_isa.main([str(path)]), 1)
            self.assertIn("no kernel was emitted", said.getvalue())

    def test_every_expected_kernel_is_looked_for(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tenon.ops.fused_allreduce_rmsnorm_quant.one_shot.gfx950.s"
            path.write_text(source(), encoding="utf-8")
            _, kernels, _ = check_isa.check(str(path))
        found = list(check_isa.missing(kernels))
        self.assertEqual(sum("there is no two_shot_kernel" in each for each in found), 1, found)
        self.assertEqual(sum("there is no one_shot_kernel" in each for each in found), 0, found)


if __name__ == "__main__":
    unittest.main()
