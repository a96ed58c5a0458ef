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

  const std::int32_t* wanted = nullptr;  // null: no row wants a report
  float *drawn = nullptr, *largest = nullptr, *listed_logits = nullptr;
  std::int64_t* mass = nullptr;
  std::int32_t* listed_ids = nullptr;
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
  if (args.report) {
    sample.wanted = args.report->wanted.as<const std::int32_t>();
    sample.drawn = args.report->drawn.as<float>();
    sample.largest = args.report->largest.as<float>();
    sample.mass = args.report->mass.as<std::int64_t>();
    sample.listed_ids = args.report->ids.as<std::int32_t>();
    sample.listed_logits = args.report->logits.as<float>();
  }
  return sample;
}

TENON_DEVICE LogitRow row_of(const Sample& sample, int r) {
  return {sample.logits + r * sample.row_stride, sample.slice_stride, sample.width,
          sample.num_tokens};
}
TENON_DEVICE const float* logit_at(const LogitRow& row, std::int32_t id) {
  const std::int32_t slice = id / row.width;
  return row.logits + slice * row.slice_stride + (id - slice * row.width);
}

TENON_DEVICE bool has_edits(const Sample& sample, int r) {
  return sample.edits != nullptr && sample.begins[r] < sample.begins[r + 1];
}
TENON_DEVICE bool wants_report(const Sample& sample, int r) {
  return sample.wanted != nullptr && sample.wanted[r] >= 0;
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

// ceil(total · top_p), at least 1.
TENON_DEVICE std::uint64_t share_of(std::uint64_t total, float top_p) {
  if (!(top_p < 1.0f)) return total;
  if (!(top_p > 0.0f)) return 1;
  const auto p = static_cast<std::uint64_t>(top_p * 0x1p24f);
  const std::uint64_t low = (total & 0xffffffu) * p;
  const std::uint64_t share = (total >> 24) * p + (low >> 24) + ((low & 0xffffffu) != 0 ? 1 : 0);
  return share > 0 ? share : 1;
}

// The least key that has a mass, or a lower one: e^-28.5 · 2^40 is below 1.
TENON_DEVICE std::uint32_t least_key(float largest, float temperature) {
  const std::uint32_t key = key_of(largest - 28.5f * temperature);
  return key > kNoKey ? key : kNoKey + 1;
}

// The token of row r, the same on every thread. ends: of all of the row, by see().
template <class Team, class Row>
TENON_DEVICE std::int32_t draw(Room<Team>& room, const Sample& sample, int r, const Row& row,
                               Pair ends) {
  if (key_in(ends.x) <= kNoKey) return -1;
  const float temperature = sample.temperature[r];
  const std::int32_t top_k = sample.top_k[r];
  if (!(temperature > 0.0f) || top_k == 1) return id_in(ends.x);

  const Weighing weighing{key_in(ends.x), temperature};
  const float largest = logit_of(weighing.largest);
  const float spread = largest - logit_of(~static_cast<std::uint32_t>(ends.y));
  const float reach = 28.5f * temperature;
  const Buckets buckets = buckets_by_logit<Team>(weighing.largest, spread < reach ? spread : reach);
  const std::uint32_t least = least_key(largest, temperature);

  // Phase 1: the last of the top_k. Candidates without mass do not matter.
  std::uint64_t last = 0;
  if (top_k > 1) {
    const CountWeight count{least};
    const auto kept = static_cast<std::uint64_t>(top_k);
    if (fill_buckets(room, row, buckets, count, 0) > kept)
      last = find(room, row, buckets, count, kept).order;
  }

  // Phase 2: the masses of those that stay, and where the share of them ends.
  const float min_p = sample.min_p != nullptr ? sample.min_p[r] : 0.0f;
  const float likely = min_p > 0.0f ? (min_p < 1.0f ? min_p : 1.0f) : 0.0f;
  const auto least_mass = static_cast<std::uint64_t>(likely * 0x1p24f) << 16;
  const MassWeight mass{weighing, least, last, least_mass};
  const std::uint64_t total = fill_buckets(room, row, buckets, mass, 0);
  const std::uint64_t share = share_of(total, sample.top_p[r]);
  const std::uint64_t kept_mass =
      share == total ? total : find(room, row, buckets, mass, share).sum;

  // Phase 3: the candidate that a random part of the kept mass ends in.
  const std::uint64_t random = tenon::sampling::random_bits(sample.seed[r], sample.position[r]);
  const std::uint64_t target = tenon::sampling::multiply_high(random, kept_mass) + 1;
  return id_in(find(room, row, buckets, mass, target).order);
}

// Writes the report of row r but for the logit of the token drawn. ends: of all of the row.
template <class Team, class Row>
TENON_DEVICE void report(Room<Team>& room, const Sample& sample, int r, const Row& row, Pair ends) {
  const std::uint32_t largest = key_in(ends.x);
  const bool any = largest > kNoKey;
  Pair mass{0, 0};
  int size = 0;
  if (any) {
    const MassWeight weight{{largest, 1.0f}, least_key(logit_of(largest), 1.0f), 0, 0};
    visit(row, [&](std::uint64_t order) { mass.x += weight_of(weight, order); });
    mass = team_reduce(room, mass, 1, [](Pair a, Pair b) { return Pair{a.x + b.x, a.y}; });
    size = sample.wanted[r] < kMaxLikely ? sample.wanted[r] : kMaxLikely;
  }
  if (size > 0) {
    const float spread = logit_of(largest) - logit_of(~static_cast<std::uint32_t>(ends.y));
    const Buckets buckets = buckets_by_logit<Team>(largest, spread);
    const CountWeight count{kNoKey + 1};
    const std::uint64_t found = fill_buckets(room, row, buckets, count, 0);
    if (found < static_cast<std::uint64_t>(size)) size = static_cast<int>(found);
    const std::uint64_t last =
        find(room, row, buckets, count, static_cast<std::uint64_t>(size)).order;
    list_bucket(room, row, Buckets{ends.x, last, 63, 0, 0}, 0, count);  // all in one bucket
  }
  if (Team::rank() != 0) return;
  for (int i = thread_id(); i < kMaxLikely; i += block_threads()) {
    int place = i < size ? 0 : i;
    for (int j = 0; j < size && i < size; ++j) place += room.list[j] > room.list[i] ? 1 : 0;
    const std::int32_t at = r * kMaxLikely + place;
    sample.listed_ids[at] = i < size ? id_in(room.list[i]) : -1;
    sample.listed_logits[at] = i < size ? logit_of(key_in(room.list[i])) : 0.0f;
  }
  if (thread_id() != 0) return;
  sample.largest[r] = any ? logit_of(largest) : 0.0f;
  sample.mass[r] = static_cast<std::int64_t>(mass.x);
}

// By one thread, when the row's logits are what they were.
TENON_DEVICE void finish_row(const Sample& sample, int r, const LogitRow& row, std::int32_t drawn) {
  sample.out[r] = drawn;
  if (wants_report(sample, r)) sample.drawn[r] = drawn < 0 ? 0.0f : *logit_at(row, drawn);
}

}  // namespace tenon::TENON_TARGET::sampling
