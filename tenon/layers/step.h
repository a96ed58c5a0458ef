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

// How many steps have run, by their number of tokens, padding included.
class StepCounts {
 public:
  explicit StepCounts(int max_tokens) : counts_(static_cast<std::size_t>(max_tokens) + 1) {}
  void add(int tokens) { ++counts_[static_cast<std::size_t>(tokens)]; }
  // Steps of more than `above` and at most `most` tokens.
  std::uint64_t between(int above, int most) const {
    std::uint64_t sum = 0;
    for (int tokens = above + 1; tokens <= most; ++tokens)
      sum += counts_[static_cast<std::size_t>(tokens)];
    return sum;
  }

 private:
  std::vector<std::uint64_t> counts_;
};

}  // namespace tenon
