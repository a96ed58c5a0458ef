// Sampling: one block per row. It edits the row, draws, and puts back what it edited. The first
// kMaxListed candidates are sorted in shared memory and nearly always hold the answer; past them,
// the answer is searched for bit by bit in the whole row.
#include "tenon/ops/sampling/sampling.h"

#include "tenon/device/variant.h"
#include "tenon/ops/sampling/philox.cuh"
#include "tenon/ops/sampling/select.cuh"

namespace tenon::TENON_TARGET::sampling {
namespace {

using Args = tenon::sampling::Args;
using tenon::sampling::kMaxLikely;

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
  const float* min_p = nullptr;  // null: all rows have 0

  const tenon::sampling::Edit* edits = nullptr;  // null: no row has any
  const std::int32_t* begins = nullptr;
  const float *repetition = nullptr, *frequency = nullptr, *presence = nullptr;
  float* saved = nullptr;

  const std::int32_t* wanted = nullptr;  // null: no row wants a report
  float *drawn = nullptr, *largest = nullptr, *listed_logits = nullptr;
  std::int64_t* mass = nullptr;
  std::int32_t* listed_ids = nullptr;
};

TENON_DEVICE float edited(float logit, const tenon::sampling::Edit& edit, const Sample& sample,
                          int r) {
  logit = logit + edit.bias;
  if (edit.said == 0) return logit;
  const float repetition = sample.repetition[r];
  logit = logit > 0.0f ? logit / repetition : logit * repetition;
  logit = logit - sample.frequency[r] * static_cast<float>(edit.said >> 1);
  return edit.said > 1 ? logit - sample.presence[r] : logit;
}

// Calls visit(edit, its number, its logit) for those of row r that are this thread's.
template <class Visit>
TENON_DEVICE void visit_edits(const Sample& sample, int r, const LogitRow& row, Visit visit) {
  for (std::int32_t i = sample.begins[r] + thread_id(); i < sample.begins[r + 1];
       i += block_threads()) {
    const tenon::sampling::Edit edit = sample.edits[i];
    if (edit.id < 0 || edit.id >= row.num_tokens) continue;
    const std::int32_t slice = edit.id / row.width;
    visit(edit, i, const_cast<float*>(row.logits) + slice * row.slice_stride + edit.id % row.width);
  }
}

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

// The largest key, and the number of candidates.
struct Candidates {
  std::uint32_t largest, count;
};
TENON_DEVICE Candidates candidates(const LogitRow& row) {
  std::uint32_t largest = kNoKey, mine = 0;
  visit_any_order(row, [&](std::int32_t, std::uint32_t key) {
    largest = key > largest ? key : largest;
    mine += key > kNoKey ? 1u : 0u;
  });
  largest = block_max_of(largest);
  return {largest, block_count(mine)};
}

// How many candidates have at least this mass.
TENON_DEVICE std::uint32_t count_with_mass(const LogitRow& row, const Weighing& weighing,
                                           std::uint64_t least) {
  std::uint32_t mine = 0;
  visit_any_order(row, [&](std::int32_t, std::uint32_t key) {
    if (key > kNoKey && mass_of(weighing, key) >= least) ++mine;
  });
  return block_count(mine);
}

// Shared memory for lists.
struct Room {
  std::uint32_t* keys;         // [2, kMaxListed]
  std::int32_t* ids;           // [2, kMaxListed]
  std::uint64_t* prefix_mass;  // [kMaxListed]
};

// The first `size` candidates, sorted, without masses; size is at least 1.
TENON_DEVICE List first_of(const LogitRow& row, const Room& room, int size) {
  const List found{room.keys + kMaxListed, room.ids + kMaxListed, nullptr, size};
  const List list{room.keys, room.ids, room.prefix_mass, size};
  collect(row, keep_first(row, static_cast<std::uint32_t>(size)), found);
  sort(found, list);
  return list;
}

// The token of row r, the same on every thread.
TENON_DEVICE std::int32_t draw(const Sample& sample, int r, const LogitRow& row, const Room& room) {
  // Phase 1: the largest logit and the number of candidates.
  const auto [largest, count] = candidates(row);
  if (count == 0) return -1;
  if (!(sample.temperature[r] > 0.0f)) return nth_with_key(row, largest, 1);

  // Phase 2: the first candidates, sorted.
  const std::int32_t top_k = sample.top_k[r];
  const std::uint32_t limit = static_cast<std::uint32_t>(top_k);
  std::uint32_t kept = top_k >= 1 && limit < count ? limit : count;
  const Weighing weighing{largest, sample.temperature[r]};
  const float min_p = sample.min_p != nullptr ? sample.min_p[r] : 0.0f;
  if (min_p > 0.0f) {
    const auto share = static_cast<std::uint64_t>((min_p < 1.0f ? min_p : 1.0f) * 0x1p24f);
    const std::uint32_t likely = count_with_mass(row, weighing, share << 16);
    kept = likely < kept ? likely : kept;
  }
  const int size = kept < kMaxListed ? static_cast<int>(kept) : kMaxListed;
  const List list = first_of(row, room, size);
  add_masses(weighing, list);

  // Phase 3: the kept mass, and the candidate that a random part of it ends in.
  const std::uint64_t total = total_mass(row, weighing, list, kept, count);
  const std::uint64_t share = share_of(total, sample.top_p[r]);
  const std::uint64_t kept_mass =
      share == total ? total : find(row, weighing, list, share).prefix_mass;
  const std::uint64_t random = tenon::sampling::random_bits(sample.seed[r], sample.position[r]);
  const std::uint64_t target = tenon::sampling::multiply_high(random, kept_mass) + 1;
  return find(row, weighing, list, target).id;
}

TENON_DEVICE void report(const Sample& sample, int r, const LogitRow& row, const Room& room,
                         std::int32_t drawn) {
  const auto [largest, count] = candidates(row);
  const std::uint64_t mass = count > 0 ? mass_from(row, Weighing{largest, 1.0f}, 0) : 0;
  const int wanted = sample.wanted[r] < kMaxLikely ? sample.wanted[r] : kMaxLikely;
  const int size = static_cast<int>(count) < wanted ? static_cast<int>(count) : wanted;
  sync_block();  // the readers of the draw's list are done
  if (size > 0) first_of(row, room, size);
  for (int i = thread_id(); i < kMaxLikely; i += block_threads()) {
    sample.listed_ids[r * kMaxLikely + i] = i < size ? room.ids[i] : -1;
    sample.listed_logits[r * kMaxLikely + i] = i < size ? logit_of(room.keys[i]) : 0.0f;
  }
  if (thread_id() != 0) return;
  sample.largest[r] = count > 0 ? logit_of(largest) : 0.0f;
  sample.mass[r] = static_cast<std::int64_t>(mass);
  const std::int32_t slice = drawn / row.width;
  sample.drawn[r] = drawn < 0 ? 0.0f : row.logits[slice * row.slice_stride + drawn % row.width];
}

TENON_KERNEL sample_kernel(Sample sample) {
  TENON_SHARED(std::uint32_t, keys, 2 * kMaxListed);
  TENON_SHARED(std::int32_t, ids, 2 * kMaxListed);
  TENON_SHARED(std::uint64_t, prefix_mass, kMaxListed);
  const int r = block_id();
  if (r >= sample.rows) return;  // the plan was made for more
  const LogitRow row{sample.logits + r * sample.row_stride, sample.slice_stride, sample.width,
                     sample.num_tokens};
  const Room room{keys, ids, prefix_mass};
  const bool edits = sample.edits != nullptr && sample.begins[r] < sample.begins[r + 1];
  if (edits) {
    visit_edits(sample, r, row, [&](const tenon::sampling::Edit& edit, int i, float* logit) {
      sample.saved[i] = *logit;
      *logit = edited(*logit, edit, sample, r);
    });
    sync_block();
  }
  const std::int32_t drawn = draw(sample, r, row, room);
  if (edits) {
    sync_block();
    visit_edits(sample, r, row, [&](const tenon::sampling::Edit&, int i, float* logit) {
      *logit = sample.saved[i];
    });
    sync_block();
  }
  if (sample.wanted != nullptr && sample.wanted[r] >= 0) report(sample, r, row, room, drawn);
  if (thread_id() == 0) sample.out[r] = drawn;
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
  if (args.min_p) sample.min_p = args.min_p->as<const float>();
  if (args.edits) {
    sample.edits = args.edits->list.as<const tenon::sampling::Edit>();
    sample.begins = args.edits->begins.as<const std::int32_t>();
    sample.repetition = args.edits->repetition.as<const float>();
    sample.frequency = args.edits->frequency.as<const float>();
    sample.presence = args.edits->presence.as<const float>();
    sample.saved = args.edits->saved.as<float>();
  }
  if (args.report) {
    sample.wanted = args.report->wanted.as<const std::int32_t>();
    sample.drawn = args.report->drawn.as<float>();
    sample.largest = args.report->largest.as<float>();
    sample.mass = args.report->mass.as<std::int64_t>();
    sample.listed_ids = args.report->ids.as<std::int32_t>();
    sample.listed_logits = args.report->logits.as<float>();
  }
  return tenon::launch(stream, recipe.launches.front().shape, sample_kernel, sample);
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports_rows, launch_rows);

}  // namespace tenon::TENON_TARGET::sampling
