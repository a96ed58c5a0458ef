#include "tests/ops/fused_soak_test.h"

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET::fused_soak_test {

using namespace tenon::fused_soak_test;

// A random word of each number (Wellons' lowbias32).
TENON_DEVICE std::uint32_t scrambled(std::uint32_t word) {
  word = (word ^ (word >> 16)) * 0x7feb352du;
  word = (word ^ (word >> 15)) * 0x846ca68bu;
  return word ^ (word >> 16);
}

TENON_DEVICE void spin(std::uint32_t ns) {
  const std::uint64_t begin = ticks();
  while (ticks() - begin < ns) pause();
}

// Each block has one tensor of one call, or a slice of it.
struct Task {
  int pick, tensor, slice;
};
TENON_DEVICE Task own_task(const BatchArgs& args) {
  const int pair = block_id() / args.slices;
  return {pair / kNumTensors, pair % kNumTensors, block_id() % args.slices};
}
TENON_DEVICE Region region_of(const BatchArgs& args, Task task) {
  return args.regions[args.picks[task.pick] * kNumTensors + task.tensor];
}

// body(i) for the vectors of this thread.
template <class Body>
TENON_DEVICE void for_slice(const BatchArgs& args, const Region& region, Task task, Body body) {
  for (int i = task.slice * block_threads() + thread_id(); i < region.vectors;
       i += args.slices * block_threads())
    body(i);
}

// Residuals get their start values, outputs are poisoned every other time, and one batch of eight
// starts late. The check of a batch counts it, so all blocks here read the same number.
TENON_KERNEL prepare_kernel(TENON_ARGS(BatchArgs) args) {
  const std::uint32_t word = scrambled(args.state->batches * 2u + args.state->seed);
  const Task task = own_task(args);
  const Region region = region_of(args, task);
  if (region.source != nullptr) {
    for_slice(args, region, task,
              [&](int i) { store16(region.found + i * 16, load16(region.source + i * 16)); });
  } else if (word >> 31 != 0) {
    constexpr std::uint32_t kWord = kPoison * 0x01010101u;
    for_slice(args, region, task, [&](int i) {
      store16(region.found + i * 16, {kWord, kWord, kWord, kWord});
    });
  }
  if (block_id() != 0 || thread_id() != 0) return;
  args.state->calls += static_cast<std::uint32_t>(args.num_picks);
  if (word % 8 == 0 && args.delay_ns != 0) spin(word / 8 % args.delay_ns);
}

TENON_DEVICE bool same(Word4 a, Word4 b) {
  return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}

TENON_DEVICE void note_bytes(const BatchArgs& args, const Region& region, Task task, int begin) {
  const auto* const found = reinterpret_cast<const std::uint8_t*>(region.found);
  const auto* const expected = reinterpret_cast<const std::uint8_t*>(region.expected);
  Report& report = args.state->report;
  for (int at = begin; at < begin + 16; ++at) {
    if (found[at] == expected[at] || atomic_add(&report.mismatches, 1u) != 0) continue;
    report.call = args.state->calls - static_cast<std::uint32_t>(args.num_picks - task.pick);
    report.index = args.picks[task.pick];
    report.tensor = static_cast<std::uint32_t>(task.tensor);
    report.offset = static_cast<std::uint32_t>(at);
    report.found = found[at];
    report.expected = expected[at];
  }
}

TENON_KERNEL check_kernel(TENON_ARGS(BatchArgs) args) {
  const Task task = own_task(args);
  const Region region = region_of(args, task);
  const bool sharded = args.sharded[task.pick] != 0 && region.is_foreign != nullptr;
  for_slice(args, region, task, [&](int i) {
    if (same(load16(region.found + i * 16), load16(region.expected + i * 16))) return;
    if (sharded && region.is_foreign[i * 16 / region.stride] != 0) return;
    note_bytes(args, region, task, i * 16);
  });
  if (block_id() == 0 && thread_id() == 0) args.state->batches += 1;
}

TENON_KERNEL delay_kernel(DelayArgs args) {
  if (thread_id() != 0) return;
  const std::uint32_t word = scrambled(args.state->delays++ * 2u + 1u + args.state->seed);
  if (args.delay_ns != 0) spin(word % args.delay_ns);
}

TENON_KERNEL spoil_kernel(SpoilArgs args) {
  if (thread_id() == 0) *args.at ^= std::byte{1};
}

extern const Kernels kernels;
const Kernels kernels = {&prepare_kernel, &check_kernel, &delay_kernel, &spoil_kernel};

}  // namespace tenon::TENON_TARGET::fused_soak_test
