// Reading a row of logits as ordered candidates: keys, orders, masses, and the search for the
// candidate at which a sum of weights is reached. Everything that is added is an integer, so
// neither the number of threads nor who adds first shows in a result.
//
// A team works on a row: BlockTeam, or a cluster of blocks (cluster.cuh). It has
//   kRanks, rank()      how many blocks, and which of them this one is
//   kBuckets            of a histogram; divided by kRanks
//   sync()              all threads of the team; then each sees what the others have stored
//   at(mine, rank)      where block `rank` has what lies at `mine` in this block's shared memory
// A row has visit(row, f): calls f(order) for the ids that are this thread's; each id is one
// thread's of the team.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET::sampling {

inline constexpr int kThreads = kWave == 1 ? 1 : 256;
inline constexpr int kMaxListed = 512;

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

// The place of a candidate as one number: the larger, the earlier.
TENON_DEVICE std::uint64_t order_of(std::uint32_t key, std::int32_t id) {
  return std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(id);
}
TENON_DEVICE std::uint32_t key_in(std::uint64_t order) {
  return static_cast<std::uint32_t>(order >> 32);
}
TENON_DEVICE std::int32_t id_in(std::uint64_t order) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(order));
}

// A row of logits that lies in slices: id = slice · width + column.
struct LogitRow {
  const float* logits;
  std::int64_t slice_stride;
  std::int32_t width, num_tokens;
};
template <class Visit>
TENON_DEVICE void visit(const LogitRow& row, Visit body) {
  const float* slice = row.logits;
  for (std::int32_t begin = 0; begin < row.num_tokens; begin += row.width) {
    const std::int32_t left = row.num_tokens - begin;
    const std::int32_t columns = left < row.width ? left : row.width;
    for (std::int32_t i = thread_id(); i < columns; i += block_threads())
      body(order_of(key_of(slice[i]), begin + i));
    slice += row.slice_stride;
    if (left <= row.width) break;
  }
}

struct BlockTeam {
  static constexpr int kRanks = 1, kBuckets = 1024;
  TENON_DEVICE int rank() { return 0; }
  TENON_DEVICE void sync() { sync_block(); }
  template <class T>
  TENON_DEVICE T* at(T* mine, int) {
    return mine;
  }
};

struct Pair {
  std::uint64_t x, y;
};

// Shared memory of each block of a team. What one block reads of another is written again only
// after a sync() behind the reading: each function below has one between the two.
template <class Team>
struct Room {
  static constexpr int kSlice = Team::kBuckets / Team::kRanks;
  std::uint32_t low[Team::kBuckets], high[Team::kBuckets];  // halves of this block's sums
  std::uint64_t ends[2][kSlice];          // of the buckets of slice rank(): the sum up to its end
  std::uint64_t totals[2][Team::kRanks];  // of each slice
  std::uint64_t total;                    // of slice rank()
  std::uint64_t listed[kMaxListed];       // orders that this block has found
  std::uint64_t list[kMaxListed], weights[kMaxListed];  // those of all blocks, and their weights
  std::uint32_t sizes[Team::kRanks], size;
  Pair reduced[2], picked, of_ranks[Team::kRanks], of_wave[kMaxWaves];
  Pair place;
};

TENON_DEVICE std::uint64_t shuffle_words(std::uint64_t value, int lane) {
  const std::uint32_t low = shuffle_from(static_cast<std::uint32_t>(value), lane);
  const std::uint32_t high = shuffle_from(static_cast<std::uint32_t>(value >> 32), lane);
  return std::uint64_t{high} << 32 | low;
}
TENON_DEVICE std::uint64_t wave_sum(std::uint64_t value) {
  for (int mask = 1; mask < kWave; mask *= 2) value += shuffle_words(value, lane_id() ^ mask);
  return value;
}

// all[r] = what block r has at `mine`, stored before the team's last sync().
template <class Team, class T>
TENON_DEVICE void read_all(T* all, T* mine) {
  if (thread_id() < Team::kRanks) all[thread_id()] = *Team::at(mine, thread_id());
  sync_block();
}

