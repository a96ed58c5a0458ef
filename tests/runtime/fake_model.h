// A model without weights, for tests of the engine: it keeps the tokens it has seen in the kv
// blocks and a hash of them in the state slot, demands that the step's positions, slots, tables and
// lengths agree with both, and makes the token expected_token() of the whole context the most
// likely one.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tenon/models/model.h"

namespace tenon::test {

inline std::uint32_t extended_hash(std::uint32_t hash, std::int32_t token) {
  return (hash ^ (static_cast<std::uint32_t>(token) + 1)) * 0x01000193u;
}

// The logit of `id` behind the tokens of `hash`, where there is a number.
inline float fake_logit(std::uint32_t hash, int id, int num_tokens) {
  if (id >= num_tokens) return 100.0f;  // without a token: never to be drawn
  const auto best = static_cast<int>((hash >> 8) % static_cast<std::uint32_t>(num_tokens));
  return id == best ? 8.0f : static_cast<float>((hash + static_cast<unsigned>(id)) % 5u);
}

// What follows `tokens`, of `num_tokens` possible ones.
inline std::int32_t expected_token(const std::vector<std::int32_t>& tokens, int num_tokens) {
  std::uint32_t hash = 0;
  for (std::int32_t token : tokens) hash = extended_hash(hash, token);
  return static_cast<std::int32_t>((hash >> 8) % static_cast<std::uint32_t>(num_tokens));
}

struct FakeOptions {
  int vocab = 64;       // divisible by the ranks
  int num_ids = 64;     // the rest of vocab is padding
  int num_tokens = 60;  // never makes an id at or past this
  std::int32_t eos = 7;
  // Called by every rank before its step is computed; an error is the model's error.
  std::function<Status(int rank, int step)> before_step;
  int kv_layers = 1;
  // A sequence that has met this token has NaN in its caches and logits from then on, and so has
  // one whose caches hold NaN from somebody before it. Negative: none.
  std::int32_t poison = -1;
};

class FakeModel final : public Model {
 public:
  FakeModel(const FakeOptions& options, Communicator& comm, int max_sequences)
      : options_(options), comm_(comm), width_(options.vocab / comm.size()) {
    logits_.resize(static_cast<std::size_t>(width_ * std::max(max_sequences, kFurtherRows)));
  }

  // The first cache has a 32-bit token for each place of a block, the second NaN where a poisoned
  // one lies; the third and the fourth have a State for each sequence, and a NaN or nothing.
  // Further caches of blocks are never looked at.
  CacheLayout cache_layout() const override {
    using Per = CacheSpec::Per;
    CacheLayout layout;
    layout.caches = {{"tokens", DType::kI32, Per::kBlock, {64}},
                     {"poison", DType::kI32, Per::kBlock, {64}},
                     {"state", DType::kI32, Per::kSequence, {sizeof(State) / 4}},
                     {"poisoned", DType::kI32, Per::kSequence, {3}}};
    for (int layer = 1; layer < options_.kv_layers; ++layer)
      layout.caches.push_back({"more", DType::kF32, Per::kBlock, {64, 2}});
    return layout;
  }
  int vocab_size() const override { return options_.vocab; }
  int num_ids() const override { return options_.num_ids; }
  std::vector<std::int32_t> eos_ids() const override { return {options_.eos}; }
  bool launches_only() const override { return false; }
  std::vector<BoundaryUse> boundary_uses(const StepCounts&) const override { return {}; }
  std::int64_t weight_bytes() const override { return 0; }

