// Group quantisation of an activation that does not come from a boundary, after an optional
// prologue; steps 9 and 10 of docs/boundary.md on the rounded value.
//   kNone:    t = in                              in [rows, width]
//   kSiluMul: t = rne(silu(gate) · up)            in [rows, 2 · width]: gate first, then up
//   out.bf16 = t;  out.fp8 = quantise(t)
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::fp8_quant {

extern const Op kOp;

enum class Prologue : std::uint8_t { kNone, kSiluMul };

struct Args {
  TensorView in;  // bf16 or f16; rows may be strided
  Prologue prologue = Prologue::kNone;
  const std::int32_t* row_limit = nullptr;  // device; rows at or past *row_limit are left alone
  NormedRows out;  // [rows, width]: bf16 (only with a prologue), fp8, or both
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::fp8_quant
