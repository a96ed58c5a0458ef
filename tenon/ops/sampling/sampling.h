// Draws one token per row from logits that lie in vocabulary slices, identically on every rank.
//   temperature 0: the largest logit, lowest id on ties. Otherwise: logits / temperature, the top_k
//   largest, the smallest set of those whose probability reaches top_p, one draw from that set with
//   a uniform number that is a pure function of (seed, position).
// Exactly, so that every target and rank draws the same token: candidates are ordered by (logit
// descending, id ascending); a candidate's mass is floor(2^40 · exp((logit − largest) /
// temperature)); masses are added as integers. Kept is the shortest prefix whose mass reaches
// ceil(top_p · total) (top_p cut to 24 binary places, at least one candidate). Drawn is the first
// candidate whose prefix has more mass than floor(kept mass · r / 2^64), where r is 64 bits of
// Philox4x32-10 with key `seed` and counter `position`. NaN and −infinity are no candidates. A row
// without any gets the token −1: the caller makes that an error. Temperatures that are not above 0
// are greedy; a top_k below 1 and a top_p that is not below 1 mean all.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::sampling {

extern const Op kOp;

struct Args {
  TensorView logits;            // f32 [slices, rows, slice width]: id = slice · width + column
  std::int32_t num_tokens = 0;  // ids at or past this have no token and are never drawn
  TensorView temperature;       // f32 [rows]; 0 is greedy
  TensorView top_k;             // i32 [rows]; 0 means all
  TensorView top_p;             // f32 [rows]; 1 means all
  TensorView seed;              // i64 [rows]
  TensorView position;          // i32 [rows]: of the token being drawn
  TensorView out;               // i32 [rows]
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::sampling
