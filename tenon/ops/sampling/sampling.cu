// Sampling: one block per row. The first kMaxListed candidates are sorted in shared memory and
// nearly always hold the answer; past them, the answer is searched for bit by bit in the whole row.
#include "tenon/ops/sampling/sampling.h"

#include "tenon/device/variant.h"
#include "tenon/ops/sampling/philox.cuh"
#include "tenon/ops/sampling/select.cuh"

namespace tenon::TENON_TARGET::sampling {
namespace {

using Args = tenon::sampling::Args;

inline constexpr int kMaxListed = 256;

struct Sample {
  const float* logits = nullptr;
  const float* temperature = nullptr;
  const std::int32_t* top_k = nullptr;
  const float* top_p = nullptr;
  const std::int64_t* seed = nullptr;
  const std::int32_t* position = nullptr;
  std::int32_t* out = nullptr;
  std::int64_t slice_stride = 0, row_stride = 0;  // elements
  std::int32_t rows = 0, width = 0, num_tokens = 0;
};

// The first candidates in order, and the mass of each prefix. In shared memory.
struct List {
  std::uint32_t* keys;
  std::int32_t* ids;
  std::uint64_t* prefix_mass;
  int size;
};

// Writes the candidates of `cut`, list.size of them, in no particular order.
TENON_DEVICE void collect(const LogitRow& row, Cut cut, const List& list) {
  std::uint32_t above = 0, equal = 0;
  visit_in_order(row, [&](std::int32_t, std::uint32_t key) {
    above += key > cut.key ? 1u : 0u;
    equal += key == cut.key ? 1u : 0u;
  });
  const Scan<std::uint32_t> scan_above = block_scan(above);
  std::uint32_t at_above = scan_above.before, at_equal = block_scan(equal).before;
  visit_in_order(row, [&](std::int32_t id, std::uint32_t key) {
    const bool tie = key == cut.key && at_equal++ < cut.ties;
    if (key <= cut.key && !tie) return;
    const std::uint32_t at = tie ? scan_above.total + at_equal - 1 : at_above++;
    list.keys[at] = key;
    list.ids[at] = id;
  });
  sync_block();
}

// Sorts by (key descending, id ascending): an entry's place is the number of entries before it.
TENON_DEVICE void sort(const List& from, const List& to) {
  for (int i = thread_id(); i < from.size; i += block_threads()) {
    int place = 0;
    for (int j = 0; j < from.size; ++j) {
      const bool tie = from.keys[j] == from.keys[i];
      place += from.keys[j] > from.keys[i] || (tie && from.ids[j] < from.ids[i]) ? 1 : 0;
    }
    to.keys[place] = from.keys[i];
    to.ids[place] = from.ids[i];
  }
  sync_block();
}

TENON_DEVICE void add_masses(const Weighing& weighing, const List& list) {
  for (int i = thread_id(); i < list.size; i += block_threads())
    list.prefix_mass[i] = mass_of(weighing, list.keys[i]);
  sync_block();
  if (thread_id() == 0)
    for (int i = 1; i < list.size; ++i) list.prefix_mass[i] += list.prefix_mass[i - 1];
  sync_block();
}

// A candidate and the mass of the prefix that ends with it.
struct Place {
  std::int32_t id;
  std::uint64_t prefix_mass;
};

// The first candidate whose prefix has at least `target` mass; all have at least that together.
TENON_DEVICE Place find(const LogitRow& row, const Weighing& weighing, const List& list,
                        std::uint64_t target) {
  if (list.prefix_mass[list.size - 1] >= target) {
    int at = 0;
    while (list.prefix_mass[at] < target) ++at;
    return {list.ids[at], list.prefix_mass[at]};
  }
  // The largest key such that the candidates from it on have enough mass.
  std::uint32_t key = 0;
  for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
    if (mass_from(row, weighing, key | bit) >= target) key |= bit;
  const std::uint64_t above = mass_from(row, weighing, key + 1);  // the target lies above it
  const std::uint64_t each = mass_of(weighing, key);
  const std::uint64_t ties = (target - above - 1) / each + 1;
  const auto nth = static_cast<std::uint32_t>(ties);
  return {nth_with_key(row, key, nth), above + ties * each};
}

// Mass of the first `kept` of `count` candidates.
TENON_DEVICE std::uint64_t total_mass(const LogitRow& row, const Weighing& weighing,
                                      const List& list, std::uint32_t kept, std::uint32_t count) {
  if (kept == static_cast<std::uint32_t>(list.size)) return list.prefix_mass[list.size - 1];
  if (kept == count) return mass_from(row, weighing, 0);
  const Cut cut = keep_first(row, kept);
  return mass_from(row, weighing, cut.key + 1) + cut.ties * mass_of(weighing, cut.key);
}

// ceil(total · top_p), at least 1.
TENON_DEVICE std::uint64_t share_of(std::uint64_t total, float top_p) {
  if (!(top_p < 1.0f)) return total;
  if (!(top_p > 0.0f)) return 1;
  const auto p = static_cast<std::uint64_t>(top_p * 0x1p24f);
  const std::uint64_t low = (total & 0xffffffu) * p;
  const std::uint64_t share = (total >> 24) * p + (low >> 24) + ((low & 0xffffffu) != 0 ? 1 : 0);
  return share > 0 ? share : 1;
}

TENON_KERNEL sample_kernel(Sample sample) {
  TENON_SHARED(std::uint32_t, keys, 2 * kMaxListed);
  TENON_SHARED(std::int32_t, ids, 2 * kMaxListed);
  TENON_SHARED(std::uint64_t, prefix_mass, kMaxListed);
  const int r = block_id();
  if (r >= sample.rows) return;  // the plan was made for more
  const LogitRow row{sample.logits + r * sample.row_stride, sample.slice_stride, sample.width,
                     sample.num_tokens};

  // Phase 1: the largest logit and the number of candidates.
  std::uint32_t largest = kNoKey, mine = 0;
  visit_any_order(row, [&](std::int32_t, std::uint32_t key) {
    largest = key > largest ? key : largest;
    mine += key > kNoKey ? 1u : 0u;
  });
  largest = block_max_of(largest);
  const std::uint32_t count = block_count(mine);
  if (count == 0 || !(sample.temperature[r] > 0.0f)) {  // the same answer on every thread
    const std::int32_t id = count == 0 ? -1 : nth_with_key(row, largest, 1);
    if (thread_id() == 0) sample.out[r] = id;
    return;
  }

  // Phase 2: the first candidates, sorted.
  const std::int32_t top_k = sample.top_k[r];
  const std::uint32_t limit = static_cast<std::uint32_t>(top_k);
  const std::uint32_t kept = top_k >= 1 && limit < count ? limit : count;
  const int size = kept < kMaxListed ? static_cast<int>(kept) : kMaxListed;
  const Weighing weighing{largest, sample.temperature[r]};
  const List found{keys + kMaxListed, ids + kMaxListed, nullptr, size};
  const List list{keys, ids, prefix_mass, size};
  collect(row, keep_first(row, static_cast<std::uint32_t>(size)), found);
  sort(found, list);
  add_masses(weighing, list);

  // Phase 3: the kept mass, and the candidate that a random part of it ends in.
  const std::uint64_t total = total_mass(row, weighing, list, kept, count);
  const std::uint64_t share = share_of(total, sample.top_p[r]);
  const std::uint64_t kept_mass =
      share == total ? total : find(row, weighing, list, share).prefix_mass;
  const std::uint64_t random = tenon::sampling::random_bits(sample.seed[r], sample.position[r]);
  const std::uint64_t target = tenon::sampling::multiply_high(random, kept_mass) + 1;
  const Place drawn = find(row, weighing, list, target);
  if (thread_id() == 0) sample.out[r] = drawn.id;
}

Status supports_rows(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.out.shape[0]);
  shape.threads = kThreads;
  recipe->launch("sample_kernel", shape);
  return Status::ok();
}

Status launch_rows(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  Sample sample;
  sample.logits = args.logits.as<const float>();
  sample.temperature = args.temperature.as<const float>();
  sample.top_k = args.top_k.as<const std::int32_t>();
  sample.top_p = args.top_p.as<const float>();
  sample.seed = args.seed.as<const std::int64_t>();
  sample.position = args.position.as<const std::int32_t>();
  sample.out = args.out.as<std::int32_t>();
  sample.slice_stride = args.logits.stride[0];
  sample.row_stride = args.logits.stride[1];
  sample.rows = static_cast<std::int32_t>(args.out.shape[0]);
  sample.width = static_cast<std::int32_t>(args.logits.shape[2]);
  sample.num_tokens = args.num_tokens;
  return tenon::launch(stream, recipe.launches.front().shape, sample_kernel, sample);
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports_rows, launch_rows);

}  // namespace tenon::TENON_TARGET::sampling
