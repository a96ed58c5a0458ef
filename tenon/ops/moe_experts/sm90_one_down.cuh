// The second kernel of moe_experts on Hopper for one token, where all that a block multiplies fits
// in shared memory beside a block of the first kernel: it lies there before that has ended, and
// what is left to do behind the wait is one short chain.
//
// A block has 16 columns of the output for all entries. Rows of the operand with 64 rows of the
// instruction are atoms of eight columns in one block of k, in the order [entry, half, block of k];
// so an instruction multiplies a unit in several blocks of k at once, or several units. Row
// entry · blocks + block of the other operand is the activation of that entry in that block. A
// product counts where row and column have the same entry and block. Those meet in shared memory,
// where a thread for each entry and column scales them and one wave adds them, in the order of
// sm90.cuh.
#pragma once

#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_experts/sm90_chosen.cuh"
#include "tenon/ops/moe_experts/sm90_down.cuh"

namespace tenon::TENON_TARGET::moe_experts {

inline constexpr int kOneDownGroups = 4;                                     // warpgroups
inline constexpr int kOneDownThreads = kOneDownGroups * kConsumers + kWave;  // the last wave asks
inline constexpr int kOneDownTeams = kOneDownThreads / 8;  // eight lanes quantise a group
inline constexpr int kOneDownBlocks = 8;                   // of k, at most
inline constexpr int kMostEntries = kMostChoices + 1;
inline constexpr int kAtomBytes = 8 * kProductBlock, kAtoms = 8;  // of the operand

struct OneDownCall {
  Weight weight;  // in boxes of a unit with all of k
  const std::int32_t *list, *slot;
  const float *weights, *shared_gate;
  const bf16* activation;
  std::int64_t activation_stride;
  bf16* out;
  std::int32_t top_k, entries;  // at most
  std::int32_t block_shift;     // 2 to that power are the blocks of k
  std::uint32_t last_blocks;    // bit b: block b of k is the last one of its segment
  bool has_shared;
};

// Where things lie in shared memory, in bytes.
struct OneDownShared {
  int x, products, values, scales, list, weights, slots, barrier, bytes;
};
TENON_HD constexpr OneDownShared one_down_shared(int entries, int blocks, int top_k) {
  const auto up = [](int value, int to) { return (value + to - 1) / to * to; };
  OneDownShared at{};
  at.x = up(2 * entries * blocks, kAtoms) * kAtomBytes;
  at.products = at.x + up(entries * blocks, 8) * kProductBlock;
  at.values = at.products + up(2 * entries * blocks, kAtoms) * 8 * 4;
  at.scales = at.values + entries * kUnitRows * 4;
  at.list = at.scales + table_bytes(entries * blocks);
  at.weights = at.list + table_bytes(list_words(top_k));
  at.slots = at.weights + table_bytes(top_k);
  at.barrier = at.slots + table_bytes(top_k);
  at.bytes = at.barrier + 16;
  return at;
}

// Groups of 128 of the activation, group entry · blocks + block in a row of the operand: eight
// lanes take one, 16 elements each, and every kOneDownTeams-th one. Where in the activation the
// elements of this lane begin:
TENON_DEVICE int group_at(const OneDownCall& call, int group) {
  const int blocks = 1 << call.block_shift, stride = static_cast<int>(call.activation_stride);
  return (group >> call.block_shift) * stride + (group & (blocks - 1)) * kProductBlock +
         thread_id() % 8 * 16;
}
// Before the wait: the scales of the weight, each for the thread that will multiply it.
TENON_DEVICE void load_group_scales(const OneDownCall& call, const Entries& entries,
                                    float* scales) {
  const int blocks = 1 << call.block_shift, groups = entries.count << call.block_shift;
  if (thread_id() % 8 != 0) return;
  TENON_NO_UNROLL
  for (int group = thread_id() / 8; group < groups; group += kOneDownTeams)
    scales[group] =
        load_constant(weight_scale_at(call.weight, entries.expert[group >> call.block_shift],
                                      block_id() * kUnitRows, group & (blocks - 1)));
}
// from: group_at() of the first one.
TENON_DEVICE void quantize_groups(const OneDownCall& call, int groups, int from, std::byte* x,
                                  float* scales) {
  const int lane = thread_id() % 8;
  // All lanes of a wave take part; a wave has four groups in a row.
  int group = thread_id() / 8;
  TENON_NO_UNROLL
  for (int first = thread_id() / kWave * 4; first < groups; first += kOneDownTeams) {
    Word4 held[2] = {};
    if (group < groups) {
      held[0] = load16(call.activation + from);
      held[1] = load16(call.activation + from + 8);
    }
    std::uint32_t most = larger(absmax_bits<1>(&held[0]), absmax_bits<1>(&held[1]));
    TENON_UNROLL
    for (int mask = 1; mask < 8; mask *= 2) most = larger(most, shuffle_xor(most, mask));
    if (group < groups) {
      const GroupScale scale =
          group_scale(to_float(bf16{static_cast<std::uint16_t>(most)}), DType::kE4M3);
      std::byte* const to = x + group / 8 * 1024 + tile_place(group % 8, lane);
      encode<bf16, DType::kE4M3, 1>(&held[0], scale.multiplier, to);
      encode<bf16, DType::kE4M3, 1>(&held[1], scale.multiplier, to + 8);
      if (lane == 0) scales[group] = scale.scale * scales[group];
    }
    group += kOneDownTeams;
    from = group_at(call, group);
  }
  show_to_tensor_cores();
}

// Instructions of the warpgroups in turn: number i of warpgroup g has atoms 32 i + 8 g to
// 32 i + 8 g + 7, and the rows of its products lie in atom 2 i + g / 2 of the activation. What a
// thread needs to know is the same for all of its instructions, and known before the wait.
struct OneProducts {
  int count;  // of instructions
  // Of half h of the instruction's rows for this warp: where the products that count go, those of
  // the next instruction kFloats behind; the column is odd, and it is this lane's.
  static constexpr int kFloats = kOneDownGroups * kAtoms * 8;
  int to[2];
  bool is_odd[2], is_own[2];
};
TENON_DEVICE OneProducts find_products(const OneDownCall& call, int entries) {
  const int shift = call.block_shift, lane = thread_id() % kWave;
  const int all = ((2 * entries << shift) + kAtoms - 1) / kAtoms;
  const int group = thread_id() / kConsumers;
  OneProducts found;
  found.count = (all - group + kOneDownGroups - 1) / kOneDownGroups;
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int atom = group * kAtoms + 2 * (thread_id() / kWave % kUnits) + h;
    const int unit_half = atom >> shift, block = atom & ((1 << shift) - 1);
    const int column = ((unit_half / 2 << shift) + block) % 8;
    found.to[h] = ((unit_half * 8 + lane / 4) << shift) + block;
    found.is_odd[h] = column % 2 != 0;
    found.is_own[h] = lane % 4 == column / 2;
  }
  return found;
}

