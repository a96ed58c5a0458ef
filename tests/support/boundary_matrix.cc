#include "tests/support/boundary_matrix.h"
#include "tenon/reference/compare.h"
#include "tenon/reference/inputs.h"
#include "tests/support/second_oracle.h"
#include "tests/support/sizes.h"

#include <atomic>
#include <cstdlib>
#include <thread>

namespace tenon::test {
namespace {

constexpr int kHiddens[] = {128, 256, 640, 2048, 2560, 2880, 4096, 5120, 8192, 16384};
constexpr int kRows[] = {0, 1, 2, 3, 7, 16, 17, 64, 65, 300};
constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                    ScaleLayout::kUe8m0Packed};

// A thinned run takes each hidden size and each row count several times, small ones often.
bool is_in_thinned(int rows, int hidden, int mix, int team, Pace pace) {
  const int elements = hidden * rows;
  if (is_small_run() && mix % 5 != team % 5) return false;
  if (pace == Pace::kFast)
    return elements <= 2048 || (elements <= 20'000 && mix % 3 == 0) ||
           (elements <= 100'000 && mix % 13 == 0);
  if (hidden <= 256 && rows <= 3) return mix % 2 == 0;
  return (elements <= 6000 && mix % 5 == 0) || (rows == 1 && mix % 8 == team % 8);
}

void add_cell(int team, int rows, int hidden, int mix, Pace pace, std::vector<FusedCase>& cases) {
  const int elements = hidden * rows;
  if (!whole_matrix()) {
    if (is_in_thinned(rows, hidden, mix, team, pace))
      cases.push_back(mixed_case(team, rows, hidden, mix));
    return;
  }
  const bool is_fast = pace == Pace::kFast;
  if (elements <= (is_fast ? 20'000 : 2'000)) {
    for (FusedCase each : every_output(team, rows, hidden)) cases.push_back(each);
  } else if (is_fast || elements <= 700'000) {
    cases.push_back(mixed_case(team, rows, hidden, mix));
  }
}

}  // namespace

bool whole_matrix() { return std::getenv("TEST_FULL") != nullptr; }

Pace pace_of(Target target) {
  return is_host(target) && target != Target::kCpu ? Pace::kEmulated : Pace::kFast;
}

FusedCase mixed_case(int team, int rows, int hidden, int mix) {
  FusedCase fused_case;
  reference::BoundaryCase& shape = fused_case.shape;
  shape.team = team;
  shape.rows = rows;
  shape.hidden = hidden;
  const int outputs = mix % 3;
  shape.want_bf16 = outputs != 1;
  shape.want_fp8 = outputs != 0;
  shape.layout = kLayouts[(mix / 3) % 3];
  shape.fp8 = (mix / 2) % 2 == 0 ? DType::kE4M3 : DType::kE4M3Fnuz;
  shape.dtype = (mix / 5) % 3 == 2 ? DType::kF16 : DType::kBF16;
  shape.weight_dtype = (mix / 7) % 2 == 0 ? shape.dtype : DType::kF32;
  shape.offset = (mix / 4) % 2 == 0 ? 1.0f : 0.0f;
  shape.fresh_residual = mix % 11 == 10;
  constexpr int kGroups[] = {128, 32, 256, 64};
  shape.group = kGroups[(mix / 6) % 4];
  while (hidden % shape.group != 0) shape.group /= 2;
  fused_case.spread_residual = mix % 13 > 8;
  fused_case.seed = static_cast<std::uint64_t>(mix);
  return fused_case;
}

std::vector<FusedCase> boundary_matrix(int team, Pace pace) {
  std::vector<FusedCase> cases;
  int mix = pace == Pace::kFast ? team * 31 : team * 17 + 3;
  for (int hidden : kHiddens)
    for (int rows : kRows) add_cell(team, rows, hidden, ++mix, pace, cases);
  return cases;
}

std::vector<FusedCase> every_output(int team, int rows, int hidden) {
  std::vector<FusedCase> cases;
  int n = -1;
  for (int outputs = 0; outputs < 3; ++outputs) {
    for (ScaleLayout layout : kLayouts) {
      for (DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
        for (DType dtype : {DType::kBF16, DType::kF16}) {
          const bool wants_fp8 = outputs != 0;  // without it, layouts and kinds mean nothing
          if (!wants_fp8 && (layout != ScaleLayout::kRow || fp8 != DType::kE4M3)) continue;
          ++n;
          if (is_small_run() && n % 5 != team % 5) continue;
          FusedCase one = mixed_case(team, rows, hidden, n + team);
          one.shape.want_bf16 = outputs != 1;
          one.shape.want_fp8 = wants_fp8;
          one.shape.layout = layout;
          one.shape.fp8 = fp8;
          one.shape.dtype = dtype;
          if (one.shape.weight_dtype != DType::kF32) one.shape.weight_dtype = dtype;
          one.shape.group = n % 2 == 0 && hidden % 128 == 0 ? 128 : 32;
          one.gap = n % 4 == 1 ? 32 : 0;
          cases.push_back(one);
        }
      }
    }
  }
  return cases;
}

std::vector<Judged> judge(const std::vector<FusedCase>& cases) {
  std::vector<Judged> judged(cases.size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < cases.size(); i = next++) {
      const FusedCase& each = cases[i];
      Judged& one = judged[i];
      one = {each, reference::make_inputs(each.shape, each.seed), {}};
      one.expected = reference::boundary(each.shape, one.inputs);
      // The second oracle is slow: large cases only in the whole matrix, and there one in four.
      const int elements = each.shape.rows * each.shape.hidden;
      if (elements > 2'000 && !(whole_matrix() && elements <= 200'000 && i % 4 == 0)) continue;
      const std::string apart =
          difference(each.shape, one.expected, second_oracle(each.shape, one.inputs));
      TENON_CHECK(apart.empty());
    }
  };
  std::vector<std::thread> helpers;
  for (unsigned n = 1; n < std::thread::hardware_concurrency(); ++n) helpers.emplace_back(work);
  work();
  for (std::thread& each : helpers) each.join();
  return judged;
}

}  // namespace tenon::test
