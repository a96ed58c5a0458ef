// Reading a row of logits as ordered candidates: keys, counting selection and sums of mass.
// Everything that is added is an integer, so the number of threads never shows in a result.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET::sampling {

inline constexpr int kThreads = kWave == 1 ? 1 : 256;

// A row of logits that lies in slices: id = slice · width + column.
struct LogitRow {
  const float* logits;
  std::int64_t slice_stride;
  std::int32_t width, num_tokens;
};

// Unsigned integers in the order of the floats; both zeros are one value. A candidate's key is
// above kNoKey, which is the key of −infinity; NaN gets kNoKey as well.
inline constexpr std::uint32_t kNoKey = 0x007fffffu;
TENON_DEVICE std::uint32_t key_of(float logit) {
  const std::uint32_t bits = float_bits(logit + 0.0f);  // −0 becomes +0
  const std::uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return is_nan(logit) ? kNoKey : key;
}
TENON_DEVICE float logit_of(std::uint32_t key) {
  return bits_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Calls visit(id, key) for the ids that are this thread's when order does not matter.
template <class Visit>
TENON_DEVICE void visit_any_order(const LogitRow& row, Visit visit) {
  const float* slice = row.logits;
  for (std::int32_t begin = 0; begin < row.num_tokens; begin += row.width) {
    const std::int32_t left = row.num_tokens - begin;
    const std::int32_t columns = left < row.width ? left : row.width;
    for (std::int32_t i = thread_id(); i < columns; i += block_threads())
      visit(begin + i, key_of(slice[i]));
    slice += row.slice_stride;
    if (left <= row.width) break;
  }
}

// Calls visit(id, key) for a range of neighbouring ids, in order; thread t has the t-th range.
template <class Visit>
TENON_DEVICE void visit_in_order(const LogitRow& row, Visit visit) {
  const std::int64_t share = (row.num_tokens - 1) / block_threads() + 1;
  const std::int64_t end = share * (thread_id() + 1);
  const std::int64_t last = end < row.num_tokens ? end : row.num_tokens;
  for (std::int64_t id = share * thread_id(); id < last;) {  // slice by slice
    const std::int64_t slice = id / row.width, column = id - slice * row.width;
    const std::int64_t count = last - id < row.width - column ? last - id : row.width - column;
    const float* logits = row.logits + slice * row.slice_stride + column;
    for (std::int64_t i = 0; i < count; ++i)
      visit(static_cast<std::int32_t>(id + i), key_of(logits[i]));
    id += count;
  }
}

template <class T>
TENON_DEVICE T block_max_of(T value) {
  return block_reduce(value, T{0}, [](T a, T b) { return a > b ? a : b; });
}
TENON_DEVICE std::uint32_t block_count(std::uint32_t value) {
  return block_reduce(value, 0u, [](std::uint32_t a, std::uint32_t b) { return a + b; });
}

// The sum over all threads, and over those before this one.
template <class T>
struct Scan {
  T before, total;
};
template <class T>
TENON_DEVICE Scan<T> block_scan(T value) {
  TENON_SHARED(T, of_thread, kThreads);
  sync_block();  // the readers of an earlier call are done
  of_thread[thread_id()] = value;
  sync_block();
  Scan<T> scan{0, 0};
  for (int t = 0; t < block_threads(); ++t) {
    if (t < thread_id()) scan.before += of_thread[t];
    scan.total += of_thread[t];
  }
  return scan;
}

// The first candidates in order: all with a key above `key`, and the first `ties` with that key.
struct Cut {
  std::uint32_t key, ties;
};

// The cut that keeps n candidates; there are at least n, and n >= 1. Finds the n-th largest key
// byte by byte, from a histogram of the keys that agree in the bytes above.
TENON_DEVICE Cut keep_first(const LogitRow& row, std::uint32_t n) {
  TENON_SHARED(std::uint32_t, histogram, 256);
  Cut cut{0, n};
  for (int shift = 24; shift >= 0; shift -= 8) {
    sync_block();
    for (int i = thread_id(); i < 256; i += block_threads()) histogram[i] = 0;
    sync_block();
    visit_any_order(row, [&](std::int32_t, std::uint32_t key) {
      const bool agrees = (std::uint64_t{key} >> (shift + 8)) == cut.key;
      if (agrees && key > kNoKey) atomic_add(&histogram[key >> shift & 255u], 1u);
    });
    sync_block();
    int byte = 255;
    while (byte > 0 && histogram[byte] < cut.ties) cut.ties -= histogram[byte--];
    cut.key = cut.key << 8 | static_cast<std::uint32_t>(byte);
  }
  return cut;
}

// The id of the n-th candidate (from 1) with this key; −1 if there are fewer.
TENON_DEVICE std::int32_t nth_with_key(const LogitRow& row, std::uint32_t wanted, std::uint32_t n) {
  std::uint32_t mine = 0;
  visit_in_order(row, [&](std::int32_t, std::uint32_t key) { mine += key == wanted ? 1u : 0u; });
  std::uint32_t seen = block_scan(mine).before;
  std::uint32_t found = 0;
  visit_in_order(row, [&](std::int32_t id, std::uint32_t key) {
    if (key == wanted && ++seen == n) found = static_cast<std::uint32_t>(id) + 1u;
  });
  return static_cast<std::int32_t>(block_max_of(found)) - 1;
}

// What turns keys into masses.
struct Weighing {
  std::uint32_t largest;  // key
  float temperature;
};
TENON_DEVICE std::uint64_t mass_of(const Weighing& weighing, std::uint32_t key) {
  if (key == weighing.largest) return std::uint64_t{1} << 40;
  const float x = (logit_of(key) - logit_of(weighing.largest)) / weighing.temperature;
  return static_cast<std::uint64_t>(exp_f(x) * 0x1p40f);
}

// Mass of all candidates with a key of at least `least`.
TENON_DEVICE std::uint64_t mass_from(const LogitRow& row, const Weighing& weighing,
                                     std::uint32_t least) {
  std::uint64_t mass = 0;
  visit_any_order(row, [&](std::int32_t, std::uint32_t key) {
    if (key >= least && key > kNoKey) mass += mass_of(weighing, key);
  });
  return block_scan(mass).total;
}

}  // namespace tenon::TENON_TARGET::sampling
