// Draws one token per row from logits that lie in vocabulary slices, identically wherever it runs.
//   Single logits are edited first: biases, penalties of what was said before; then ids that the
//   row's mask leaves out become no candidates. Then, temperature 0: the largest logit, lowest id
//   on ties. Otherwise: logits / temperature, the top_k largest, those
//   of them that are at least min_p as likely as the likeliest, the smallest set of those whose
//   probability reaches top_p, one draw from that set with a uniform number that is a pure function
//   of (seed, position). A report tells of the logits as they were before the edits
//   and the mask.
// Exactly, so that every target and rank draws the same token: candidates are ordered by (logit
// descending, id ascending); a candidate's mass is floor(2^40 · exp((logit − largest) /
// temperature)); masses are added as integers. Of the first top_k, those stay whose mass is at
// least 2^16 · floor(2^24 · min_p). Kept is the shortest prefix of them whose mass reaches
// ceil(top_p · total) (top_p cut to 24 binary places, at least one candidate). Drawn is the first
// candidate whose prefix has more mass than floor(kept mass · r / 2^64), where r is 64 bits of
// Philox4x32-10 with key `seed` and counter `position`. NaN and −infinity are no candidates. A row
// without any gets the token −1: the caller makes that an error. Temperatures that are not above 0
// are greedy; a top_k below 1, a top_p that is not below 1 and a min_p that is not above 0 mean
// all.
//
// An edit of a logit l, each operation rounded to f32: l + bias; where the token was said at all,
// l / repetition if that is above 0, else l · repetition; l − frequency · (times it was drawn);
// where it was drawn at least once, l − presence.
#pragma once

#include <optional>

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"
#include "tenon/ops/sampling/edit.h"

namespace tenon::sampling {

extern const Op kOp;

struct Edits {
  TensorView list;    // i32 [edits, 3], each row an Edit; an id at most once for each row of logits
  TensorView begins;  // i32 [rows + 1]: row r has the edits [begins[r], begins[r + 1])
  TensorView repetition, frequency, presence;  // f32 [rows]; neutral are 1, 0, 0
  TensorView saved;                            // f32 [edits]: scratch
};

// Which ids a row may draw.
struct Mask {
  TensorView allowed;  // i32 [masks, words], words · 32 >= num_tokens: bit id % 32 of word id / 32
  TensorView which;    // i32 [rows]: the row's mask; below 0: all ids
};

// The probability of a listed id is 2^40 · exp(logit − largest) / mass, of all ids below num_tokens
// at temperature 1.
struct Report {
  TensorView wanted;   // i32 [rows]: how many ids to list, at most kMaxLikely; below 0: no report
  TensorView drawn;    // f32 [rows]: the logit of the token drawn
  TensorView largest;  // f32 [rows]
  TensorView mass;     // i64 [rows]: the sum of all candidates' masses at temperature 1
  TensorView ids;      // i32 [rows, kMaxLikely]: the first candidates; −1 where there are fewer
  TensorView logits;   // f32 [rows, kMaxLikely]: theirs
  // i32 [rows]: where given, `drawn` is of these ids, 0 … num_tokens − 1, instead of those drawn.
  std::optional<TensorView> given = {};
  // i32 [rows]: beside `given`: how many candidates come before the given id in the order of
  // candidates, all of them where its logit is none; −1 where the row has no candidates.
  std::optional<TensorView> before = {};
};

struct Args {
  TensorView logits;            // f32 [slices, rows, slice width]: id = slice · width + column
  std::int32_t num_tokens = 0;  // ids at or past this have no token and are never drawn
  TensorView temperature;       // f32 [rows]; 0 is greedy
  TensorView top_k;             // i32 [rows]; 0 means all
  TensorView top_p;             // f32 [rows]; 1 means all
  TensorView seed;              // i64 [rows]
  TensorView position;          // i32 [rows]: of the token being drawn
  TensorView out;               // i32 [rows]
  std::optional<TensorView> min_p = {};  // f32 [rows]; 0 means all
  std::optional<Edits> edits = {};       // logits are written to, and are as they were afterwards
  std::optional<Mask> mask = {};
  std::optional<Report> report = {};
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::sampling
