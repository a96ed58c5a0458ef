// What a boundary must give, written twice from docs/boundary.md (the arithmetic), and the inputs
// that tell one order of summation from another. Host code of its own: nothing here uses the codecs
// or kernels that it judges.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/core/tensor.h"

namespace tenon::testing {

// One boundary, apart from its numbers.
struct BoundaryCase {
  int rows = 1, hidden = 256, team = 2;
  DType dtype = DType::kBF16;         // of rows: bf16 or f16
  DType weight_dtype = DType::kBF16;  // that of rows, or f32
  float eps = 1e-6f, offset = 1.0f;
  bool fresh_residual = false;
  bool want_bf16 = true, want_fp8 = true;
  DType fp8 = DType::kE4M3;  // or kE4M3Fnuz
  int group = 128;
  ScaleLayout layout = ScaleLayout::kRow;
};
std::string describe(const BoundaryCase& shape);

// Bits of 16-bit elements, row-major; the weight as bits of its type in the low part.
struct BoundaryInputs {
  std::vector<std::vector<std::uint16_t>> addends;  // [team][rows × hidden]
  std::vector<std::uint16_t> residual;              // [rows × hidden]
  std::vector<std::uint32_t> weight;                // [hidden]
};

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

// Bits of everything a boundary writes. Scales as the bytes of their layout, padding included.
struct BoundaryOutputs {
  std::vector<std::uint16_t> residual, norm;  // [rows × hidden]
  std::vector<std::uint8_t> codes;            // [rows × hidden]
  std::vector<std::uint8_t> scales;
};

// The first formulation: fp32 arithmetic as it is written in the document, a padded tree, formats
// as grids of real numbers.
BoundaryOutputs boundary_oracle(const BoundaryCase& shape, const BoundaryInputs& inputs);

// The second: every fp32 operation done in double and rounded once (exact by the width of double),
// a recursive tree, formats as bits and tables.
BoundaryOutputs second_oracle(const BoundaryCase& shape, const BoundaryInputs& inputs);

// Steps 9 and 10 alone, of rows that are given: codes and scales of `rows`, by either formulation.
BoundaryOutputs quantize_oracle(const BoundaryCase& shape, const std::vector<std::uint16_t>& rows);

// How many elements of y (step 2) change when the sum starts at rank `first` instead of 0.
int order_sensitive_elements(const BoundaryCase& shape, const BoundaryInputs& inputs, int first);

// The first difference as a sentence, or nothing. NaNs of any bits are equal.
std::string difference(const BoundaryCase& shape, const BoundaryOutputs& expected,
                       const BoundaryOutputs& found);

// As above for one tensor; `what` names it. Rows for which skips(row) holds are not compared.
std::string difference16(const char* what, const BoundaryCase& shape,
                         const std::vector<std::uint16_t>& expected,
                         const std::vector<std::uint16_t>& found);

bool is_nan16(DType dtype, std::uint16_t bits);
bool is_nan8(DType fp8, std::uint8_t bits);

}  // namespace tenon::testing
