// A model that writes down what it makes of which tokens, for tests that compare every bit of the
// logits of a sequence between runs.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/runtime/engine.h"
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

// A model that writes down what it makes. On host targets, whose memory can be read right here.
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

  Result<StepOutput> forward(const StepView& step, CacheViews caches, Stream& stream) override {
    TENON_ASSIGN(const StepOutput made, model_->forward(step, caches, stream));
    const LogitsShard& shard = made.logits;
    TENON_TRY(stream.synchronize());
    const auto* ids = step.token_ids.as<const std::int32_t>();
    const auto* starts = step.sequence_starts.as<const std::int32_t>();
    for (int s = 0; s < step.shape.sequences; ++s) {
      if (starts[s] == starts[s + 1]) continue;  // padding
      SoFar so_far;
      if (step.fresh.as<const std::int32_t>()[s] == 0)
        so_far = by_slot_[step.state_from.as<const std::int32_t>()[s]];
      so_far.tokens.insert(so_far.tokens.end(), ids + starts[s], ids + starts[s + 1]);
      if (starts[s + 1] - starts[s] > 1) so_far.as_prompt = so_far.tokens.size();
      by_slot_[step.state_to.as<const std::int32_t>()[s]] = so_far;
      const auto width = static_cast<std::size_t>(shard.logits.shape[1]);
      const std::string_view bytes(
          reinterpret_cast<const char*>(shard.logits.as<const float>() +
                                        static_cast<std::size_t>(s) * width),
          width * sizeof(float));
      record_.add(rank_, so_far, fnv1a64(bytes));
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
    wanted.max_context = options.max_context;
    wanted.force_stage = options.force_stage;
    TENON_ASSIGN(auto model, open_model(options.model, wanted, comm, stream));
    return std::unique_ptr<Model>(new Witness(std::move(model), comm.rank(), record));
  };
}

}  // namespace tenon::test