// kChains of them from number `first` on.
template <int kChains>
TENON_DEVICE void multiply_atoms(const OneProducts& of, std::uint64_t weight, std::uint64_t x,
                                 int first, float* to) {
  constexpr int kWeight = kOneDownGroups * kAtoms * kAtomBytes / 16;
  constexpr int kX = kOneDownGroups / 2 * kAtomBytes / 16;
  float products[kChains][4] = {};
  // Values that the whole warp has: see sm90/wgmma.cuh.
  const int group = thread_id() / kConsumers;
  const int at = shuffle_from(group * (kWeight / kOneDownGroups) + first * kWeight, 0);
  const int x_at = shuffle_from(group / 2 * (kAtomBytes / 16) + first * kX, 0);
  const std::uint64_t of_weight = descriptor_at(weight, at), of_x = descriptor_at(x, x_at);
  wgmma_begin();
  TENON_UNROLL
  for (int k = 0; k < 4; ++k) {
    TENON_UNROLL
    for (int i = 0; i < kChains; ++i)
      add_product<8>(products[i], descriptor_step(of_weight, i * kWeight + 2 * k),
                     descriptor_step(of_x, i * kX + 2 * k), k > 0);
  }
  wgmma_commit();
  wgmma_wait_all();
  TENON_UNROLL
  for (int i = 0; i < kChains; ++i) hold_sums(products[i]);
  TENON_UNROLL
  for (int i = 0; i < kChains; ++i) {
    TENON_UNROLL
    for (int h = 0; h < 2; ++h)
      if (of.is_own[h])
        to[of.to[h] + (first + i) * OneProducts::kFloats] =
            of.is_odd[h] ? products[i][2 * h + 1] : products[i][2 * h];
  }
}

