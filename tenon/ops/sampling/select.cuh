// Reading a row of logits as ordered candidates: orders, masses, and the search for the candidate
// at which a sum of weights is reached. Everything that is added is an integer, so neither the
// number of threads nor who adds first shows in a result.
//
// A team works on a row: BlockTeam, or a cluster of blocks (sm90.cu). It has
//   kRanks, rank()      how many blocks, and which of them this one is
//   kBuckets, kGroups   of a histogram, and of its buckets, which each have as many neighbours
//   sync()              all threads of the team; then each sees what the others have stored
//   at(mine, rank)      where block `rank` has what lies at `mine` in this block's shared memory
//   own(room)           the same room, named so that compilers see that it is shared memory
// A row has visit(row, body): calls body(logit, id) for the ids that are this thread's, ascending;
// each id is one thread's of the team. The logit has been through plain().
#pragma once

#include <cfloat>

#include "tenon/core/fp8.h"
#include "tenon/device/ascending.cuh"
#include "tenon/device/called.cuh"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET::sampling {

inline constexpr int kMaxListed = 512;

// −infinity is no candidate, and NaN becomes it; both zeros become one.
TENON_DEVICE float plain(float logit) { return is_nan(logit) ? -kInfinity : logit + 0.0f; }

// Unsigned integers in the order of plain logits.
TENON_DEVICE std::uint32_t key_of(float logit) { return ascending_bits(logit); }
TENON_DEVICE float logit_of(std::uint32_t key) { return ascending_float(key); }

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
  static constexpr int kRanks = 1, kBuckets = 1024, kGroups = 32;
  TENON_DEVICE int rank() { return 0; }
  TENON_DEVICE void sync() { sync_block(); }
  template <class T>
  TENON_DEVICE T* at(T* mine, int) {
    return mine;
  }
  template <class T>
  TENON_DEVICE T& own(T& room) {
    return room;
  }
};

struct Pair {
  std::uint64_t x, y;
};

// What a row asks for.
struct Setting {
  float temperature, top_p, min_p;
  std::int32_t top_k, position;
  std::int64_t seed;
  std::int32_t wanted;        // ids of its report; below 0: none
  bool edits;                 // whether it has any
  const std::uint32_t* mask;  // null: it may draw all ids
};

// Turns logits into masses.
struct Weighing {
  float largest, temperature;
  float reciprocal;  // of the temperature; 0 where a quotient may not be made with it
};
// What a candidate counts: its mass, or 1.
struct Weight {
  Weighing weighing;
  bool is_mass;
  float least;               // what lies below it has none; finite or +infinity
  std::uint64_t last;        // order of the last candidate that has any; 0: of all
  std::uint64_t least_mass;  // smaller ones have none
};
// The two that a row is searched by.
enum Count { kByMass, kByNumber, kCounts };

// A way to cut candidates into buckets, in order: by the distance from the largest logit, which
// fills them evenly, or the orders from `first` down to `last` by their bits.
struct Buckets {
  float largest, scale;
  int shift;  // below 0: by the distance
  std::uint64_t first, last;
};
// Shared memory of each block of a team. What one block reads of another is written again only
// after a sync() behind the reading: each function below has one between the two.
template <class Team>
struct Room {
  static constexpr int kGroups = Team::kGroups, kOfGroup = Team::kBuckets / kGroups;
  alignas(16) std::uint32_t low[Team::kBuckets], high[Team::kBuckets];  // halves of own sums
  std::uint64_t groups[2][kGroups];     // own sums of whole groups, by turns
  std::uint64_t group_ends[kGroups];    // of the team: the sum up to the end of a group
  std::uint64_t bucket_ends[kOfGroup];  // the same of the buckets of one group, from its begin on
  std::uint64_t parts[Team::kRanks * (kGroups > kOfGroup ? kGroups : kOfGroup)];  // of the blocks
  std::uint64_t listed[kMaxListed];                     // orders that this block has found
  std::uint64_t list[kMaxListed], weights[kMaxListed];  // rank 0: those of all, and their weights
  std::uint64_t random;  // of the row, in every block, as what it asks for
  Setting setting;
  // The same in all blocks and threads, so it lies here: one thread sets it, and all find it behind
  // the next barrier.
  Buckets buckets;
  Weight counts[kCounts];
  std::uint32_t size, begins[Team::kRanks + 1];
  Pair reduced[2], picked, result, of_wave[kMaxWaves];
};

