// The contract between the runtime, which fills these, and the models, which read them. It lies
// below both so that neither includes the other.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include "tenon/core/tensor.h"

namespace tenon {

// How large a step is: what plans, padding and graphs go by.
struct StepShape {
  int tokens = 0, sequences = 0;
  int logits = 0;       // rows of logits
  bool decode = false;  // no sequence has more than one token
  int arm = 0;          // which of the stage policies of ModelOptions its boundaries follow
  friend auto operator<=>(const StepShape&, const StepShape&) = default;
};

// One forward pass over a mix of prefill and decode sequences. Device views at fixed addresses;
// what they hold stands in step_fields.def. A step may be padded: behind the last sequence with
// tokens there may be sequences without any, and behind their tokens rows of no sequence. Padding
// writes no cache, changes no bit of any other row, and leaves finite numbers in its own.
struct StepView {
  StepShape shape;
  bool wants_hidden = false;  // asks for StepOutput::hidden
#define TENON_STEP_FIELD(name, element, extent) TensorView name;
#include "tenon/layers/step_fields.def"
};

// This rank's slice of the vocabulary: ids [vocab_begin, vocab_begin + width).
struct LogitsShard {
  TensorView logits;  // f32 [shape.logits, width]
  int vocab_begin = 0;
};

// What a forward pass leaves behind, until the next one.
struct StepOutput {
  LogitsShard logits;
  // Where asked: what the head reads, bf16 [tokens, hidden], the same on every rank.
  std::optional<TensorView> hidden;
};

// How many steps have run, by their arm and their number of tokens, padding included.
class StepCounts {
 public:
  explicit StepCounts(int max_tokens, int arms = 1)
      : width_(static_cast<std::size_t>(max_tokens) + 1),
        counts_(width_ * static_cast<std::size_t>(arms)) {}
  void add(int tokens, int arm = 0) { ++counts_[at(tokens, arm)]; }
  // Steps of more than `above` and at most `most` tokens.
  std::uint64_t between(int above, int most, int arm = 0) const {
    std::uint64_t sum = 0;
    for (int tokens = above + 1; tokens <= most; ++tokens) sum += counts_[at(tokens, arm)];
    return sum;
  }

 private:
  std::size_t at(int tokens, int arm) const {
    return static_cast<std::size_t>(arm) * width_ + static_cast<std::size_t>(tokens);
  }
  std::size_t width_;
  std::vector<std::uint64_t> counts_;
};

// A step as its cost is asked for: every sequence has as many of its tokens.
struct StepLoad {
  std::int64_t tokens = 1, sequences = 1;
  std::int64_t context = 1;  // tokens of each sequence in its caches when the step has run
};

// What a step needs at least on one rank. Bytes: each weight that is used, once, and what it reads
// and writes of caches; rows between kernels are not counted. Experts as if all were chosen equally
// often: of E experts of which a token takes k, n tokens use E · (1 − (1 − k / E)^n).
struct StepCost {
  double weight_bytes = 0, cache_bytes = 0;
  double flops = 0;  // two for each multiplication with its addition
};

}  // namespace tenon
