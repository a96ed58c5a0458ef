// Everything between the q/k/v projections and attention, in one pass: head norm of q and k, rotary
// embedding of the first rotary_dim components (pairs i, i + rotary_dim / 2), and the write of k
// and v into the paged cache.
//   q̂ = rne(q · rstd(q) · (norm_offset + q_norm));  rotated in fp32 with fp32 cos and sin, rounded
//   once
// A head's result has the same bits on every target and whatever stands in the other rows. Padding
// rows may hold any position: one outside the table is read as position 0.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::rope {

extern const Op kOp;

inline constexpr int kMaxHeadDim = 256;

struct Args {
  TensorView q;               // [tokens, q_heads, head_dim] bf16; token and head strides free
  TensorView k, v;            // [tokens, kv_heads, head_dim] bf16; token and head strides free
  TensorView q_norm, k_norm;  // [head_dim] bf16 or f32, both of one type
  float eps = 1e-6f;
  float norm_offset = 1;        // added to the weights of q_norm and k_norm, in fp32
  TensorView positions;         // i32 [tokens]
  TensorView cos_sin;           // f32 [max positions, rotary_dim]: rotary_dim/2 cosines, then sines
  TensorView slot_mapping;      // i32 [tokens]: block · block_tokens + offset; −1 writes nothing
  TensorView q_out;             // [tokens, q_heads, head_dim] bf16, contiguous
  TensorView k_cache, v_cache;  // [blocks, block_tokens, kv_heads, head_dim] bf16, contiguous
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::rope