// By the warpgroups: the products of all atoms, [entry, 16 columns, block of k], and of atoms
// that do not exist behind them.
TENON_DEVICE void multiply_entries(const OneProducts& of, std::byte* shared, std::byte* x,
                                   float* to) {
  constexpr int kMost = 3;  // chains at once
  const std::uint64_t weight_at = tile_descriptor(shared), x_at = tile_descriptor(x);
  TENON_NO_UNROLL
  for (int first = 0; first < of.count; first += kMost) {
    const int left = of.count - first;
    if (left == 1) {
      multiply_atoms<1>(of, weight_at, x_at, first, to);
    } else if (left == 2) {
      multiply_atoms<2>(of, weight_at, x_at, first, to);
    } else {
      multiply_atoms<kMost>(of, weight_at, x_at, first, to);
    }
  }
}

// The result of an entry in a column, rounded to bf16.
TENON_DEVICE float scale_products(const OneDownCall& call, const float* products,
                                  const float* scales) {
  float whole = 0.0f, own = 0.0f;
  bool is_first = true;  // segment
  TENON_NO_UNROLL
  for (int block = 0; block < 1 << call.block_shift; ++block) {
    own = fma_f(products[block], scales[block], own);
    if ((call.last_blocks >> block & 1u) == 0) continue;
    whole = is_first ? own : whole + own;
    own = 0.0f;
    is_first = false;
  }
  return low_half<bf16>(pack_halves<bf16>(whole, 0.0f));
}

// What the wave that adds knows when the products are there: lane l of column l % 16.
struct OneChoices {
  int at[kMostChoices];  // where the value lies; negative: another rank's, or none
  float weight[kMostChoices];
};
TENON_DEVICE OneChoices find_choices(const OneDownCall& call, const int* slots,
                                     const float* weights) {
  OneChoices found;
  TENON_UNROLL
  for (int k = 0; k < kMostChoices; ++k) {
    const int slot = k < call.top_k ? slots[k] : -1;
    found.at[k] = slot >= 0 ? slot * kUnitRows + thread_id() % kUnitRows : -1;
    found.weight[k] = k < call.top_k ? weights[k] : 0.0f;
  }
  return found;
}
// The order of moe_combine: choices in theirs, the shared expert last.
TENON_DEVICE float add_entries(const OneDownCall& call, const OneChoices& choices,
                               const Entries& entries, const float* values, float of_shared) {
  float sum = 0.0f, value[kMostChoices];
  TENON_UNROLL
  for (int k = 0; k < kMostChoices; ++k)
    value[k] = choices.at[k] >= 0 ? values[choices.at[k]] : 0.0f;
  const int shared = (entries.count - 1) * kUnitRows + thread_id() % kUnitRows;
  const float of_it = call.has_shared ? values[shared] : 0.0f;
  TENON_UNROLL
  for (int k = 0; k < kMostChoices; ++k)
    if (choices.at[k] >= 0) sum = sum + choices.weight[k] * value[k];
  return sum + of_shared * of_it;
}

