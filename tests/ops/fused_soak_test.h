// What fused_soak_test.cu hands to fused_soak_test.cc for each target: kernels that put a batch of
// calls back to its start, delay a stream, and compare what the calls wrote.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/device/runtime.h"

namespace tenon::fused_soak_test {

inline constexpr int kMaxPicks = 4;  // calls of a batch
inline constexpr std::uint8_t kPoison = 0xa5;

// The tensors that a call writes.
enum Tensor : int { kResidual, kNorm, kCodes, kScales, kNumTensors };

// One of them with all that lies between and behind its rows, in vectors of 16 bytes.
struct Region {
  std::byte* found;
  const std::byte* expected;
  const std::byte* source;         // what it holds before a call; null: anything
  const std::uint8_t* is_foreign;  // [rows + 1], or null: not this rank's where sharded
  std::int32_t vectors, stride;    // bytes from row to row
};

// The first byte that differs, and how many do.
struct Report {
  std::uint32_t mismatches;
  std::uint32_t call, index, tensor, offset, found, expected;
};

// Of one rank, in its device's memory.
struct State {
  Report report;
  std::uint32_t calls;    // prepared so far
  std::uint32_t batches;  // checked so far
  std::uint32_t delays;   // random words used by `delay`
  std::uint32_t seed;
};

struct BatchArgs {
  const Region* regions;  // [cases][kNumTensors]
  State* state;
  std::uint32_t delay_ns;  // the most
  std::int32_t num_picks, slices;
  std::uint16_t picks[kMaxPicks];  // cases
  std::uint8_t sharded[kMaxPicks];
};
struct DelayArgs {
  State* state;
  std::uint32_t delay_ns;  // the most
};
struct SpoilArgs {
  std::byte* at;
};

struct Kernels {
  void (*prepare)(BatchArgs);  // kNumTensors · num_picks · slices blocks
  void (*check)(BatchArgs);    // the same
  void (*delay)(DelayArgs);    // one thread
  void (*spoil)(SpoilArgs);    // one thread
};

}  // namespace tenon::fused_soak_test