// Over all threads of the team; combine has {0, 0} as its neutral pair. Neighbouring calls take
// different turns.
template <class Team, class Combine>
TENON_DEVICE Pair team_reduce(Room<Team>& room, Pair value, int turn, Combine combine) {
  const auto over_lanes = [&](Pair mine) {
    for (int mask = 1; mask < kWave; mask *= 2) {
      const int lane = lane_id() ^ mask;
      mine = combine(mine, Pair{shuffle_words(mine.x, lane), shuffle_words(mine.y, lane)});
    }
    return mine;
  };
  value = over_lanes(value);
  sync_block();  // the readers of an earlier call are done
  if (lane_id() == 0) room.of_wave[wave_id()] = value;
  sync_block();
  value = over_lanes(lane_id() < block_threads() / kWave ? room.of_wave[lane_id()] : Pair{0, 0});
  if (thread_id() == 0) room.reduced[turn] = value;
  Team::sync();
  read_all<Team>(room.of_ranks, &room.reduced[turn]);
  value = room.of_ranks[0];
  for (int rank = 1; rank < Team::kRanks; ++rank) value = combine(value, room.of_ranks[rank]);
  return value;
}

// The ends of a row: x, the first candidate's order (with kNoKey or less where there is none); y,
// the inverted key of the last one.
TENON_DEVICE void see(Pair& ends, std::uint64_t order) {
  if (order > ends.x) ends.x = order;
  const std::uint32_t key = key_in(order), inverted = ~key;
  if (key > kNoKey && inverted > ends.y) ends.y = inverted;
}
TENON_DEVICE Pair wider(Pair a, Pair b) { return {a.x > b.x ? a.x : b.x, a.y > b.y ? a.y : b.y}; }
template <class Row>
TENON_DEVICE Pair see_all(const Row& row) {
  Pair ends{0, 0};
  visit(row, [&](std::uint64_t order) { see(ends, order); });
  return ends;
}

