// Inputs of a boundary that show what is wrong with a kernel: parts that cancel, so that the order
// of the sum shows; numbers at the ends of every format; words that mean something to the exchange.
#pragma once

#include <cstdint>

#include "tenon/reference/boundary.h"

namespace tenon::reference {

// What fills a row. Kinds follow each other from row to row, so few rows show many.
enum class RowKind : std::uint8_t {
  kPlain,     // sums that depend on their order: large parts that cancel around small ones
  kConstant,  // every sum the same: groups of equal codes, the largest of them all
  kTiny,      // denormals and zeros of both signs
  kInfinite,  // an infinity here and there
  kNan,       // NaNs here and there, whole words of the sentinel among them
  kZero,      // all zeros, of both signs
  kNear,  // sizes that pack on the wire, up to both ends of what does and beyond them; and signs
          // and mantissas that would be the sentinel there
};
inline constexpr int kNumRowKinds = 7;

// Deterministic in (shape, seed). Row i is of kind (i + seed) % kNumRowKinds unless `plain`; the
// weight has one infinity and one NaN, in different groups, unless `plain`.
BoundaryInputs make_inputs(const BoundaryCase& shape, std::uint64_t seed, bool plain = false);

// How many elements of y (step 2) change when the sum starts at rank `first` instead of 0.
int order_sensitive_elements(const BoundaryCase& shape, const BoundaryInputs& inputs, int first);

}  // namespace tenon::reference
