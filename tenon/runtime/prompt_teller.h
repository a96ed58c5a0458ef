// Log probabilities of tokens of prompts: behind a step's draw the head runs over the rows that are
// asked for, a bounded number at a time, and each row's report is of the token that the prompt has
// next. A step that asks for none does nothing here.
#pragma once

#include <cstdint>
#include <memory>

#include "tenon/comm/communicator.h"
#include "tenon/models/model.h"
#include "tenon/runtime/row_reports.h"
#include "tenon/runtime/step_input.h"

namespace tenon {

class PromptTeller {
 public:
  // Rows of logits at a time. Models need as many: ModelOptions::max_logits.
  static constexpr int kRows = 32;

  struct Parts {  // all of them outlive it
    const StepLayout& layout;
    Model& model;
    Communicator& comm;
    Stream& stream;
  };
  // As StepRunner::make(). Not collective.
  static Result<std::unique_ptr<PromptTeller>> make(const Parts& parts, int num_tokens);
  // What make() allocates of the device's memory, and what this one holds of it.
  static std::int64_t count_bytes(const StepLayout& layout, int vocab_size);
  std::int64_t bytes() const;

  // After the step's forward pass; `step` are its bytes on the host. Collective. Launches only;
  // logprobs() may be called once the stream has come here.
  Status enqueue(std::span<const std::byte> step);
  // The last step's tokens that are told, in order of its sequences and of their positions.
  TokenLogprobs logprobs(int number) const;

 private:
  PromptTeller(const Parts& parts, int num_tokens) : parts_(parts), num_tokens_(num_tokens) {}
  Status allocate();
  void list(std::span<const std::byte> step);
  sampling::Args args(int first, int rows) const;
  Status tell(int first, int rows);

  const Parts parts_;
  const int num_tokens_;
  HostBuffer host_inputs_, host_reports_;
  Buffer inputs_;  // row, id and number to list of each token: i32 [3, max_tokens]
  Buffer logits_;  // f32 [ranks, kRows, slice of the vocabulary]
  Buffer zeros_;   // parameters of draws that nobody reads: [kRows] of any type
  Buffer drawn_;   // i32 [kRows]
  Buffer reports_;
  Plan plan_;
};

}  // namespace tenon
