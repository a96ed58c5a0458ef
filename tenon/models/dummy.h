// Weights that are made instead of read, so that a model runs from its config alone. An element is
// a function of the seed, the tensor's name and the element's place in the whole tensor: every team
// makes slices of the same model. Integers and single multiplications make it, so that any target
// can make the same bits. Not here: which tensors a model has (its folder).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tenon/core/dtype.h"
#include "tenon/models/load_format.h"
#include "tenon/models/weights.h"

namespace tenon {

// Root mean square of the e4m3 codes that are made: a weight's is this times its scale.
float made_code_rms();

// One tensor to make. Elements are uniform between center − spread and center + spread; those of
// e4m3 are codes of random sign and exponent below 2, and the scales beside them say the size.
struct TensorRecipe {
  std::string name;
  DType dtype = DType::kBF16;  // bf16, f32 or e4m3
  std::vector<std::int64_t> shape;
  float center = 0, spread = 1;
  // Rows have sizes of their own: most about 0.6 of what spread says, few up to 4 times as much.
  // As a router, such rows choose some experts often and others hardly ever.
  bool skewed_rows = false;
};

// The spread of uniform numbers around zero of which `in` products add up to about 1.
float unit_spread(std::int64_t in);

// The tensors of these recipes, whose names differ.
Weights made_weights(const std::vector<TensorRecipe>& recipes, std::uint64_t seed);

// The tensors that `from` asks for: those of the files in `directory`, or those that `recipes`
// says, which is called for nothing else.
Result<Weights> open_weights(const std::string& directory, const WeightsFrom& from,
                             const std::function<std::vector<TensorRecipe>()>& recipes);

}  // namespace tenon
