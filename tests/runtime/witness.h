// A model that writes down what it makes of which tokens, for tests that compare every bit of the
// logits of a sequence between runs.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/core/hash.h"
#include "tenon/runtime/engine.h"
#include "tests/support/copy_back.h"
#include "tests/support/small_model.h"

namespace tenon::test {

using Tokens = std::vector<std::int32_t>;

// A sequence so far. What was computed as a prompt has other bits than what was drawn.
struct SoFar {
  Tokens tokens;
  std::size_t as_prompt = 0;  // of them, in steps of more than one
  friend auto operator<=>(const SoFar&, const SoFar&) = default;
};

// Hashes of logits by rank and by the sequence that they follow. Ranks are threads.
class Record {
 public:
  void add(int rank, const SoFar& sequence, std::uint64_t hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [at, is_new] = hashes_.emplace(std::pair{rank, sequence}, hash);
    if (!is_new && at->second != hash) ++differences_;
  }
  void clear() {
    hashes_.clear();
    differences_ = 0;
  }
  std::size_t size() const { return hashes_.size(); }
  int differences() const { return differences_; }

 private:
  std::mutex mutex_;
  std::map<std::pair<int, SoFar>, std::uint64_t> hashes_;
  int differences_ = 0;
};

// What a stream's device holds, on the host.
template <class T>
Result<std::vector<T>> read(const TensorView& from, Stream& stream) {
  std::vector<T> values(static_cast<std::size_t>(from.size()));
  TENON_TRY(copy_back(stream, values.data(), from.data, from.bytes()));
  return values;
}

// A model that writes down what it makes.
class Witness : public Model {
 public:
  Witness(std::unique_ptr<Model> model, int rank, Record& record)
      : model_(std::move(model)), rank_(rank), record_(record) {}

  CacheLayout cache_layout() const override { return model_->cache_layout(); }
  int vocab_size() const override { return model_->vocab_size(); }
  int num_ids() const override { return model_->num_ids(); }
  std::vector<std::int32_t> eos_ids() const override { return model_->eos_ids(); }
  std::vector<BoundaryUse> boundary_uses(const StepCounts& steps) const override {
    return model_->boundary_uses(steps);
  }
  bool launches_only() const override { return false; }
  std::int64_t weight_bytes() const override { return model_->weight_bytes(); }
  Result<LogitsShard> logits_of(const TensorView& rows, Stream& stream) override {
    return model_->logits_of(rows, stream);
  }

  Result<StepOutput> forward(const StepView& step, CacheViews caches, Stream& stream) override {
    TENON_ASSIGN(const StepOutput made, model_->forward(step, caches, stream));
    const LogitsShard& shard = made.logits;
    TENON_ASSIGN(const auto ids, read<std::int32_t>(step.token_ids, stream));
    TENON_ASSIGN(const auto starts, read<std::int32_t>(step.sequence_starts, stream));
    TENON_ASSIGN(const auto from, read<std::int32_t>(step.state_from, stream));
    TENON_ASSIGN(const auto to, read<std::int32_t>(step.state_to, stream));
    TENON_ASSIGN(const auto fresh, read<std::int32_t>(step.fresh, stream));
    TENON_ASSIGN(const auto logits, read<float>(shard.logits, stream));
    const auto width = static_cast<std::size_t>(shard.logits.shape[1]);
    for (std::size_t s = 0; s < static_cast<std::size_t>(step.shape.sequences); ++s) {
      if (starts[s] == starts[s + 1]) continue;  // padding
      SoFar so_far;
      if (fresh[s] == 0) so_far = by_slot_[from[s]];
      so_far.tokens.insert(so_far.tokens.end(), ids.begin() + starts[s],
                           ids.begin() + starts[s + 1]);
      if (starts[s + 1] - starts[s] > 1) so_far.as_prompt = so_far.tokens.size();
      by_slot_[to[s]] = so_far;
      const std::string_view bytes(reinterpret_cast<const char*>(&logits[s * width]),
                                   width * sizeof(float));
      record_.add(rank_, so_far, fnv1a(bytes));
    }
    return made;
  }

 private:
  std::unique_ptr<Model> model_;
  int rank_;
  Record& record_;
  std::map<std::int32_t, SoFar> by_slot_;
};

// Opens options.model on every rank with a witness around it.
inline Engine::ModelFactory witness_factory(const EngineOptions& options, Record& record) {
  return [&record, options](Communicator& comm, Stream& stream) -> Result<std::unique_ptr<Model>> {
    ModelOptions wanted;
    wanted.max_tokens_per_step = options.max_tokens_per_step;
    wanted.max_sequences = options.max_batch;
    wanted.max_logits = std::max(options.max_batch, 32);
    wanted.max_context = options.max_context;
    wanted.force_stage = options.force_stage;
    TENON_ASSIGN(auto model, open_model(options.model, wanted, comm, stream));
    return std::unique_ptr<Model>(new Witness(std::move(model), comm.rank(), record));
  };
}

}  // namespace tenon::test
