// Where a step's reports of sampled rows lie, and what they tell.
#pragma once

#include <cstddef>

#include "tenon/core/tensor.h"
#include "tenon/ops/sampling/sampling.h"
#include "tenon/runtime/sampling_params.h"

namespace tenon {

// Bytes of the reports of `most` rows.
std::size_t report_bytes(std::size_t most);

// The reports of rows [first, first + rows) among `most`, whose arrays begin at `base`: each array
// has its place, however many rows are used. Without `wanted` and `given`.
sampling::Report reports_at(void* base, Device device, std::int64_t most, std::int64_t first,
                            std::int64_t rows);

// What the report of row `row` tells, of arrays in host memory; of a given token its rank is in
// `before`.
TokenLogprobs told_by(const sampling::Report& report, std::int64_t row);

}  // namespace tenon
