// What the ops that write NormedRows accept, said once: shapes, types, alignment of the outputs.
// Not here: what each op reads.
#pragma once

#include <initializer_list>
#include <string_view>

#include "tenon/core/tensor.h"

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

// Bytes that writing `out` takes.
double bytes_of(const NormedRows& out);

}  // namespace tenon