// The sums over the threads before this one, and over all of the block.
struct Scan {
  std::uint64_t before, total;
};
template <class Team>
TENON_DEVICE Scan block_scan(Room<Team>& room, std::uint64_t value) {
  std::uint64_t up_to = value;  // of the wave's lanes
  for (int step = 1; step < kWave; step *= 2) {
    const bool has = lane_id() >= step;
    const std::uint64_t other = shuffle_words(up_to, has ? lane_id() - step : lane_id());
    up_to += has ? other : 0;
  }
  sync_block();  // the readers of an earlier call are done
  if (lane_id() == kWave - 1) room.of_wave[wave_id()].x = up_to;
  sync_block();
  const std::uint64_t of_wave = lane_id() < block_threads() / kWave ? room.of_wave[lane_id()].x : 0;
  const std::uint64_t earlier = wave_sum(lane_id() < wave_id() ? of_wave : 0);
  return {earlier + up_to - value, wave_sum(of_wave)};
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

// Two kinds of weights. `least` is above kNoKey: what lies below it has none.
struct CountWeight {
  std::uint32_t least;
};
struct MassWeight {
  Weighing weighing;
  std::uint32_t least;
  std::uint64_t last;        // order of the last candidate that has any
  std::uint64_t least_mass;  // smaller ones have none
};
TENON_DEVICE std::uint64_t weight_of(const CountWeight& weight, std::uint64_t order) {
  return key_in(order) >= weight.least ? 1 : 0;
}
TENON_DEVICE std::uint64_t weight_of(const MassWeight& weight, std::uint64_t order) {
  if (key_in(order) < weight.least || order < weight.last) return 0;
  const std::uint64_t mass = mass_of(weight.weighing, key_in(order));
  return mass >= weight.least_mass ? mass : 0;
}

// A way to cut the orders from `first` down to `last` into buckets, in order: by the distance of
// the logit from the largest one, which fills them evenly, or by the order's bits.
struct Buckets {
  std::uint64_t first, last;
  int shift;  // below 0: by the logit
  float largest, scale;
};
template <class Team>
TENON_DEVICE Buckets buckets_by_logit(std::uint32_t largest, float range) {
  const auto count = static_cast<float>(Team::kBuckets);
  return {order_of(largest, 0), 0, -1, logit_of(largest), count / range};
}
template <class Team>
TENON_DEVICE Buckets buckets_by_order(std::uint64_t first, std::uint64_t last) {
  int shift = 0;
  while ((first - last) >> shift >= Team::kBuckets) ++shift;
  return {first, last, shift, 0, 0};
}
// −1: in none of them. The distance is no number only for a bucket scale of 0 or infinity; then the
// last bucket has what lies below the largest logit.
template <class Team>
TENON_DEVICE int bucket_of(const Buckets& buckets, std::uint64_t order) {
  if (order > buckets.first || order < buckets.last) return -1;
  if (buckets.shift >= 0) return static_cast<int>((buckets.first - order) >> buckets.shift);
  if (key_in(order) == key_in(buckets.first)) return 0;
  constexpr int kLast = Team::kBuckets - 1;
  const float at = (buckets.largest - logit_of(key_in(order))) * buckets.scale;
  return at < static_cast<float>(kLast) ? static_cast<int>(at) : kLast;
}

// Adds up the weights of each bucket; returns their sum. `level` says which sums they are for
// find().
template <class Team, class Row, class Weight>
TENON_DEVICE std::uint64_t fill_buckets(Room<Team>& room, const Row& row, const Buckets& buckets,
                                        const Weight& weight, int level) {
  constexpr int kSlice = Room<Team>::kSlice;
  for (int i = thread_id(); i < Team::kBuckets; i += block_threads())
    room.low[i] = room.high[i] = 0;
  sync_block();
  visit(row, [&](std::uint64_t order) {
    const std::uint64_t mine = weight_of(weight, order);
    if (mine == 0) return;
    const int bucket = bucket_of<Team>(buckets, order);
    if (bucket < 0) return;
    const auto low = static_cast<std::uint32_t>(mine);
    const bool carries = atomic_add(&room.low[bucket], low) + low < low;
    const std::uint32_t high = static_cast<std::uint32_t>(mine >> 32) + (carries ? 1u : 0u);
    if (high != 0) atomic_add(&room.high[bucket], high);
  });
  Team::sync();
  const int share = (kSlice - 1) / block_threads() + 1;  // neighbouring buckets of a thread
  const int begin = thread_id() * share, end = begin + share < kSlice ? begin + share : kSlice;
  std::uint64_t sum = 0;
  for (int i = begin; i < end; ++i) {
    TENON_UNROLL
    for (int rank = 0; rank < Team::kRanks; ++rank) {
      const int at = Team::rank() * kSlice + i;
      sum +=
          *Team::at(&room.low[at], rank) + (std::uint64_t{*Team::at(&room.high[at], rank)} << 32);
    }
    room.ends[level][i] = sum;
  }
  const Scan scan = block_scan(room, sum);
  for (int i = begin; i < end; ++i) room.ends[level][i] += scan.before;
  if (thread_id() == 0) room.total = scan.total;
  Team::sync();
  read_all<Team>(room.totals[level], &room.total);
  std::uint64_t total = 0;
  for (int rank = 0; rank < Team::kRanks; ++rank) total += room.totals[level][rank];
  return total;
}

// The bucket in which the sum reaches `target`, and the sum before it. There is one.
struct Place {
  int bucket;
  std::uint64_t before;
};
template <class Team>
TENON_DEVICE Place place_of(Room<Team>& room, std::uint64_t target, int level) {
  constexpr int kSlice = Room<Team>::kSlice;
  std::uint64_t before = 0;
  int slice = 0;
  while (before + room.totals[level][slice] < target) before += room.totals[level][slice++];
  const std::uint64_t* ends = Team::at(&room.ends[level][0], slice);
  sync_block();  // the readers of an earlier place are done
  for (int i = thread_id(); i < kSlice; i += block_threads()) {
    const std::uint64_t begin = before + (i > 0 ? ends[i - 1] : 0), end = before + ends[i];
    if (begin < target && target <= end)
      room.place = {static_cast<std::uint64_t>(slice * kSlice + i), begin};
  }
  sync_block();
  return {static_cast<int>(room.place.x), room.place.y};
}

// Lists what has weight in a bucket, in every block alike and in no particular order, if there are
// at most kMaxListed; returns how many there are.
template <class Team, class Row, class Weight>
TENON_DEVICE int list_bucket(Room<Team>& room, const Row& row, const Buckets& buckets, int bucket,
                             const Weight& weight) {
  if (thread_id() == 0) room.size = 0;
  sync_block();
  visit(row, [&](std::uint64_t order) {
    if (bucket_of<Team>(buckets, order) != bucket || weight_of(weight, order) == 0) return;
    const std::uint32_t at = atomic_add(&room.size, 1u);
    if (at < kMaxListed) room.listed[at] = order;
  });
  Team::sync();
  read_all<Team>(room.sizes, &room.size);
  std::uint32_t size = 0;
  for (int rank = 0; rank < Team::kRanks; ++rank) size += room.sizes[rank];
  if (size > kMaxListed) return static_cast<int>(size);
  for (std::uint32_t i = static_cast<std::uint32_t>(thread_id()); i < size;
       i += static_cast<std::uint32_t>(block_threads())) {
    std::uint32_t at = i;
    int rank = 0;
    while (at >= room.sizes[rank]) at -= room.sizes[rank++];
    const std::uint64_t order = *Team::at(&room.listed[at], rank);
    room.list[i] = order;
    room.weights[i] = weight_of(weight, order);
  }
  sync_block();
  return static_cast<int>(size);
}

// A candidate, and the sum of the weights up to its own.
struct Found {
  std::uint64_t order, sum;
};

// The listed candidate in which the sum reaches `target`; `before` is the sum before the list.
template <class Team>
TENON_DEVICE Found find_listed(Room<Team>& room, int size, std::uint64_t before,
                               std::uint64_t target) {
  const int waves = block_threads() / kWave;
  if (thread_id() == 0) room.picked = {0, 0};
  sync_block();
  for (int i = Team::rank() * waves + wave_id(); i < size; i += Team::kRanks * waves) {
    const std::uint64_t order = room.list[i];
    std::uint64_t sum = 0;
    for (int j = lane_id(); j < size; j += kWave)
      sum += room.list[j] >= order ? room.weights[j] : 0;
    sum = before + wave_sum(sum);
    if (lane_id() == 0 && sum >= target && sum - room.weights[i] < target)
      room.picked = {order, sum};
  }
  Team::sync();
  read_all<Team>(room.of_ranks, &room.picked);
  Found found{0, 0};
  for (int rank = 0; rank < Team::kRanks; ++rank)
    if (room.of_ranks[rank].y != 0) found = {room.of_ranks[rank].x, room.of_ranks[rank].y};
  return found;
}

// The first candidate up to which the weights reach `target`, which is at least 1 and at most what
// fill_buckets() returned for these buckets on level 0. A bucket of too many candidates is cut
// again.
template <class Team, class Row, class Weight>
TENON_DEVICE Found find(Room<Team>& room, const Row& row, Buckets buckets, const Weight& weight,
                        std::uint64_t target) {
  std::uint64_t before = 0;
  for (int level = 0;; level = 1) {
    const Place place = place_of(room, target - before, level);
    before += place.before;
    const int size = list_bucket(room, row, buckets, place.bucket, weight);
    if (size <= kMaxListed) return find_listed(room, size, before, target);
    Pair ends{0, 0};
    visit(row, [&](std::uint64_t order) {
      if (bucket_of<Team>(buckets, order) == place.bucket && weight_of(weight, order) != 0)
        ends = wider(ends, {order, ~order});
    });
    ends = team_reduce(room, ends, 0, wider);
    buckets = buckets_by_order<Team>(ends.x, ~ends.y);
    fill_buckets(room, row, buckets, weight, 1);
  }
}

}  // namespace tenon::TENON_TARGET::sampling