TENON_DEVICE std::uint32_t low_word(std::uint64_t value) {
  return static_cast<std::uint32_t>(value);
}
TENON_DEVICE std::uint32_t high_word(std::uint64_t value) {
  return static_cast<std::uint32_t>(value >> 32);
}
TENON_DEVICE std::uint32_t shuffle_words(std::uint32_t value, int lane) {
  return shuffle_from(value, lane);
}
TENON_DEVICE std::uint64_t shuffle_words(std::uint64_t value, int lane) {
  const std::uint32_t low = shuffle_from(low_word(value), lane);
  return std::uint64_t{shuffle_from(high_word(value), lane)} << 32 | low;
}
// Over the first lanes up to the own one, for the first kLanes.
template <int kLanes = kWave, class Word>
TENON_DEVICE Word lanes_up_to(Word value) {
  TENON_UNROLL
  for (int step = 1; step < kLanes; step *= 2) {
    const bool has = lane_id() >= step;
    const Word other = shuffle_words(value, has ? lane_id() - step : lane_id());
    value += has ? other : 0;
  }
  return value;
}
// Over aligned groups of kLanes lanes.
template <int kLanes = kWave>
TENON_DEVICE std::uint64_t lanes_total(std::uint64_t value) {
  TENON_UNROLL
  for (int mask = 1; mask < kLanes; mask *= 2) value += shuffle_words(value, lane_id() ^ mask);
  return value;
}
TENON_DEVICE std::uint64_t wave_larger(std::uint64_t value) {
  const std::uint32_t high = max_lane(high_word(value));
  const std::uint32_t low = max_lane(high_word(value) == high ? low_word(value) : 0u);
  return std::uint64_t{high} << 32 | low;
}

// Two ways to make one pair of many, for which {0, 0} is neutral; lanes(): of a wave.
struct Larger {
  TENON_DEVICE Pair both(Pair a, Pair b) { return {a.x > b.x ? a.x : b.x, a.y > b.y ? a.y : b.y}; }
  TENON_DEVICE Pair lanes(Pair mine) { return {wave_larger(mine.x), wave_larger(mine.y)}; }
};
struct Sum {
  TENON_DEVICE Pair both(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
  TENON_DEVICE Pair lanes(Pair mine) { return {lanes_total(mine.x), lanes_total(mine.y)}; }
};

// Over all threads of the block, for the first wave.
template <class Combine, class Team>
TENON_DEVICE Pair reduce_to_wave(Room<Team>& room, Pair value) {
  value = Combine::lanes(value);
  if (lane_id() == 0) room.of_wave[wave_id()] = value;
  sync_block();
  if (wave_id() != 0) return value;
  return Combine::lanes(lane_id() < block_threads() / kWave ? room.of_wave[lane_id()] : Pair{0, 0});
}
// What the first wave has, for all threads of the block.
template <class Team>
TENON_DEVICE Pair tell(Room<Team>& room, Pair value) {
  if (thread_id() == 0) room.result = value;
  sync_block();
  return room.result;
}
template <class Combine, class Team>
TENON_DEVICE Pair reduce(Room<Team>& room, Pair value) {
  return tell(room, reduce_to_wave<Combine>(room, value));
}
// Over what each block of the team has at `mine`, for all threads.
template <class Combine, class Team>
TENON_DEVICE Pair over_ranks(Room<Team>& room, Pair* mine) {
  Team::sync();
  Pair all{0, 0};
  if (wave_id() == 0) {
    for (int rank = lane_id(); rank < Team::kRanks; rank += kWave)
      all = Combine::both(all, *Team::at(mine, rank));
    all = Combine::lanes(all);
  }
  return tell(room, all);
}
// Over all threads of the team. Neighbouring calls take different turns.
template <class Combine, class Team>
TENON_CALLED Pair team_reduce(Room<Team>& of_team, Pair value, int turn) {
  Room<Team>& room = Team::own(of_team);
  value = reduce_to_wave<Combine>(room, value);
  if (thread_id() == 0) room.reduced[turn] = value;
  return over_ranks<Combine>(room, &room.reduced[turn]);
}

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
  const Pair ends = team_reduce<Larger>(
      room, Pair{order_of(seen.largest, seen.id), ~key_of(seen.smallest)}, turn);
  return {logit_in(ends.x), logit_of(~static_cast<std::uint32_t>(ends.y)), id_in(ends.x)};
}

