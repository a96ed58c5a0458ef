// One row of sampling: the draw, the edits and the report, for any team and any kind of row
// (select.cuh). What they compute stands in sampling.h.
#pragma once

#include "tenon/ops/sampling/philox.cuh"
#include "tenon/ops/sampling/sampling.h"
#include "tenon/ops/sampling/select.cuh"

namespace tenon::TENON_TARGET::sampling {

using Args = tenon::sampling::Args;
using tenon::sampling::Edit;
using tenon::sampling::kMaxLikely;

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

  const Edit* edits = nullptr;  // null: no row has any
  const std::int32_t* begins = nullptr;
  const float *repetition = nullptr, *frequency = nullptr, *presence = nullptr;
  float* saved = nullptr;

  const std::uint32_t* allowed = nullptr;  // null: no row has a mask
  const std::int32_t* which = nullptr;
  std::int32_t mask_words = 0;

  const std::int32_t* wanted = nullptr;  // null: no row wants a report
  float *drawn = nullptr, *largest = nullptr, *listed_logits = nullptr;
  std::int64_t* mass = nullptr;
  std::int32_t* listed_ids = nullptr;
  const std::int32_t* given = nullptr;  // null: a report is of the token drawn
  std::int32_t* before = nullptr;       // null: nobody asks; only beside given
};

inline Sample sample_of(const Args& args) {
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
    sample.edits = args.edits->list.as<const Edit>();
    sample.begins = args.edits->begins.as<const std::int32_t>();
    sample.repetition = args.edits->repetition.as<const float>();
    sample.frequency = args.edits->frequency.as<const float>();
    sample.presence = args.edits->presence.as<const float>();
    sample.saved = args.edits->saved.as<float>();
  }
  if (args.mask) {
    sample.allowed = args.mask->allowed.as<const std::uint32_t>();
    sample.which = args.mask->which.as<const std::int32_t>();
    sample.mask_words = static_cast<std::int32_t>(args.mask->allowed.shape[1]);
  }
  if (args.report) {
    sample.wanted = args.report->wanted.as<const std::int32_t>();
    sample.drawn = args.report->drawn.as<float>();
    sample.largest = args.report->largest.as<float>();
    sample.mass = args.report->mass.as<std::int64_t>();
    sample.listed_ids = args.report->ids.as<std::int32_t>();
    sample.listed_logits = args.report->logits.as<float>();
    if (args.report->given) {
      sample.given = args.report->given->as<const std::int32_t>();
      if (args.report->before) sample.before = args.report->before->as<std::int32_t>();
    }
  }
  return sample;
}

TENON_DEVICE LogitRow row_of(const Sample& sample, int r) {
  return {sample.logits + r * sample.row_stride, sample.slice_stride, sample.width,
          sample.num_tokens, nullptr};
}
TENON_DEVICE const float* logit_at(const LogitRow& row, std::int32_t id) {
  const std::int32_t slice = id / row.width;
  return row.logits + slice * row.slice_stride + (id - slice * row.width);
}

TENON_DEVICE Setting setting_of(const Sample& sample, int r) {
  Setting setting{};
  setting.temperature = sample.temperature[r];
  setting.top_p = sample.top_p[r];
  setting.top_k = sample.top_k[r];
  setting.position = sample.position[r];
  setting.seed = sample.seed[r];
  if (sample.min_p != nullptr) setting.min_p = sample.min_p[r];
  setting.wanted = sample.wanted != nullptr ? sample.wanted[r] : -1;
  if (sample.edits != nullptr) setting.edits = sample.begins[r] < sample.begins[r + 1];
  const std::int32_t which = sample.allowed != nullptr ? sample.which[r] : -1;
  if (which >= 0) setting.mask = sample.allowed + std::int64_t{which} * sample.mask_words;
  return setting;
}

TENON_DEVICE float edited(float logit, const Edit& edit, const Sample& sample, int r) {
  logit = logit + edit.bias;
  if (edit.said == 0) return logit;
  const float repetition = sample.repetition[r];
  logit = logit > 0.0f ? logit / repetition : logit * repetition;
  logit = logit - sample.frequency[r] * static_cast<float>(edit.said >> 1);
  return edit.said > 1 ? logit - sample.presence[r] : logit;
}

// Calls body(edit, its number) for the edits of row r that are this thread's of the block, in each
// block of a team alike; those of ids that have no token are none.
template <class Body>
TENON_DEVICE void visit_edits(const Sample& sample, int r, Body body) {
  for (std::int32_t i = sample.begins[r] + thread_id(); i < sample.begins[r + 1];
       i += block_threads()) {
    const Edit edit = sample.edits[i];
    if (edit.id >= 0 && edit.id < sample.num_tokens) body(edit, i);
  }
}