  // At most kFurtherRows of them.
  Result<LogitsShard> logits_of(const TensorView& rows, Stream& stream) override {
    TENON_TRY(stream.synchronize());  // the numbers come by it
    const auto count = static_cast<int>(rows.shape[0]);
    TENON_TRY(demand(count > 0 && count <= kFurtherRows, "the number of further rows"));
    for (int row = 0; row < count; ++row) {
      const std::int32_t number = rows.as<const std::int32_t>()[row];
      TENON_TRY(demand(number >= 0 && number < static_cast<std::int32_t>(behind_.size()),
                       "the number of a further row"));
      write_logits(row, behind_[static_cast<std::size_t>(number)], false);
    }
    LogitsShard shard;
    shard.logits = view(logits_.data(), DType::kF32, comm_.device(), {count, width_});
    shard.vocab_begin = comm_.rank() * width_;
    return shard;
  }

  Result<StepOutput> forward(const StepView& step, CacheViews caches, Stream&) override {
    if (options_.before_step) TENON_TRY(options_.before_step(comm_.rank(), steps_));
    ++steps_;
    behind_.assign(static_cast<std::size_t>(step.shape.tokens), 0);
    TENON_TRY(demand(step.sequence_starts.as<std::int32_t>()[0] == 0, "the first start"));
    TENON_TRY(demand(step.shape.logits == step.shape.sequences, "the number of logits"));
    for (int sequence = 0; sequence < step.shape.sequences; ++sequence)
      TENON_TRY(run_sequence(step, caches, sequence));
    TENON_TRY(check_padding(step));
    StepOutput output;
    output.logits.logits =
        view(logits_.data(), DType::kF32, comm_.device(), {step.shape.logits, width_});
    output.logits.vocab_begin = comm_.rank() * width_;
    return output;
  }

 private:
  struct State {
    std::uint32_t count, hash, nan;
  };
  static constexpr int kFurtherRows = 32;
  static constexpr std::uint32_t kNan = 0x7fc07fc0u;  // a NaN in f32, and two in bf16

  static Status demand(bool condition, const char* what) {
    if (condition) return Status::ok();
    return Status::error(Code::kInternal, std::string("fake model: ") + what + " does not agree");
  }

  Status run_sequence(const StepView& step, CacheViews caches, int row) {
    const auto* starts = step.sequence_starts.as<std::int32_t>();
    const int slot = step.state_to.as<std::int32_t>()[row];
    const int from = step.state_from.as<std::int32_t>()[row];
    if (starts[row + 1] == starts[row]) return check_empty(step, row);
    TENON_TRY(demand(slot >= 0 && slot < caches[2].shape[0], "the state slot"));
    TENON_TRY(demand(from >= 0 && from < caches[2].shape[0], "the state slot to read"));
    TENON_TRY(demand(nobody_else_writes(step, from, row), "a state that another writes"));
    auto* state = caches[2].as<State>() + slot;
    const bool fresh = step.fresh.as<std::int32_t>()[row] != 0;
    if (fresh) state->count = state->hash = 0;
    if (!fresh && from != slot) {
      *state = caches[2].as<State>()[from];
      caches[3].as<std::uint32_t>()[slot * 3] = caches[3].as<std::uint32_t>()[from * 3];
    }
    const int count = starts[row + 1] - starts[row];
    TENON_TRY(demand(count == 1 || (count > 1 && !step.shape.decode), "the count of tokens"));
    // A prompt may be cut only at whole chunks.
    TENON_TRY(demand(state->count % 64 == 0 || count == 1, "the place where a prompt is cut"));
    for (int token = starts[row]; token < starts[row + 1]; ++token) {
      const std::int32_t id = step.token_ids.as<std::int32_t>()[token];
      const std::int32_t place = step.slot_mapping.as<std::int32_t>()[token];
      TENON_TRY(demand(
          step.positions.as<std::int32_t>()[token] == static_cast<std::int32_t>(state->count),
          "the position of a token"));
      TENON_TRY(demand(place >= 0 && place < caches[0].shape[0] * 64, "the slot of a token"));
      caches[0].as<std::int32_t>()[place] = id;
      if (id == options_.poison) poison(caches, slot, place);
      state->hash = extended_hash(state->hash, id);
      ++state->count;
      behind_[static_cast<std::size_t>(token)] = state->hash;
    }
    const int length = step.sequence_lengths.as<std::int32_t>()[row];
    TENON_TRY(demand(length == static_cast<std::int32_t>(state->count), "the length"));
    TENON_TRY(
        demand(step.logit_rows.as<std::int32_t>()[row] == starts[row + 1] - 1, "the logit row"));
    TENON_TRY(demand(hash_of_blocks(step, caches, row, length) == state->hash, "the block table"));
    write_logits(row, state->hash, is_poisoned(step, caches, row, length));
    return Status::ok();
  }

