// StepInput: everything one step needs, in one flat buffer of fixed size. The same bytes reach
// every rank and every device; a StepView is a set of views over them at fixed addresses. What the
// arrays are stands in one list, layers/step_fields.def.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tenon/core/tensor.h"
#include "tenon/layers/step.h"
#include "tenon/runtime/cache_memory.h"
#include "tenon/runtime/mask_filler.h"
#include "tenon/runtime/scheduler.h"

namespace tenon {

// The arrays of a step by number.
enum class StepField : std::uint8_t {
#define TENON_STEP_FIELD(name, element, extent) name,
#define TENON_DRAW_FIELD TENON_STEP_FIELD
#define TENON_HOST_FIELD TENON_STEP_FIELD
#include "tenon/layers/step_fields.def"
  kCount
};

// The arrays of a step in host memory.
struct StepArrays {
#define TENON_STEP_FIELD(name, element, extent) element* name = nullptr;
#define TENON_DRAW_FIELD TENON_STEP_FIELD
#define TENON_HOST_FIELD TENON_STEP_FIELD
#include "tenon/layers/step_fields.def"
};

// What the draw of a step's tokens reads: device views [shape.logits].
struct DrawView {
#define TENON_DRAW_FIELD(name, element, extent) TensorView name;
#include "tenon/layers/step_fields.def"
};

enum class StepCommand : std::int32_t { kRun = 1, kIdle = 2, kStop = 3, kMakeCaches = 4 };

// At the beginning of the bytes, for the host alone.
struct StepHeader {
  StepCommand command = StepCommand::kIdle;
  // Every row is the next token of the same row of the step before: its id is what was drawn there,
  // and is on the device already.
  std::int32_t continues = 0;
  // Launched while the step before still runs: the tokens that it continues are not known yet.
  std::int32_t ahead = 0;
  std::int32_t num_sequences = 0;  // without padding; each has one row of logits, its last token's
  StepShape shape;                 // with padding
  std::int32_t num_edits = 0;      // of logits, of all rows
  std::int32_t num_reports = 0;    // rows that want one
  std::int32_t num_masks = 0;      // rows that may not draw every id
  std::int32_t num_told = 0;       // tokens of prompts whose log probabilities are told
};

// Where each array lies. Equal on every rank by construction.
class StepLayout {
 public:
  // The largest step. Rows of logits: one per sequence. Without num_tokens there is no room for
  // masks.
  StepLayout(int max_tokens, int max_sequences, int max_blocks_per_sequence, int num_tokens = 0);
  std::size_t bytes() const { return bytes_; }
  int max_tokens() const { return max_tokens_; }
  int max_sequences() const { return max_sequences_; }
  int max_blocks() const { return max_blocks_; }
  std::size_t offset(StepField field) const { return offset_[static_cast<std::size_t>(field)]; }

  int max_edits() const { return edits_per_step(max_blocks_ * kBlockTokens); }
  int mask_words() const { return mask_words_; }  // of one row
  // Bytes from the beginning up to the end of what a step of this shape holds, but for its masks.
  std::size_t used_bytes(const StepShape& shape, int num_edits = 0) const;
  // Those in front of the edits, which few steps have.
  std::size_t bytes_without_edits() const { return offset(StepField::edits); }
  // Those of so many masks, at their offset.
  std::size_t mask_bytes(int num_masks) const {
    return sizeof(std::int32_t) * static_cast<std::size_t>(num_masks) *
           static_cast<std::size_t>(mask_words_);
  }
  // The arrays in the bytes at `base`.
  StepArrays arrays(std::byte* base) const;

  // The shape that a step runs in. Steps in which every sequence decodes are rounded up: to 1 to 8
  // sequences, then to four sizes per doubling, so that few shapes occur and each can be recorded.
  // Other steps are as large as they are.
  StepShape padded(const StepShape& wanted) const;

 private:
  int max_tokens_, max_sequences_, max_blocks_, mask_words_;
  std::array<std::size_t, static_cast<std::size_t>(StepField::kCount)> offset_{};
  std::size_t bytes_ = 0;
};

// Fills bytes from a plan.
class StepWriter {
 public:
  // `bytes`: layout.bytes() of them, aligned to 64. Both must outlive the writer.
  StepWriter(const StepLayout& layout, std::span<std::byte> bytes);
  // Writes into other bytes of this kind from now on.
  void use(std::span<std::byte> bytes);
  // StepShape::arm of the steps that the next function writes; 0 at first.
  void set_arm(int arm) { arm_ = arm; }
  // The step as layout.padded() has it.
  void write(const BatchPlan& plan, int block_tokens);
  // In this shape, at least as large as the plan.
  void write(const BatchPlan& plan, int block_tokens, const StepShape& shape);
  void write(StepCommand command);
  std::span<std::byte> bytes() const { return bytes_; }
  // Those that the step it wrote last fills: all but its masks, and these.
  std::span<const std::byte> used() const;
  std::span<const std::byte> used_masks() const;

 private:
  void write_sequence(const BatchEntry& entry, int row, int first_token, int block_tokens);
  void write_draw(const BatchEntry& entry, int row, StepHeader& header);
  void plan_mask(const BatchEntry& entry, int row, StepHeader& header);
  void write_told(const BatchEntry& entry, int row, int first_token, StepHeader& header);
  void pad(const StepShape& real, const StepShape& shape);
  bool continues(const BatchPlan& plan);
  const StepLayout* layout_;
  std::span<std::byte> bytes_;
  StepArrays arrays_;
  int arm_ = 0;
  std::vector<RequestId> last_;          // whose tokens the last step drew, row by row
  std::vector<MaskFiller::Mask> masks_;  // of the step that is being written
  MaskFiller filler_;
};

// Reads the header on the host and makes views over the same bytes on `device` at `base`.
struct StepReader {
  static StepHeader header(std::span<const std::byte> host);
  // What a sequence of the step has alone and has written to so far.
  static HeldCaches caches(const StepLayout& layout, std::span<const std::byte> host, int row);
  static StepView step(const StepLayout& layout, const StepShape& shape, void* base, Device device);
  static DrawView draw(const StepLayout& layout, const StepShape& shape, void* base, Device device);
};

}  // namespace tenon
