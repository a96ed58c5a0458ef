#include "apps/bench/inputs.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numbers>
#include <numeric>
#include <thread>

#include "tenon/core/fp8.h"
#include "tenon/core/thread.h"

namespace tenon::apps {
namespace {

// SplitMix64's finaliser: neighbouring numbers give unrelated ones.
constexpr std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t kAddends = 0x1234, kResidual = 0x5678, kWeight = 0x9abc, kOutlier = 0xdef0;
std::uint64_t draw(std::uint64_t stream, std::uint64_t place) {
  return mix(stream * 0x9e3779b97f4a7c15u + place);
}

// Bits of ±[1, 2) · 2^exponent with a random sign and mantissa.
struct Format {
  bool bf16;
  int largest;  // exponent of the parts that cancel
  std::uint16_t number(std::uint64_t random, int exponent) const {
    const auto sign = static_cast<unsigned>(random >> 63) << 15;
    const auto bits = static_cast<unsigned>(random >> 40);
    const auto field = static_cast<unsigned>(exponent + (bf16 ? 127 : 15));
    return static_cast<std::uint16_t>(
        sign | (bf16 ? field << 7 | (bits & 0x7fu) : field << 10 | (bits & 0x3ffu)));
  }
};
Format format_of(DType dtype) {
  const bool bf16 = dtype == DType::kBF16;
  return {bf16, bf16 ? 24 : 14};
}

// Box and Muller's.
float normal(std::uint64_t random) {
  const double radius = (static_cast<double>(random >> 32) + 1) * 0x1p-32;
  const double angle = static_cast<double>(random & 0xffffffffu) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2 * std::log(radius)) *
                            std::cos(2 * std::numbers::pi * angle));
}

// Half of the elements have +V on one rank and −V on another beside numbers of several sizes, so
// that what survives depends on when V comes and goes.
std::uint16_t cancelling_at(const Format& format, std::uint64_t place, unsigned team,
                            unsigned rank) {
  const std::uint64_t all = draw(kAddends, place);
  const bool cancels = team > 1 && (all & 1u) != 0;
  if (cancels) {
    const auto plus = static_cast<unsigned>(all >> 8 & 0xffffu) * team >> 16;
    const auto step = static_cast<unsigned>(all >> 24 & 0xffu) * (team - 1) >> 8;
    const std::uint16_t large =
        format.number(all, format.largest - static_cast<int>(all >> 4 & 3u));
    if (rank == plus) return large;
    if (rank == (plus + 1 + step) % team) return large ^ 0x8000u;
    if (!format.bf16) return format.number(mix(all + rank), -14);  // lost beside V also in fp32
  }
  const std::uint64_t own = mix(all + 1 + rank);
  return format.number(own, -static_cast<int>(own & 3u));
}

std::uint16_t addend_at(const Format& format, Inputs inputs, std::uint64_t place, unsigned column,
                        unsigned team, unsigned rank) {
  if (inputs == Inputs::kCancelling) return cancelling_at(format, place, team, rank);
  const bool is_outlier = inputs == Inputs::kOutliers && draw(kOutlier, column) % 128 == 0;
  const float value = normal(mix(draw(kAddends, place) + rank)) * (is_outlier ? 64.0f : 1.0f);
  return format.bf16 ? to_bf16(value).bits : to_f16(value).bits;
}

std::uint16_t residual_at(const Format& format, std::uint64_t place) {
  const std::uint64_t own = draw(kResidual, place);
  return format.number(own, -static_cast<int>(own & 3u));
}

int spare_threads(int sharers) {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / sharers);
}

template <class At>
std::vector<std::uint16_t> make_rows(Shape shape, int threads, At at) {
  const auto hidden = static_cast<std::size_t>(shape.hidden);
  std::vector<std::uint16_t> values(static_cast<std::size_t>(shape.rows) * hidden);
  in_parallel(shape.rows, threads, [&](int begin, int end) {
    const std::size_t last = static_cast<std::size_t>(end) * hidden;
    for (std::size_t i = static_cast<std::size_t>(begin) * hidden; i < last; ++i) values[i] = at(i);
  });
  return values;
}

