// What the ops that norm or quantise rows accept, said once: shapes, types, strides, alignment and
// device of their tensors, and that a plan fits a call. Where all is well nothing here allocates or
// touches a device, so run() can afford it.
// Not here: what one op alone reads.
#pragma once

#include <string_view>

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"

namespace tenon {

// The most a norm takes: its block holds a whole row.
inline constexpr std::int64_t kMaxNormedRows = 8192;
inline constexpr std::int64_t kMaxNormedHidden = 16384;

// A tensor whose rows kernels move 16 bytes at a time: last dimension dense, rows on `device`
// starting at multiples of 16 bytes. Zero rows are always fine.
Status check_wide_rows(std::string_view what, const TensorView& tensor, Device device);

// `out` as [rows, hidden] of `dtype` and / or fp8 with scales, bound to the names in `dims`.
Status check_normed_rows(const NormedRows& out, DType dtype, Device device, Dims& dims);

// The extents bound to "rows" and "hidden": hidden a multiple of 8, both within their limits.
Status check_extents(const Dims& dims, std::int64_t max_rows, std::int64_t max_hidden);

// The tensors of a norm: `rows` [rows, hidden] bf16 or f16, `residual` of the same shape and type,
// `weight` [hidden] of that type or f32, and `out`; all of them wide rows on one device.
struct NormTensors {
  std::string_view name;  // of `rows`, in messages
  const TensorView &rows, &residual, &weight;
  const NormedRows& out;
};
Status check_norm(const NormTensors& tensors);

// What is written (residual, out) shares no byte with another tensor, nor do its own rows. For
// run(): plans are made without memory. After check_norm().
Status check_apart(const NormTensors& tensors);

// `plan` is one of `op`, made for rows of this width and type, for so many rows or more and for
// teams of this size; and `stream` is on the device of `rows`.
Status check_plan(const Plan& plan, const Op& op, const TensorView& rows, int team_size,
                  const Stream& stream);

// Bytes that writing `out` takes.
double bytes_of(const NormedRows& out);

}  // namespace tenon