// By a wave: `words` of four bytes, one a lane. It is there after await_copies() and sync_block().
TENON_DEVICE void copy_row(std::byte* to, const void* from, int words) {
  const int lane = thread_id() % kWave;
  if (lane < words) copy4_later(to + 4 * lane, static_cast<const std::byte*>(from) + 4 * lane);
}

TENON_KERNEL_RESIDENT(kOneDownThreads, 1)
down_one_kernel(TENON_ARGS(OneDownCall) call) {
  TENON_SHARED_TILES(shared);
  const int blocks = 1 << call.block_shift, thread = thread_id(), lane = thread % kWave;
  const OneDownShared at = one_down_shared(call.entries, blocks, call.top_k);
  std::byte* const x = shared + at.x;
  auto* const products = reinterpret_cast<float*>(shared + at.products);
  auto* const scales = reinterpret_cast<float*>(shared + at.scales);
  auto* const values = reinterpret_cast<float*>(shared + at.values);
  auto* const full = reinterpret_cast<Mbarrier*>(shared + at.barrier);
  const bool asks = thread / kWave == kOneDownGroups * kUnits;
  // Before it waits: the first kernel has left it before it let this one start.
  copy_table(shared + at.list, call.list, list_words(call.top_k));
  if (thread == 0) {
    barrier_init(full, 1);
    publish_barriers();
    prefetch_map(&call.weight.routed);
    prefetch_map(&call.weight.shared);
  }
  await_copies();
  sync_block();
  const Entries entries =
      listed_entries(reinterpret_cast<const int*>(shared + at.list), call.top_k);
  if (asks) {
    const int unit_bytes = kUnitRows * kProductBlock << call.block_shift;
    if (lane == 0)
      barrier_arrive_expect(full, static_cast<std::uint32_t>(entries.count * unit_bytes));
    sync_wave();
    if (lane < entries.count) {
      const int expert = entries.expert[lane], row = block_id() * kUnitRows;
      const bool is_shared = expert == kSharedExpert;
      copy_box<8>(shared + lane * unit_bytes, is_shared ? &call.weight.shared : &call.weight.routed,
                  row + (is_shared ? 0 : expert * call.weight.expert_rows), 0, full,
                  policy_evict_first());
    }
  }
  OneProducts of = find_products(call, entries.count);
  int own_group = group_at(call, thread / 8);
  // Of the threads of an entry and a column: its products.
  const int entry = thread / kUnitRows;
  int own_products = thread << call.block_shift, own_scales = entry << call.block_shift;
  hold(of.count), hold(of.to[0]), hold(of.to[1]);
  hold(own_products), hold(own_scales), hold(own_group);
  // Behind the above: the compiler moves nothing over a loop to where it is used.
  load_group_scales(call, entries, scales);
  wait_for_previous();
  if (thread == 0) let_next_start();
  float of_shared = 0.0f;
  if (asks) {
    of_shared = *call.shared_gate;
    copy_row(shared + at.weights, call.weights, call.top_k);
    copy_row(shared + at.slots, call.slot, call.top_k);
  }
  quantize_groups(call, entries.count << call.block_shift, own_group, x, scales);
  sync_block();
  OneChoices choices;
  if (asks) {
    await_copies();
    sync_wave();
    of_shared = sigmoid_f(of_shared);
    choices = find_choices(call, reinterpret_cast<const int*>(shared + at.slots),
                           reinterpret_cast<const float*>(shared + at.weights));
  } else {
    barrier_wait(full, 0);
    multiply_entries(of, shared, x, products);
  }
  sync_block();
  if (entry < entries.count)
    values[thread] = scale_products(call, products + own_products, scales + own_scales);
  sync_block();
  if (asks && lane < kUnitRows) {
    const float sum = add_entries(call, choices, entries, values, of_shared);
    call.out[block_id() * kUnitRows + lane] =
        bf16{static_cast<std::uint16_t>(pack_halves<bf16>(sum, 0.0f))};
  }
}

}  // namespace tenon::TENON_TARGET::moe_experts