// Rows that are checked. The step between them shares no factor with the team, so that rows of
// every owner are among them.
std::vector<int> rows_to_check(Shape shape, int team) {
  std::vector<int> rows;
  const std::int64_t elements = std::int64_t{shape.rows} * shape.hidden;
  int step = 1;
  if (elements > kFullCheck) step = static_cast<int>((4 * elements + kFullCheck - 1) / kFullCheck);
  while (std::gcd(step, team) != 1) ++step;
  for (int row = 0; row < shape.rows; row += step) rows.push_back(row);
  if (rows.back() != shape.rows - 1) rows.push_back(shape.rows - 1);
  return rows;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void in_parallel(int count, int threads, const std::function<void(int begin, int end)>& work) {
  threads = std::clamp(threads, 1, std::max(count, 1));
  std::vector<Thread> helpers;
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(threads));
  const auto begin_of = [&](int part) {
    return static_cast<int>(std::int64_t{count} * part / threads);
  };
  const auto run_part = [&](int part) {
    try {
      work(begin_of(part), begin_of(part + 1));
    } catch (...) {  // a thread must not throw: its caller does
      failures[static_cast<std::size_t>(part)] = std::current_exception();
    }
  };
  for (int part = 1; part < threads; ++part) {
    auto helper =
        start_thread("tenon inputs " + std::to_string(part), [&, part] { run_part(part); });
    if (helper) helpers.push_back(*std::move(helper));
    if (!helper) run_part(part);  // slower, not wrong
  }
  run_part(0);
  for (Thread& each : helpers) each.join();
  for (const std::exception_ptr& each : failures)
    if (each) std::rethrow_exception(each);
}

std::vector<std::uint16_t> make_addend(Shape shape, DType dtype, Inputs inputs, int team,
                                       int rank) {
  const Format format = format_of(dtype);
  const auto hidden = static_cast<std::size_t>(shape.hidden);
  return make_rows(shape, spare_threads(team), [=](std::size_t place) {
    return addend_at(format, inputs, place, static_cast<unsigned>(place % hidden),
                     static_cast<unsigned>(team), static_cast<unsigned>(rank));
  });
}

std::vector<std::uint16_t> make_residual(Shape shape, DType dtype) {
  const Format format = format_of(dtype);
  return make_rows(shape, spare_threads(2),
                   [=](std::size_t place) { return residual_at(format, place); });
}

std::vector<std::uint16_t> make_weight(int hidden, DType dtype) {
  const Format format = format_of(dtype);
  std::vector<std::uint16_t> weight;
  for (int k = 0; k < hidden; ++k) {
    const std::uint64_t own = draw(kWeight, static_cast<std::uint64_t>(k));
    weight.push_back(format.number(own, -2 - static_cast<int>(own & 7u)));
  }
  return weight;
}

Oracle make_oracle(Shape shape, DType dtype, Inputs kind, int team) {
  Oracle oracle;
  oracle.rows = rows_to_check(shape, team);
  oracle.shape.rows = static_cast<int>(oracle.rows.size());
  oracle.shape.hidden = shape.hidden;
  oracle.shape.team = team;
  oracle.shape.dtype = oracle.shape.weight_dtype = dtype;
  const Format format = format_of(dtype);
  const std::vector<std::uint16_t> weight = make_weight(shape.hidden, dtype);
  const int threads = std::min(spare_threads(1), oracle.shape.rows);
  std::vector<reference::BoundaryOutputs> parts(oracle.rows.size());
  in_parallel(oracle.shape.rows, threads, [&](int begin, int end) {
    reference::BoundaryCase one = oracle.shape;
    one.rows = 1;
    reference::BoundaryInputs inputs;
    inputs.weight.assign(weight.begin(), weight.end());
    inputs.addends.resize(static_cast<std::size_t>(team));
    for (int i = begin; i < end; ++i) {
      const auto first = static_cast<std::uint64_t>(oracle.rows[static_cast<std::size_t>(i)]) *
                         static_cast<std::uint64_t>(shape.hidden);
      for (auto& each : inputs.addends) each.clear();
      inputs.residual.clear();
      for (std::uint64_t k = 0; k < static_cast<std::uint64_t>(shape.hidden); ++k) {
        for (unsigned rank = 0; rank < static_cast<unsigned>(team); ++rank)
          inputs.addends[rank].push_back(addend_at(format, kind, first + k,
                                                   static_cast<unsigned>(k),
                                                   static_cast<unsigned>(team), rank));
        inputs.residual.push_back(residual_at(format, first + k));
      }
      parts[static_cast<std::size_t>(i)] = reference::boundary(one, inputs);
    }
  });
  for (const reference::BoundaryOutputs& part : parts) {
    append(oracle.expected.residual, part.residual);
    append(oracle.expected.norm, part.norm);
    append(oracle.expected.codes, part.codes);
    append(oracle.expected.scales, part.scales);
  }
  return oracle;
}

}  // namespace tenon::apps
