// Runs a model without the engine: caches, block tables and step views for a few sequences on any
// target, one forward pass at a time. Header-only: it needs the models floor.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "tenon/core/fp8.h"
#include "tenon/models/model.h"
#include "tests/support/copy_back.h"
#include "tests/support/device_array.h"

namespace tenon::test {

// The new tokens of one sequence in a step.
struct Turn {
  int sequence = 0;
  std::vector<std::int32_t> tokens;
};

// Logits of one rank: rows of `width` that begin at id `vocab_begin`.
struct ShardRows {
  int vocab_begin = 0;
  std::vector<std::vector<float>> rows;  // one per turn, or per token
  std::optional<TensorView> hidden;
};

class ModelDriver {
 public:
  static constexpr int kBlocksPerSequence = 4;

  ModelDriver(Model& model, int max_sequences, Stream& stream)
      : model_(model),
        stream_(stream),
        layout_(model.cache_layout()),
        max_sequences_(max_sequences),
        inputs_(stream, kMaxInputs) {
    lengths_.resize(static_cast<std::size_t>(max_sequences));
    const std::int64_t blocks = max_sequences * kBlocksPerSequence;
    for (const CacheSpec& spec : layout_.caches) {
      TensorView cache = spec.tensor(nullptr, stream_.device(),
                                     spec.per == CacheSpec::Per::kBlock ? blocks : max_sequences);
      auto memory = Buffer::allocate(stream_.device(), cache.bytes());
      EXPECT_TRUE(memory) << memory.status().message();
      cache.data = memory->data();
      memory_.push_back(*std::move(memory));
      caches_.push_back(cache);
    }
    restart();
  }

  // Forgets all sequences. Ranks that share a device must not make a driver each time instead:
  // freeing memory may wait for a peer that waits.
  void restart() {
    std::fill(lengths_.begin(), lengths_.end(), 0);
    for (const TensorView& cache : caches_)  // NaN: never read
      EXPECT_TRUE(stream_.fill(cache.data, 0xff, cache.bytes()));
  }

  // Called with each forward pass; replaceable, to measure it.
  std::function<void(const std::function<void()>&)> around_forward =
      [](const std::function<void()>& forward) { forward(); };

  bool wants_hidden = false;
  bool every_token = false;  // logits of every token, instead of each turn's last one

  // Of the steps so far.
  const StepCounts& counts() const { return counts_; }

  // One forward pass. A sequence starts with its first turn and continues with the later ones.
  // `padding` tokens are appended that belong to no sequence, and `empty` sequences without tokens.
  ShardRows step(const std::vector<Turn>& turns, int padding = 0, int empty = 0) {
    StepView step = fill(turns, padding, empty);
    step.wants_hidden = wants_hidden;
    counts_.add(step.shape.tokens);
    Result<StepOutput> output = Status();
    around_forward([&] { output = model_.forward(step, caches_, stream_); });
    ShardRows result;
    EXPECT_TRUE(output) << output.status().message();
    if (!output) return result;
    const TensorView& made = output->logits.logits;
    std::vector<float> logits(static_cast<std::size_t>(made.size()));
    const Status done = copy_back(stream_, logits.data(), made.data, made.bytes());
    EXPECT_TRUE(done) << done.to_string();
    if (!done) return result;
    result.vocab_begin = output->logits.vocab_begin;
    result.hidden = output->hidden;
    const std::int64_t width = made.shape[1];
    for (std::int64_t row = 0; row < made.shape[0]; ++row)
      result.rows.emplace_back(logits.begin() + row * width, logits.begin() + (row + 1) * width);
    return result;
  }

 private:
  static constexpr std::size_t kMaxInputs = 1 << 16;  // integers of a step

  TensorView ints(const std::vector<std::int32_t>& values) {
    const std::size_t at = written_.size();
    written_.insert(written_.end(), values.begin(), values.end());
    written_.resize((written_.size() + 63) / 64 * 64);  // arrays of a step are aligned
    return view(inputs_.data() + at, DType::kI32, stream_.device(),
                {static_cast<std::int64_t>(values.size())});
  }

  StepView fill(const std::vector<Turn>& turns, int padding, int empty) {
    written_.clear();
    std::vector<std::int32_t> ids, positions, slots, starts{0}, lengths, table, states, fresh, rows;
    StepView step;
    std::size_t longest = 0;
    for (const Turn& turn : turns) {
      int& length = lengths_[static_cast<std::size_t>(turn.sequence)];
      fresh.push_back(length == 0);
      states.push_back(turn.sequence);
      for (std::int32_t token : turn.tokens) {
        ids.push_back(token);
        positions.push_back(length);
        slots.push_back(block_of(turn.sequence, length / layout_.block_tokens) *
                            layout_.block_tokens +
                        length % layout_.block_tokens);
        ++length;
        if (every_token) rows.push_back(static_cast<std::int32_t>(ids.size()) - 1);
      }
      starts.push_back(static_cast<std::int32_t>(ids.size()));
      lengths.push_back(length);
      if (!every_token) rows.push_back(starts.back() - 1);
      for (int block = 0; block < kBlocksPerSequence; ++block)
        table.push_back(block_of(turn.sequence, block));
      longest = std::max(longest, turn.tokens.size());
    }
    for (int i = 0; i < padding; ++i) {
      ids.push_back(0);
      positions.push_back(0);
      slots.push_back(-1);
    }
    for (int i = 0; i < empty; ++i) {
      starts.push_back(starts.back());
      lengths.push_back(0);
      states.push_back(-1);
      fresh.push_back(1);
      table.insert(table.end(), kBlocksPerSequence, 0);
    }
    step.shape = {static_cast<int>(ids.size()), static_cast<int>(lengths.size()),
                  static_cast<int>(rows.size()), longest == 1};
    step.token_ids = ints(ids);
    step.positions = ints(positions);
    step.sequence_starts = ints(starts);
    step.sequence_lengths = ints(lengths);
    step.slot_mapping = ints(slots);
    step.block_table = ints(table);
    step.block_table = view(step.block_table.data, DType::kI32, stream_.device(),
                            {step.shape.sequences, kBlocksPerSequence});
    step.state_from = step.state_to = ints(states);
    step.fresh = ints(fresh);
    step.logit_rows = ints(rows);
    inputs_.put(written_);
    return step;
  }

  // Blocks of a sequence are scattered, so that nobody may assume neighbours.
  int block_of(int sequence, int block) const { return block * max_sequences_ + sequence; }

  Model& model_;
  Stream& stream_;
  CacheLayout layout_;
  int max_sequences_;
  std::vector<int> lengths_;
  StepCounts counts_{1000};
  std::vector<TensorView> caches_;
  std::vector<Buffer> memory_;
  DeviceArray<std::int32_t> inputs_;
  std::vector<std::int32_t> written_;  // to inputs_
};

}  // namespace tenon::test