  // Padding: a sequence without tokens, of which nobody reads a logit.
  Status check_empty(const StepView& step, int row) {
    TENON_TRY(demand(row > 0 && step.shape.decode, "the place of a sequence without tokens"));
    TENON_TRY(demand(step.state_to.as<std::int32_t>()[row] == -1, "the state of padding"));
    TENON_TRY(demand(step.sequence_lengths.as<std::int32_t>()[row] == 0, "the length of padding"));
    write_logits(row, 0, false);
    return demand(step.logit_rows.as<std::int32_t>()[row] == 0, "the logit row of padding");
  }
  // Rows of no sequence.
  static Status check_padding(const StepView& step) {
    for (int token = step.sequence_starts.as<std::int32_t>()[step.shape.sequences];
         token < step.shape.tokens; ++token)
      TENON_TRY(demand(step.slot_mapping.as<std::int32_t>()[token] == -1, "the slot of padding"));
    return Status::ok();
  }

  static bool nobody_else_writes(const StepView& step, int slot, int row) {
    for (int each = 0; each < step.shape.sequences; ++each)
      if (each != row && step.state_to.as<std::int32_t>()[each] == slot) return false;
    return true;
  }

  void poison(CacheViews caches, int slot, int place) {
    caches[2].as<State>()[slot].nan = kNan;
    caches[3].as<std::uint32_t>()[slot * 3] = kNan;
    caches[1].as<std::uint32_t>()[place] = kNan;
  }

  // NaN anywhere in what the sequence holds: also past its end, where a kernel may multiply by 0.
  bool is_poisoned(const StepView& step, CacheViews caches, int row, int length) const {
    if (options_.poison < 0) return false;
    const int slot = step.state_to.as<std::int32_t>()[row];
    if (caches[2].as<State>()[slot].nan == kNan) return true;
    if (caches[3].as<std::uint32_t>()[slot * 3] == kNan) return true;
    const auto* table = step.block_table.as<std::int32_t>() + row * step.block_table.shape[1];
    for (int block = 0; block < (length + 63) / 64; ++block)
      for (int i = 0; i < 64; ++i)
        if (caches[1].as<std::uint32_t>()[table[block] * 64 + i] == kNan) return true;
    return false;
  }

  // The same hash, from the kv cache and the block table alone.
  static std::uint32_t hash_of_blocks(const StepView& step, CacheViews caches, int row,
                                      int length) {
    const auto* table = step.block_table.as<std::int32_t>() + row * step.block_table.shape[1];
    std::uint32_t hash = 0;
    for (int position = 0; position < length; ++position)
      hash = extended_hash(hash,
                           caches[0].as<std::int32_t>()[table[position / 64] * 64 + position % 64]);
    return hash;
  }

  void write_logits(int row, std::uint32_t hash, bool no_number) {
    for (int column = 0; column < width_; ++column) {
      const int id = comm_.rank() * width_ + column;
      float logit = fake_logit(hash, id, options_.num_tokens);
      if (no_number)
        logit = id % 3 == 0 ? -std::numeric_limits<float>::infinity()
                            : std::numeric_limits<float>::quiet_NaN();
      logits_[static_cast<std::size_t>(row * width_ + column)] = logit;
    }
  }

  FakeOptions options_;
  Communicator& comm_;
  int width_, steps_ = 0;
  std::vector<float> logits_;
  std::vector<std::uint32_t> behind_;  // the hash behind each token of the last step
};

}  // namespace tenon::test
