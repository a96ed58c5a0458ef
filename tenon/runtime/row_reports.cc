#include "tenon/runtime/row_reports.h"

#include <cmath>
#include <limits>

namespace tenon {

static_assert(kMaxLogprobs == sampling::kMaxLikely);

// Mass, drawn, largest, before, then what is listed.
std::size_t report_bytes(std::size_t most) {
  return most * (sizeof(std::int64_t) + 2 * sizeof(float) + sizeof(std::int32_t) +
                 kMaxLogprobs * (sizeof(std::int32_t) + sizeof(float)));
}

sampling::Report reports_at(void* base, Device device, std::int64_t most, std::int64_t first,
                            std::int64_t rows) {
  auto* at = static_cast<std::byte*>(base);
  const auto next = [&](DType dtype, std::int64_t columns) {
    const std::int64_t row_bytes = columns * static_cast<std::int64_t>(size_of(dtype));
    void* here = at + first * row_bytes;
    at += most * row_bytes;
    return columns == 1 ? view(here, dtype, device, {rows})
                        : view(here, dtype, device, {rows, columns});
  };
  sampling::Report made;
  made.mass = next(DType::kI64, 1);
  made.drawn = next(DType::kF32, 1);
  made.largest = next(DType::kF32, 1);
  made.before = next(DType::kI32, 1);
  made.ids = next(DType::kI32, kMaxLogprobs);
  made.logits = next(DType::kF32, kMaxLogprobs);
  return made;
}

TokenLogprobs told_by(const sampling::Report& report, std::int64_t row) {
  const double largest = report.largest.as<const float>()[row];
  const double mass =
      std::ldexp(static_cast<double>(report.mass.as<const std::int64_t>()[row]), -40);
  const auto logprob = [&](float logit) {
    if (!(mass > 0) || std::isnan(logit)) return -std::numeric_limits<float>::infinity();
    return static_cast<float>(double{logit} - largest - std::log(mass));
  };
  TokenLogprobs made;
  made.drawn = logprob(report.drawn.as<const float>()[row]);
  const auto* ids = report.ids.as<const std::int32_t>() + row * kMaxLogprobs;
  const auto* logits = report.logits.as<const float>() + row * kMaxLogprobs;
  for (int i = 0; i < kMaxLogprobs && ids[i] >= 0; ++i)
    made.likeliest.emplace_back(ids[i], logprob(logits[i]));
  return made;
}

}  // namespace tenon