// One thread loads all of it at once, for the block: all have it behind the next barrier. The
// others need not wait for it before they ask for logits, nor for the rounds of the random number.
template <class Team>
TENON_DEVICE void keep_setting(Room<Team>& room, const Sample& sample, int r) {
  if (thread_id() != block_threads() - 1) return;
  const Setting setting = setting_of(sample, r);
  room.setting = setting;
  room.random = tenon::sampling::random_bits(setting.seed, setting.position);
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

// On rank 0: the token among the first top_k of the listed candidates, of which room has the
// masses.
template <class Team>
TENON_DEVICE std::int32_t draw_listed(Room<Team>& room, int size) {
  constexpr int kEach = kMaxListed / (kWave == 1 ? 1 : 256);  // listed ones of a thread
  std::uint64_t up_to[kEach];  // 0 where it is not kept or has no mass
  std::uint64_t total = 0;
  for (int n = 0; n < kEach; ++n) {
    const int i = thread_id() + n * block_threads();
    int place = 0;
    up_to[n] = 0;
    if (i >= size || room.weights[i] == 0) continue;
    const std::uint64_t own = room.list[i];
    for (int j = 0; j < size; ++j) {
      if (room.list[j] < own) continue;
      up_to[n] += room.weights[j];
      ++place;
    }
    if (place > room.setting.top_k) up_to[n] = 0;
    total = up_to[n] > total ? up_to[n] : total;
  }
  total = reduce<Larger>(room, Pair{total, 0}).x;
  // The first sum that is at least `target`; no two are the same.
  const auto reach = [&](std::uint64_t target) {
    std::uint64_t found = 0;
    for (int n = 0; n < kEach; ++n)
      if (up_to[n] >= target && ~up_to[n] > found) found = ~up_to[n];
    return ~reduce<Larger>(room, Pair{found, 0}).x;
  };
  const std::uint64_t share = share_of(total, room.setting.top_p);
  const std::uint64_t kept_mass = share == total ? total : reach(share);
  const std::uint64_t drawn = reach(tenon::sampling::multiply_high(room.random, kept_mass) + 1);
  for (int n = 0; n < kEach; ++n)
    if (up_to[n] == drawn) room.picked.x = room.list[thread_id() + n * block_threads()];
  sync_block();
  return id_in(room.picked.x);
}

// The token of the row, on all threads of rank 0. seen: of all of the row.
template <class Team, class Row>
TENON_DEVICE std::int32_t draw(Room<Team>& room, const Row& row, const Seen& seen) {
  if (!(seen.largest > -kInfinity)) return -1;
  const Setting& setting = room.setting;
  if (!(setting.temperature > 0.0f) || setting.top_k == 1) return seen.id;

  const float spread = seen.largest - seen.smallest, reach = 28.5f * setting.temperature;
  const float range = spread < reach ? spread : reach;
  if (thread_id() == 0) {
    const float min_p = setting.min_p;
    const float likely = min_p > 0.0f ? (min_p < 1.0f ? min_p : 1.0f) : 0.0f;
    Weight& mass = room.counts[kByMass];
    mass = mass_from(seen.largest, setting.temperature);
    mass.least_mass = static_cast<std::uint64_t>(likely * 0x1p24f) << 16;
    room.counts[kByNumber] = count_from(mass.least);
    room.buckets = buckets_by_logit<Team>(seen.largest, range);
  }

  // Phase 1: the top_k. Candidates without mass do not matter. Those of whole buckets that fit in a
  // list are drawn from there; else the last one that counts is searched for.
  if (setting.top_k > 1) {
    const std::uint64_t found = fill_buckets(room, row, kByNumber, 0);
    const auto kept = static_cast<std::uint64_t>(setting.top_k);
    if (kept <= kMaxListed || found <= kMaxListed) {
      const int end =
          found > kept ? place_of(room, kept).bucket + 1 : static_cast<int>(Team::kBuckets);
      const int size = list_buckets(room, row, 0, end, kByNumber, kByMass);
      if (size <= kMaxListed) return Team::rank() == 0 ? draw_listed(room, size) : -1;
    }
    if (found > kept) {
      // A list that was too long has left the buckets as they were.
      const Found last = find(room, row, kByNumber, kept, true);
      if (thread_id() == 0) {
        room.counts[kByMass].last = last.order;
        room.counts[kByMass].least = logit_in(last.order);
        if (last.refilled) room.buckets = buckets_by_logit<Team>(seen.largest, range);
      }
    }
  }

  // Phase 2: the masses of those that stay. Where top_p's share of them ends is searched for like
  // the draw itself.
  const std::uint64_t total = fill_buckets(room, row, kByMass, 1);
  const std::uint64_t share = share_of(total, setting.top_p);
  std::uint64_t kept_mass = total;

  // Phase 3: the candidate that a random part of the kept mass ends in.
  TENON_NO_UNROLL
  for (bool drawing = share == total;; drawing = true) {
    const std::uint64_t target =
        drawing ? tenon::sampling::multiply_high(room.random, kept_mass) + 1 : share;
    const Found found = find(room, row, kByMass, target, !drawing);
    if (drawing) return id_in(found.order);
    kept_mass = found.sum;
    if (!found.refilled) continue;
    if (thread_id() == 0) room.buckets = buckets_by_logit<Team>(seen.largest, range);
    fill_buckets(room, row, kByMass, 1);
  }
}

// The order that the candidates before the given id of row r exceed; above all orders where nobody
// asks.
TENON_DEVICE std::uint64_t order_of_given(const Sample& sample, int r) {
  if (sample.before == nullptr) return ~std::uint64_t{0};
  const std::int32_t id = sample.given[r];
  const float logit = plain(*logit_at(row_of(sample, r), id));
  return order_of(logit, logit > -kInfinity ? id : 0);
}

// Writes the report of row r but for the logit of the token drawn or given. seen: of all of the
// row; wanted: how many ids to list.
template <class Team, class Row>
TENON_CALLED void report(Room<Team>& of_team, const Sample& sample, int r, std::int32_t wanted_ids,
                         const Row row, const Seen seen) {
  Room<Team>& room = Team::own(of_team);
  const bool any = seen.largest > -kInfinity;
  Pair mass{0, 0};  // and how many come before the given id
  int size = 0;
  if (any) {
    const Weight weight = mass_from(seen.largest, 1.0f);
    const std::uint64_t given = order_of_given(sample, r);
    visit(row, [&](float logit, std::int32_t id) {
      mass.x += weight_of(weight, logit, id);
      mass.y += order_of(logit, id) > given ? 1 : 0;
    });
    mass = team_reduce<Sum>(room, mass, 1);
    size = wanted_ids < kMaxLikely ? wanted_ids : kMaxLikely;
  }
  int listed = 0;
  if (size > 0) {
    if (thread_id() == 0) {
      room.buckets = buckets_by_logit<Team>(seen.largest, seen.largest - seen.smallest);
      room.counts[kByNumber] = count_from(-FLT_MAX);
    }
    const std::uint64_t found = fill_buckets(room, row, kByNumber, 0);
    if (found < static_cast<std::uint64_t>(size)) size = static_cast<int>(found);
    const auto wanted = static_cast<std::uint64_t>(size);
    const int end = place_of(room, wanted).bucket + 1;
    listed = list_buckets(room, row, 0, end, kByNumber, kByNumber);
    if (listed > kMaxListed) {
      const std::uint64_t last = find(room, row, kByNumber, wanted, true).order;
      if (thread_id() == 0) room.buckets = {0, 0, 63, ~std::uint64_t{0}, last};
      listed = list_buckets(room, row, 0, 2, kByNumber, kByNumber);
    }
  }
  if (Team::rank() != 0) return;
  const std::int32_t begin = r * kMaxLikely;
  for (int i = thread_id(); i < listed; i += block_threads()) {
    int place = 0;
    for (int j = 0; j < listed; ++j) place += room.list[j] > room.list[i] ? 1 : 0;
    if (place >= size) continue;
    sample.listed_ids[begin + place] = id_in(room.list[i]);
    sample.listed_logits[begin + place] = logit_in(room.list[i]);
  }
  for (int i = size + thread_id(); i < kMaxLikely; i += block_threads()) {
    sample.listed_ids[begin + i] = -1;
    sample.listed_logits[begin + i] = 0.0f;
  }
  if (thread_id() != 0) return;
  sample.largest[r] = any ? seen.largest : 0.0f;
  sample.mass[r] = static_cast<std::int64_t>(mass.x);
  if (sample.before != nullptr) sample.before[r] = any ? static_cast<std::int32_t>(mass.y) : -1;
}

// By one thread, when the row's logits are what they were.
TENON_DEVICE void finish_row(const Sample& sample, int r, const Setting& setting,
                             const LogitRow& row, std::int32_t drawn) {
  sample.out[r] = drawn;
  if (setting.wanted < 0) return;
  const std::int32_t id = sample.given != nullptr ? sample.given[r] : drawn;
  sample.drawn[r] = id < 0 ? 0.0f : *logit_at(row, id);
}

}  // namespace tenon::TENON_TARGET::sampling