TENON_DEVICE Weighing weighing_by(float largest, float temperature) {
  const bool moderate = temperature > 0x1p-60f && temperature < 0x1p60f;
  return {largest, temperature, moderate ? 1.0f / temperature : 0.0f};
}
// Below this no logit has a mass, for 2^40 · e^-28.5 is below 1; a finite number, or +infinity.
TENON_DEVICE float least_logit(const Weighing& weighing) {
  const float least = weighing.largest - 28.5f * weighing.temperature;
  return least > -FLT_MAX ? least : -FLT_MAX;
}
// x / divisor, rounded correctly: from the rounded reciprocal, each correction is exact but for its
// last rounding (Markstein, "Computation of elementary functions on the IBM RISC System/6000
// processor", 1990). Where a remainder is too small for a float, the quotient is so small that its
// exponential is 1.
TENON_DEVICE float quotient(float x, float divisor, float reciprocal) {
  float found = x * reciprocal;
  found = fma_f(fma_f(-divisor, found, x), reciprocal, found);
  return fma_f(fma_f(-divisor, found, x), reciprocal, found);
}
// floor(2^40 · exp((logit − largest) / temperature)).
TENON_DEVICE std::uint64_t mass_of(const Weighing& weighing, float logit) {
  float x = logit == weighing.largest ? 0.0f : logit - weighing.largest;
  if (weighing.reciprocal == 0.0f) {
    x = x / weighing.temperature;
  } else if (weighing.temperature != 1.0f) {
    x = quotient(x, weighing.temperature, weighing.reciprocal);
  }
  return static_cast<std::uint64_t>(exp_f(x) * 0x1p40f);
}

TENON_DEVICE Weight count_from(float least) { return {{0, 1, 1}, false, least, 0, 0}; }
TENON_DEVICE Weight mass_from(float largest, float temperature) {
  const Weighing weighing = weighing_by(largest, temperature);
  return {weighing, true, least_logit(weighing), 0, 0};
}
TENON_DEVICE std::uint64_t weight_of(const Weight& weight, float logit, std::int32_t id) {
  if (!(logit >= weight.least)) return 0;
  if (!weight.is_mass) return 1;
  if (weight.last != 0 && order_of(logit, id) < weight.last) return 0;
  const std::uint64_t mass = mass_of(weight.weighing, logit);
  return mass >= weight.least_mass ? mass : 0;
}

