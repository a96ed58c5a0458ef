// StepInput: everything one step needs, in one flat buffer of fixed size. The same bytes reach
// every rank and every device; a StepView is a set of views over them at fixed addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tenon/core/tensor.h"
#include "tenon/layers/step.h"
#include "tenon/runtime/cache_memory.h"
#include "tenon/runtime/scheduler.h"

namespace tenon {

// Where each array lies. Equal on every rank by construction.
class StepLayout {
 public:
  StepLayout(int max_tokens, int max_sequences, int max_blocks_per_sequence);
  std::size_t bytes() const { return bytes_; }
  int max_tokens() const { return max_tokens_; }
  int max_sequences() const { return max_sequences_; }
  int max_blocks() const { return max_blocks_; }

 private:
  friend class StepWriter;
  friend struct StepReader;
  enum Field {
    kHeader,  // i32 [4]: Command, tokens, sequences, max tokens per sequence
    kTokenIds,
    kPositions,
    kSlotMapping,
    kSequenceStarts,
    kSequenceLengths,
    kStateSlots,
    kFresh,
    kLogitRows,
    kBlockTable,
    kTemperature,
    kTopK,
    kTopP,
    kSeed,
    kDrawPosition,
    kNumFields,
  };
  int max_tokens_, max_sequences_, max_blocks_;
  std::size_t offset_[kNumFields] = {};
  std::size_t bytes_ = 0;
};

enum class StepCommand : std::int32_t { kRun = 1, kIdle = 2, kStop = 3 };

// Fills the buffer from a plan.
class StepWriter {
 public:
  explicit StepWriter(const StepLayout& layout);
  void write(const BatchPlan& plan, int block_tokens);
  void write(StepCommand command);
  std::span<std::byte> bytes() { return bytes_; }

 private:
  template <class T>
  T* field(int which);
  const StepLayout* layout_;
  std::vector<std::byte> bytes_;
};

// Reads the header on the host and makes views over the same bytes on `device` at `base`.
struct StepReader {
  struct Sampling {
    TensorView temperature, top_k, top_p, seed, position;
  };
  static StepCommand command(std::span<const std::byte> host);
  // What a sequence of the step has written to so far.
  static HeldCaches caches(const StepLayout& layout, std::span<const std::byte> host, int row);
  static StepView step(const StepLayout& layout, std::span<const std::byte> host, void* base,
                       Device device);
  static Sampling sampling(const StepLayout& layout, std::span<const std::byte> host, void* base,
                           Device device);
};

}  // namespace tenon
