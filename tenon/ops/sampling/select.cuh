// Reading a row of logits as ordered candidates: orders, masses, and the search for the candidate
// at which a sum of weights is reached. Everything that is added is an integer, so neither the
// number of threads nor who adds first shows in a result.
//
// A team works on a row: BlockTeam, or a cluster of blocks (sm90.cu). It has
//   kRanks, rank()      how many blocks, and which of them this one is
//   kBuckets            of a histogram; divided by kRanks
//   sync()              all threads of the team; then each sees what the others have stored
//   at(mine, rank)      where block `rank` has what lies at `mine` in this block's shared memory
// A row has visit(row, body): calls body(logit, id) for the ids that are this thread's, ascending;
// each id is one thread's of the team. The logit has been through plain().
#pragma once

#include <cfloat>

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET::sampling {

inline constexpr int kMaxListed = 512;

// −infinity is no candidate, and NaN becomes it; both zeros become one.
TENON_DEVICE float plain(float logit) { return is_nan(logit) ? -kInfinity : logit + 0.0f; }

// Unsigned integers in the order of plain logits.
TENON_DEVICE std::uint32_t key_of(float logit) {
  const std::uint32_t bits = float_bits(logit);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
TENON_DEVICE float logit_of(std::uint32_t key) {
  return bits_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// The place of a candidate as one number: the larger, the earlier.
TENON_DEVICE std::uint64_t order_of(float logit, std::int32_t id) {
  return std::uint64_t{key_of(logit)} << 32 | ~static_cast<std::uint32_t>(id);
}
TENON_DEVICE float logit_in(std::uint64_t order) {
  return logit_of(static_cast<std::uint32_t>(order >> 32));
}
TENON_DEVICE std::int32_t id_in(std::uint64_t order) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(order));
}

// A row of logits that lies in slices: id = slice · width + column.
struct LogitRow {
  const float* logits;
  std::int64_t slice_stride;
  std::int32_t width, num_tokens;
  const std::uint32_t* mask;  // bit by bit the ids that are candidates; null: all
};
TENON_DEVICE bool allows(const std::uint32_t* mask, std::int32_t id) {
  return mask == nullptr || (mask[id >> 5] >> (id & 31) & 1u) != 0;
}
template <class Visit>
TENON_DEVICE void visit(const LogitRow& row, Visit body) {
  constexpr int kAtOnce = 4;  // loads that do not wait for each other
  const float* slice = row.logits;
  for (std::int32_t begin = 0; begin < row.num_tokens; begin += row.width) {
    const std::int32_t left = row.num_tokens - begin;
    const std::int32_t columns = left < row.width ? left : row.width;
    TENON_NO_UNROLL
    for (std::int32_t first = thread_id(); first < columns; first += kAtOnce * block_threads()) {
      float logits[kAtOnce];
      TENON_UNROLL
      for (int n = 0; n < kAtOnce; ++n) {
        const std::int32_t i = first + n * block_threads();
        logits[n] = i < columns && allows(row.mask, begin + i) ? slice[i] : -kInfinity;
      }
      TENON_UNROLL
      for (int n = 0; n < kAtOnce; ++n) body(plain(logits[n]), begin + first + n * block_threads());
    }
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
  for (int rank = thread_id(); rank < Team::kRanks; rank += block_threads())
    all[rank] = *Team::at(mine, rank);
  sync_block();
}

// Over all threads of the block; combine has {0, 0} as its neutral pair.
template <class Team, class Combine>
TENON_DEVICE Pair reduce(Room<Team>& room, Pair value, Combine combine) {
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
  return over_lanes(lane_id() < block_threads() / kWave ? room.of_wave[lane_id()] : Pair{0, 0});
}
// Over all threads of the team. Neighbouring calls take different turns.
template <class Team, class Combine>
TENON_DEVICE Pair team_reduce(Room<Team>& room, Pair value, int turn, Combine combine) {
  value = reduce(room, value, combine);
  if (thread_id() == 0) room.reduced[turn] = value;
  Team::sync();
  read_all<Team>(room.of_ranks, &room.reduced[turn]);
  value = room.of_ranks[0];
  for (int rank = 1; rank < Team::kRanks; ++rank) value = combine(value, room.of_ranks[rank]);
  return value;
}
TENON_DEVICE Pair larger(Pair a, Pair b) { return {a.x > b.x ? a.x : b.x, a.y > b.y ? a.y : b.y}; }
TENON_DEVICE Pair sum(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }

// What a thread has seen of a row.
struct Seen {
  float largest = -kInfinity, smallest = kInfinity;  // of the candidates
  std::int32_t id = 0;                               // the first one with the largest
};
TENON_DEVICE void see(Seen& seen, float logit, std::int32_t id) {
  if (logit > seen.largest) {
    seen.largest = logit;
    seen.id = id;
  }
  if (logit < seen.smallest && logit > -kInfinity) seen.smallest = logit;
}
template <class Row>
TENON_DEVICE Seen see_all(const Row& row) {
  Seen seen;
  visit(row, [&](float logit, std::int32_t id) { see(seen, logit, id); });
  return seen;
}
// The same of all threads of the team. Turns: team_reduce().
template <class Team>
TENON_DEVICE Seen join(Room<Team>& room, const Seen& seen, int turn) {
  const Pair ends = team_reduce(room, Pair{order_of(seen.largest, seen.id), ~key_of(seen.smallest)},
                                turn, larger);
  return {logit_in(ends.x), logit_of(~static_cast<std::uint32_t>(ends.y)), id_in(ends.x)};
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

// Turns logits into masses.
struct Weighing {
  float largest, temperature;
};
// Below this no logit has a mass, for 2^40 · e^-28.5 is below 1; a finite number, or +infinity.
TENON_DEVICE float least_logit(const Weighing& weighing) {
  const float least = weighing.largest - 28.5f * weighing.temperature;
  return least > -FLT_MAX ? least : -FLT_MAX;
}
TENON_DEVICE std::uint64_t mass_of(const Weighing& weighing, float logit) {
  float x = logit == weighing.largest ? 0.0f : logit - weighing.largest;
  if (weighing.temperature != 1.0f) x = x / weighing.temperature;
  return static_cast<std::uint64_t>(exp_f(x) * 0x1p40f);
}

// Two kinds of weights. `least` is finite or +infinity: what lies below it has none.
struct CountWeight {
  float least;
};
struct MassWeight {
  Weighing weighing;
  float least;
  std::uint64_t last;        // order of the last candidate that has any; 0: of all
  std::uint64_t least_mass;  // smaller ones have none
};
TENON_DEVICE std::uint64_t weight_of(const CountWeight& weight, float logit, std::int32_t) {
  return logit >= weight.least ? 1 : 0;
}
TENON_DEVICE std::uint64_t weight_of(const MassWeight& weight, float logit, std::int32_t id) {
  if (!(logit >= weight.least)) return 0;
  if (weight.last != 0 && order_of(logit, id) < weight.last) return 0;
  const std::uint64_t mass = mass_of(weight.weighing, logit);
  return mass >= weight.least_mass ? mass : 0;
}

// A way to cut candidates into buckets, in order: by the distance from the largest logit, which
// fills them evenly, or the orders from `first` down to `last` by their bits.
struct Buckets {
  float largest, scale;
  int shift;  // below 0: by the distance
  std::uint64_t first, last;
};
template <class Team>
TENON_DEVICE Buckets buckets_by_logit(float largest, float range) {
  const float scale = static_cast<float>(Team::kBuckets) / range;
  return {largest, scale < FLT_MAX ? scale : FLT_MAX, -1, 0, 0};
}
template <class Team>
TENON_DEVICE Buckets buckets_by_order(std::uint64_t first, std::uint64_t last) {
  int shift = 0;
  while ((first - last) >> shift >= Team::kBuckets) ++shift;
  return {0, 0, shift, first, last};
}
// −1: in none of them. A distance that is no number comes of infinite logits or a scale of 0, and
// of the largest logit then or of all.
template <class Team>
TENON_DEVICE int bucket_of(const Buckets& buckets, float logit, std::int32_t id) {
  if (buckets.shift < 0) {
    constexpr auto kLast = static_cast<float>(Team::kBuckets - 1);
    const float at = (buckets.largest - logit) * buckets.scale;
    const float from_zero = at > 0.0f ? at : 0.0f;
    return static_cast<int>(from_zero < kLast ? from_zero : kLast);
  }
  const std::uint64_t order = order_of(logit, id);
  if (order > buckets.first || order < buckets.last) return -1;
  return static_cast<int>((buckets.first - order) >> buckets.shift);
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
  visit(row, [&](float logit, std::int32_t id) {
    const std::uint64_t mine = weight_of(weight, logit, id);
    if (mine == 0) return;
    const int bucket = bucket_of<Team>(buckets, logit, id);
    if (bucket < 0) return;
    const auto low = static_cast<std::uint32_t>(mine);
    const bool carries = atomic_add(&room.low[bucket], low) + low < low;
    const std::uint32_t high = static_cast<std::uint32_t>(mine >> 32) + (carries ? 1u : 0u);
    if (high != 0) atomic_add(&room.high[bucket], high);
  });
  Team::sync();
  const int share = (kSlice - 1) / block_threads() + 1;  // neighbouring buckets of a thread
  const int begin = thread_id() * share, end = begin + share < kSlice ? begin + share : kSlice;
  std::uint64_t up_to = 0;
  for (int i = begin; i < end; ++i) {
    TENON_UNROLL
    for (int rank = 0; rank < Team::kRanks; ++rank) {
      const int at = Team::rank() * kSlice + i;
      up_to +=
          *Team::at(&room.low[at], rank) + (std::uint64_t{*Team::at(&room.high[at], rank)} << 32);
    }
    room.ends[level][i] = up_to;
  }
  const Scan scan = block_scan(room, up_to);
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

// Lists what has weight in the buckets from `begin` to before `end`, in every block alike and in no
// particular order, if there are at most kMaxListed; returns how many there are. `listed` says what
// room.weights gets.
template <class Team, class Row, class Weight, class Listed>
TENON_DEVICE int list_buckets(Room<Team>& room, const Row& row, const Buckets& buckets, int begin,
                              int end, const Weight& weight, const Listed& listed) {
  if (thread_id() == 0) room.size = 0;
  sync_block();
  visit(row, [&](float logit, std::int32_t id) {
    const int bucket = bucket_of<Team>(buckets, logit, id);
    if (bucket < begin || bucket >= end || weight_of(weight, logit, id) == 0) return;
    const std::uint32_t at = atomic_add(&room.size, 1u);
    if (at < kMaxListed) room.listed[at] = order_of(logit, id);
  });
  Team::sync();
  read_all<Team>(room.sizes, &room.size);
  std::uint32_t size = 0;
  for (int rank = 0; rank < Team::kRanks; ++rank) size += room.sizes[rank];
  if (size > kMaxListed) {
    Team::sync();  // all have read the sizes
    return static_cast<int>(size);
  }
  for (std::uint32_t i = static_cast<std::uint32_t>(thread_id()); i < size;
       i += static_cast<std::uint32_t>(block_threads())) {
    std::uint32_t at = i;
    int rank = 0;
    while (at >= room.sizes[rank]) at -= room.sizes[rank++];
    const std::uint64_t order = *Team::at(&room.listed[at], rank);
    room.list[i] = order;
    room.weights[i] = weight_of(listed, logit_in(order), id_in(order));
  }
  sync_block();
  return static_cast<int>(size);
}

// A candidate, and the sum of the weights up to its own.
struct Found {
  std::uint64_t order, sum;
};

// The listed candidate in which the sum reaches `target`; `before` is the sum before the list. The
// blocks share the work.
template <class Team>
TENON_DEVICE Found find_listed(Room<Team>& room, int size, std::uint64_t before,
                               std::uint64_t target) {
  const int waves = block_threads() / kWave;
  if (thread_id() == 0) room.picked = {0, 0};
  sync_block();
  for (int i = Team::rank() * waves + wave_id(); i < size; i += Team::kRanks * waves) {
    const std::uint64_t order = room.list[i];
    std::uint64_t up_to = 0;
    TENON_NO_UNROLL
    for (int j = lane_id(); j < size; j += kWave)
      up_to += room.list[j] >= order ? room.weights[j] : 0;
    up_to = before + wave_sum(up_to);
    if (lane_id() == 0 && up_to >= target && up_to - room.weights[i] < target)
      room.picked = {order, up_to};
  }
  Team::sync();
  read_all<Team>(room.of_ranks, &room.picked);
  Found found{0, 0};
  for (int rank = 0; rank < Team::kRanks; ++rank)
    if (room.of_ranks[rank].y != 0) found = {room.of_ranks[rank].x, room.of_ranks[rank].y};
  return found;
}

// The first candidate up to which the weights reach `target`, which is at least 1 and at most what
// fill_buckets() returned for these buckets on level 0. What is too much for a list is cut again.
template <class Team, class Row, class Weight>
TENON_DEVICE Found find(Room<Team>& room, const Row& row, Buckets buckets, const Weight& weight,
                        std::uint64_t target) {
  std::uint64_t before = 0;
  TENON_NO_UNROLL
  for (int level = 0;; level = 1) {
    const Place place = place_of(room, target - before, level);
    const int bucket = place.bucket;
    before += place.before;
    const int size = list_buckets(room, row, buckets, bucket, bucket + 1, weight, weight);
    if (size <= kMaxListed) return find_listed(room, size, before, target);
    Pair ends{0, 0};
    visit(row, [&](float logit, std::int32_t id) {
      if (bucket_of<Team>(buckets, logit, id) != bucket || weight_of(weight, logit, id) == 0)
        return;
      const std::uint64_t order = order_of(logit, id);
      ends = larger(ends, {order, ~order});
    });
    ends = team_reduce(room, ends, 0, larger);
    buckets = buckets_by_order<Team>(ends.x, ~ends.y);
    fill_buckets(room, row, buckets, weight, 1);
  }
}

}  // namespace tenon::TENON_TARGET::sampling