template <class Team>
TENON_DEVICE Buckets buckets_by_logit(float largest, float range) {
  const float scale = static_cast<float>(Team::kBuckets) / range;
  return {largest, scale < FLT_MAX ? scale : FLT_MAX, -1, 0, 0};
}
template <class Team>
TENON_DEVICE Buckets buckets_by_order(std::uint64_t first, std::uint64_t last) {
  int shift = 0;
  TENON_NO_UNROLL
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

// ends[i] = the sum over the team's blocks of get(j, rank) for all j up to i, i < kCount.
// Neighbours of one block are fetched by neighbours.
template <int kCount, class Team, class Get>
TENON_DEVICE void add_up_ranks(Room<Team>& room, std::uint64_t* ends, Get get) {
  TENON_NO_UNROLL
  for (int i = thread_id(); i < Team::kRanks * kCount; i += block_threads())
    room.parts[i] = get(i % kCount, i / kCount);
  sync_block();
  constexpr int kEach = (kCount - 1) / kWave + 1;  // neighbours that a lane has
  if (wave_id() == 0) {
    const int first = lane_id() * kEach;
    std::uint64_t own_ends[kEach], own = 0;
    constexpr int kAtOnce = Team::kRanks % 4 == 0 ? 4 : 1;
    TENON_UNROLL
    for (int n = 0; n < kEach; ++n) own_ends[n] = 0;
    TENON_NO_UNROLL
    for (int rank = 0; rank < Team::kRanks; rank += kAtOnce) {
      TENON_UNROLL
      for (int i = 0; i < kAtOnce * kEach; ++i) {
        const int n = i % kEach;
        if (first + n < kCount) own_ends[n] += room.parts[(rank + i / kEach) * kCount + first + n];
      }
    }
    TENON_UNROLL
    for (int n = 0; n < kEach; ++n) own_ends[n] = own = own + own_ends[n];
    const std::uint64_t up_to = lanes_up_to(own);
    TENON_UNROLL
    for (int n = 0; n < kEach; ++n)
      if (first + n < kCount) ends[first + n] = up_to - own + own_ends[n];
  }
  sync_block();
}
// The first of these sums, ascending, that is at least `target`. There is one.
template <int kCount>
TENON_DEVICE int first_reaching(const std::uint64_t* ends, std::uint64_t target) {
  int found = 0;
  for (int i = lane_id(); i < kCount; i += kWave)
    if (ends[i] >= target && (i == 0 || ends[i - 1] < target)) found = i;
  return static_cast<int>(max_lane(static_cast<std::uint32_t>(found)));
}

template <class Team>
TENON_DEVICE std::uint64_t sum_in(Room<Team>& room, int bucket, int rank) {
  return *Team::at(&room.low[bucket], rank) +
         (std::uint64_t{*Team::at(&room.high[bucket], rank)} << 32);
}

// Adds up the weights of each bucket; returns their sum. Neighbouring calls take different turns.
template <class Team, class Row>
TENON_CALLED std::uint64_t fill_buckets(Room<Team>& of_team, const Row row, Count count, int turn) {
  constexpr int kGroups = Room<Team>::kGroups, kOfGroup = Room<Team>::kOfGroup;
  constexpr int kLanes = kWave == 1 ? 1 : 16;  // that add up a group
  Room<Team>& room = Team::own(of_team);
  TENON_NO_UNROLL
  for (int i = 4 * thread_id(); i < Team::kBuckets; i += 4 * block_threads()) {
    store16(room.low + i, Word4{});
    store16(room.high + i, Word4{});
  }
  sync_block();
  const Buckets buckets = room.buckets;
  const Weight weight = room.counts[count];
  const auto add = [&](int bucket, std::uint64_t mine) {
    const std::uint32_t low = low_word(mine);
    const bool carries = atomic_add(&room.low[bucket], low) + low < low;
    const std::uint32_t high = high_word(mine) + (carries ? 1u : 0u);
    if (high != 0) atomic_add(&room.high[bucket], high);
  };
  const Weighing& by = weight.weighing;
  if (weight.is_mass && weight.last == 0 && buckets.shift < 0 && by.reciprocal != 0.0f &&
      by.largest < kInfinity) {
    // What weight_of() and bucket_of() come to for nearly all rows: this loop is most of a draw.
    const float least_mass = static_cast<float>(weight.least_mass);  // has 24 places
    const float least = least_mass > 1.0f ? least_mass : 1.0f;
    visit(row, [&](float logit, std::int32_t) {
      if (!(logit >= weight.least)) return;
      const float x = logit - by.largest;
      const float mass = exp_f(quotient(x, by.temperature, by.reciprocal)) * 0x1p40f;
      if (!(mass >= least)) return;
      constexpr auto kLast = static_cast<float>(Team::kBuckets - 1);
      const float at = -x * buckets.scale;
      add(static_cast<int>(at < kLast ? at : kLast), static_cast<std::uint64_t>(mass));
    });
  } else {
    visit(row, [&](float logit, std::int32_t id) {
      const std::uint64_t mine = weight_of(weight, logit, id);
      const int bucket = bucket_of<Team>(buckets, logit, id);
      if (mine != 0 && bucket >= 0) add(bucket, mine);
    });
  }
  sync_block();
  TENON_NO_UNROLL
  for (int i = thread_id(); i < kGroups * kLanes; i += block_threads()) {
    std::uint64_t sum = 0;
    for (int n = i % kLanes; n < kOfGroup; n += kLanes) {
      const int bucket = i / kLanes * kOfGroup + n;
      sum += room.low[bucket] + (std::uint64_t{room.high[bucket]} << 32);
    }
    sum = lanes_total<kLanes>(sum);
    if (i % kLanes == 0) room.groups[turn][i / kLanes] = sum;
  }
  Team::sync();
  add_up_ranks<kGroups>(room, room.group_ends, [&](int group, int rank) {
    return *Team::at(&room.groups[turn][group], rank);
  });
  return room.group_ends[kGroups - 1];
}

// The bucket in which the sum reaches `target`, and the sum before it, of the last fill_buckets().
// There is one. A sync() stands between this and the next call.
struct Place {
  int bucket;
  std::uint64_t before;
};
template <class Team>
TENON_CALLED Place place_of(Room<Team>& of_team, std::uint64_t target) {
  constexpr int kGroups = Room<Team>::kGroups, kOfGroup = Room<Team>::kOfGroup;
  Room<Team>& room = Team::own(of_team);
  const int first = first_reaching<kGroups>(room.group_ends, target) * kOfGroup;
  const std::uint64_t before = first > 0 ? room.group_ends[first / kOfGroup - 1] : 0;
  add_up_ranks<kOfGroup>(room, room.bucket_ends,
                         [&](int i, int rank) { return sum_in<Team>(room, first + i, rank); });
  const int i = first_reaching<kOfGroup>(room.bucket_ends, target - before);
  return {first + i, before + (i > 0 ? room.bucket_ends[i - 1] : 0)};
}

// Lists what has weight in the buckets from `begin` to before `end`, on rank 0 and in no particular
// order, if there are at most kMaxListed; returns how many there are, or some number above that,
// everywhere. `listed` says what
// room.weights gets. A sync() stands between this and the next call.
template <class Team, class Row>
TENON_CALLED int list_buckets(Room<Team>& of_team, const Row row, int begin, int end, Count count,
                              Count listed) {
  Room<Team>& room = Team::own(of_team);
  if (thread_id() == 0) room.size = 0;
  sync_block();
  const Buckets buckets = room.buckets;
  const Weight weight = room.counts[count];
  // Most are left out by their distance. What is no number, here the end of all buckets or a
  // distance, leaves nothing out.
  const auto from = static_cast<float>(begin);
  const float to = end < Team::kBuckets ? static_cast<float>(end) : bits_float(0x7fc00000u);
  visit(row, [&](float logit, std::int32_t id) {
    const float at = (buckets.largest - logit) * buckets.scale;
    if (buckets.shift < 0 && (at < from || at >= to)) return;
    const int bucket = bucket_of<Team>(buckets, logit, id);
    if (bucket < begin || bucket >= end || weight_of(weight, logit, id) == 0) return;
    const std::uint32_t place = atomic_add(&room.size, 1u);
    if (place < kMaxListed) room.listed[place] = order_of(logit, id);
  });
  Team::sync();
  if (wave_id() == 0) {
    std::uint32_t up_to = 0;
    TENON_NO_UNROLL
    for (int rank = lane_id(); rank < Team::kRanks; rank += kWave) {
      const std::uint32_t found = *Team::at(&room.size, rank);
      up_to += found > kMaxListed ? kMaxListed + 1 : found;
      room.begins[rank + 1] = up_to;  // right where a lane has them all
    }
    if constexpr (kWave > 1) {
      static_assert(Team::kRanks <= kWave);
      up_to = lanes_up_to<Team::kRanks>(up_to);
      if (lane_id() < Team::kRanks) room.begins[lane_id() + 1] = up_to;
    }
    if (lane_id() == 0) room.begins[0] = 0;
  }
  sync_block();
  const auto size = static_cast<int>(room.begins[Team::kRanks]);
  if (size > kMaxListed) {
    Team::sync();
    return size;
  }
  if (Team::rank() != 0) return size;
  // A wave copies what one block has listed; several share that where there are more waves.
  const int waves = block_threads() / kWave;
  const int shares = waves > Team::kRanks ? waves / Team::kRanks : 1;
  TENON_NO_UNROLL
  for (int i = wave_id(); i < Team::kRanks * shares; i += waves) {
    const int rank = i % Team::kRanks;
    const std::uint32_t first = room.begins[rank], own = room.begins[rank + 1] - first;
    TENON_NO_UNROLL
    for (auto n = static_cast<std::uint32_t>(i / Team::kRanks * kWave + lane_id()); n < own;
         n += static_cast<std::uint32_t>(shares * kWave)) {
      const std::uint64_t order = *Team::at(&room.listed[n], rank);
      room.list[first + n] = order;
      room.weights[first + n] = weight_of(room.counts[listed], logit_in(order), id_in(order));
    }
  }
  sync_block();
  return size;
}

// A candidate, and the sum of the weights up to its own; whether the buckets were filled again to
// find it.
struct Found {
  std::uint64_t order, sum;
  bool refilled;
};

// On rank 0: the listed candidate in which the sum reaches `target`; `before` is the sum before the
// list. There is one.
template <class Team>
TENON_DEVICE Pair find_listed(Room<Team>& room, int size, std::uint64_t before,
                              std::uint64_t target) {
  constexpr int kLanes = kWave == 1 ? 1 : 8, kEach = kWave / kLanes;  // that have a candidate
  TENON_NO_UNROLL
  for (int first = wave_id() * kEach; first < size; first += block_threads() / kLanes) {
    const int i = first + lane_id() / kLanes;
    const std::uint64_t order = i < size ? room.list[i] : 0;
    std::uint64_t up_to = 0;
    for (int j = lane_id() % kLanes; j < size; j += kLanes)
      up_to += room.list[j] >= order ? room.weights[j] : 0;
    up_to = before + lanes_total<kLanes>(up_to);
    if (lane_id() % kLanes == 0 && i < size && up_to >= target && up_to - room.weights[i] < target)
      room.picked = {order, up_to};
  }
  sync_block();
  return room.picked;
}

// The first candidate up to which the weights reach `target`, which is at least 1 and at most what
// the last fill_buckets() returned. What is too much for a list is cut again, into other buckets.
// Known on rank 0 alone, or, with a sync() more, everywhere.
template <class Team, class Row>
TENON_CALLED Found find(Room<Team>& of_team, const Row row, Count count, std::uint64_t target,
                        bool everywhere) {
  Room<Team>& room = Team::own(of_team);
  std::uint64_t before = 0;
  TENON_NO_UNROLL
  for (bool refilled = false;; refilled = true) {
    const Place place = place_of(room, target - before);
    const int bucket = place.bucket;
    before += place.before;
    const int size = list_buckets(room, row, bucket, bucket + 1, count, count);
    if (size <= kMaxListed) {
      Pair found{0, 0};
      if (Team::rank() == 0) found = find_listed(room, size, before, target);
      if (everywhere) {
        Team::sync();
        if (thread_id() == 0) found = *Team::at(&room.picked, 0);
        found = tell(room, found);
      }
      return {found.x, found.y, refilled};
    }
    Pair ends{0, 0};
    const Buckets buckets = room.buckets;
    const Weight weight = room.counts[count];
    visit(row, [&](float logit, std::int32_t id) {
      if (bucket_of<Team>(buckets, logit, id) != bucket || weight_of(weight, logit, id) == 0)
        return;
      const std::uint64_t order = order_of(logit, id);
      ends = Larger::both(ends, {order, ~order});
    });
    ends = team_reduce<Larger>(room, ends, 0);
    if (thread_id() == 0) room.buckets = buckets_by_order<Team>(ends.x, ~ends.y);
    fill_buckets(room, row, count, 0);
  }
}

}  // namespace tenon::TENON_TARGET::sampling
