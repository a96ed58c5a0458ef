// How the mailbox is cut for a call: pure arithmetic that plan, run and tests share. Host only.
// Not here: the rules of the exchange (comm/device/exchange.cuh).
#pragma once

#include <algorithm>
#include <cstdint>

#include "tenon/comm/device/channel_view.h"

namespace tenon::fused_allreduce_rmsnorm_quant {

// A slot is as large as its longest call wants, but no larger than this, or than what keeps all
// blocks at work, whichever is more.
inline constexpr std::int64_t kWantedSlotBytes = std::int64_t{14} << 20;  // three are 42 MiB

// Where the spare bytes of a packed row begin that has `vectors` of 8 elements: at a multiple of 8.
TENON_HD constexpr int rest_offset(int vectors) { return (vectors + 1) / 2 * 24; }

// Bytes that a slot keeps for a row of 16-bit elements (wire.cuh), such as one rank's part of a
// row, and for an owner's result. Multiples of 16.
constexpr std::int64_t row_bytes(std::int64_t hidden, bool packs) {
  const std::int64_t vectors = hidden / 8;
  if (!packs) return vectors * 16;
  return (rest_offset(static_cast<int>(vectors)) + vectors * 8 + 15) / 16 * 16;
}
constexpr std::int64_t result_bytes(std::int64_t hidden, bool packs, bool spreads_fp8,
                                    std::int64_t groups, bool spreads_residual) {
  const std::int64_t row = row_bytes(hidden, packs);
  return (spreads_fp8 ? hidden + (groups + 3) / 4 * 16 : row) + (spreads_residual ? row : 0);
}

// Bytes that such a row takes of the link, at least.
constexpr std::int64_t row_link_bytes(std::int64_t hidden, bool packs) {
  return hidden / 8 * (packs ? 12 : 16);
}

// Offsets are counted in vectors of 16 bytes, which 31 bits of any mailbox that fits a device
// reach.
inline constexpr std::int64_t kUnit = 16;
constexpr std::int64_t slot_units(std::size_t mailbox_bytes) {
  return static_cast<std::int64_t>(slot_bytes(mailbox_bytes)) / kUnit;
}

// What a slot holds of one stripe of a two_shot call, in units: a part from each peer, and a result
// of each.
struct StripeUnits {
  std::int64_t parts, results;
  constexpr std::int64_t all() const { return parts + results; }
};
constexpr StripeUnits stripe_units(std::int64_t hidden, bool packs, bool spreads_fp8,
                                   std::int64_t groups, bool spreads_residual, int team_size) {
  const std::int64_t peers = team_size - 1;
  return {row_bytes(hidden, packs) / kUnit * peers,
          result_bytes(hidden, packs, spreads_fp8, groups, spreads_residual) / kUnit * peers};
}

// one_shot_split. Into how many blocks it splits a row of `hidden` elements where there is room: 2,
// 4 or 8, as few as have few threads each, on devices and where they are emulated, or as many as
// leave whole waves; 0 where even two would not have a vector for every lane of theirs.
inline constexpr int kFewSplitThreads = 160, kFewEmulatedThreads = 64;
inline constexpr int kMaxSplitVectors = 1024, kMaxSplitThreads = kMaxSplitVectors / 2;
constexpr int most_blocks_of_split(std::int64_t hidden, bool emulated) {
  constexpr std::int64_t kWaveOfClusters = 32;
  const std::int64_t vectors = hidden / 8, few = emulated ? kFewEmulatedThreads : kFewSplitThreads;
  if (hidden % 8 != 0 || vectors > kMaxSplitVectors) return 0;
  int split = 0;
  for (int blocks = 2; blocks <= 8; blocks *= 2) {
    if (vectors % (blocks * kWaveOfClusters) != 0) break;
    split = blocks;
    if (vectors / blocks <= few) break;
  }
  return split;
}

// Blocks of a call of `rows` rows that are split into so many each: beside the clusters of its rows
// it has one for the notes.
constexpr std::int64_t blocks_of_split(std::int64_t rows, int split) { return (rows + 1) * split; }

// The same for a call of `rows` rows where `most` blocks are resident together: fewer, larger ones
// where the call has many rows, and 0 where even two would be too many.
constexpr int split_of(std::int64_t hidden, std::int64_t rows, std::int64_t most, bool emulated) {
  int split = most_blocks_of_split(hidden, emulated);
  while (split > 1 && blocks_of_split(rows, split) > most) split /= 2;
  return split > 1 ? split : 0;
}

// Blocks of a row of `hidden` elements that are resident together on one multiprocessor, at most.
constexpr std::int64_t resident_blocks(std::int64_t hidden) {
  constexpr std::int64_t kThreads = 1024;  // whose registers a multiprocessor has
  return std::clamp<std::int64_t>(kThreads / std::max<std::int64_t>(hidden / 8, 1), 1,
                                  kMaxBlocksPerUnit);
}

// Blocks on one multiprocessor, of `resident`, for two_shot calls with more stripes than blocks. In
// teams of more than two ranks half of them are faster: each block then has more steps in a row, of
// which the first and the last use the links one way only. Four H100s, hidden 4096, 4096 rows: 130
// us instead of 147; of two ranks all are as fast or faster.
constexpr std::int64_t blocks_of_long_calls(std::int64_t resident, int team_size) {
  return team_size > 2 ? (resident + 1) / 2 : resident;
}

// How many rows each of `blocks` blocks has of a two_shot call, and how many it may have before it
// has stripes instead: fewer than those, so that it owns one row at most. Not for teams of three
// and four, whose times of stripes were measured; those of rows were not yet.
constexpr std::int64_t rows_each(std::int64_t rows, std::int64_t blocks) {
  return blocks > 0 ? (rows + blocks - 1) / blocks : 0;
}
constexpr std::int64_t most_rows_each(int team_size) { return team_size > 4 ? 4 : 1; }

// How many blocks, of `blocks` at most, do `stripes` stripes of which a slot holds `fit`: all of
// them where one generation does; otherwise each has kLeastSteps or more in every generation.
constexpr std::int64_t working_blocks(std::int64_t blocks, std::int64_t stripes, std::int64_t fit,
                                      int least_steps = kLeastSteps) {
  if (stripes <= fit) return blocks;
  return std::max<std::int64_t>(std::min(blocks, fit / least_steps), 1);
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
