#include "tenon/runtime/step_input.h"

#include <algorithm>
#include <cstring>

namespace tenon {
namespace {

// How many elements an array has.
enum class Extent : std::uint8_t {
  kTokens,
  kSequences,
  kStarts,
  kTable,
  kLogits,
  kLogitStarts,
  kEdits,
  kMasks,
};

template <class Element>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<Element, float>) return DType::kF32;
  if constexpr (std::is_same_v<Element, std::int64_t>) return DType::kI64;
  static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, std::int64_t> ||
                std::is_same_v<Element, std::int32_t>);
  return DType::kI32;
}

struct FieldInfo {
  StepField field;
  DType dtype;
  Extent extent;
};
constexpr FieldInfo kFields[] = {
#define TENON_STEP_FIELD(name, element, extent) \
  {StepField::name, dtype_of<element>(), Extent::extent},
#define TENON_DRAW_FIELD TENON_STEP_FIELD
#define TENON_HOST_FIELD TENON_STEP_FIELD
#include "tenon/layers/step_fields.def"
};
static_assert(kFields[0].field == StepField::token_ids);
static_assert(std::end(kFields)[-3].field == StepField::block_table);
static_assert(std::end(kFields)[-2].field == StepField::edits);
static_assert(std::end(kFields)[-1].field == StepField::masks);
static_assert(sizeof(sampling::Edit) == 3 * sizeof(std::int32_t));

std::size_t count_of(Extent extent, const StepShape& shape, const StepLayout& layout) {
  const auto sequences = static_cast<std::size_t>(shape.sequences);
  switch (extent) {
    case Extent::kTokens: return static_cast<std::size_t>(shape.tokens);
    case Extent::kSequences: return sequences;
    case Extent::kStarts: return sequences + 1;
    case Extent::kTable: return sequences * static_cast<std::size_t>(layout.max_blocks());
    case Extent::kLogits: return static_cast<std::size_t>(shape.logits);
    case Extent::kLogitStarts: return static_cast<std::size_t>(shape.logits) + 1;
    case Extent::kEdits: return 3 * static_cast<std::size_t>(layout.max_edits());
    case Extent::kMasks: return sequences * static_cast<std::size_t>(layout.mask_words());
  }
  return 0;
}

TensorView array(const StepLayout& layout, StepField field, const StepShape& shape, void* base,
                 Device device) {
  const FieldInfo& info = kFields[static_cast<std::size_t>(field)];
  void* data = static_cast<std::byte*>(base) + layout.offset(field);
  if (info.extent == Extent::kTable)
    return view(data, info.dtype, device, {shape.sequences, layout.max_blocks()});
  if (info.extent == Extent::kMasks)
    return view(data, info.dtype, device, {layout.max_sequences(), layout.mask_words()});
  if (info.extent == Extent::kEdits) return view(data, info.dtype, device, {layout.max_edits(), 3});
  const auto count = static_cast<std::int64_t>(count_of(info.extent, shape, layout));
  return view(data, info.dtype, device, {count});
}

// n, or the next of the sizes 1 to 8, 10, 12, 14, 16, 20, 24, …
int rounded_up(int n) {
  int unit = 1;
  while (n > 8 * unit) unit *= 2;
  return (n + unit - 1) / unit * unit;
}

}  // namespace

// --- StepLayout -----------------------------------------------------------------------------

StepLayout::StepLayout(int max_tokens, int max_sequences, int max_blocks_per_sequence,
                       int num_tokens)
    : max_tokens_(max_tokens),
      max_sequences_(max_sequences),
      max_blocks_(max_blocks_per_sequence),
      mask_words_((num_tokens + 31) / 32) {
  const StepShape largest{max_tokens, max_sequences, max_sequences, false};
  const auto place = [&](std::size_t bytes) {
    const std::size_t at = bytes_;
    bytes_ += (bytes + 63) / 64 * 64;  // every array starts on its own cache line
    return at;
  };
  place(sizeof(StepHeader));
  for (const FieldInfo& each : kFields)
    offset_[static_cast<std::size_t>(each.field)] =
        place(count_of(each.extent, largest, *this) * size_of(each.dtype));
}

std::size_t StepLayout::used_bytes(const StepShape& shape, int num_edits) const {
  if (num_edits > 0)
    return offset(StepField::edits) + static_cast<std::size_t>(num_edits) * sizeof(sampling::Edit);
  return offset(StepField::block_table) +
         count_of(Extent::kTable, shape, *this) * sizeof(std::int32_t);
}

StepArrays StepLayout::arrays(std::byte* base) const {
  StepArrays made;
#define TENON_STEP_FIELD(name, element, extent) \
  made.name = reinterpret_cast<element*>(base + offset(StepField::name));
#define TENON_DRAW_FIELD TENON_STEP_FIELD
#define TENON_HOST_FIELD TENON_STEP_FIELD
#include "tenon/layers/step_fields.def"
  return made;
}

StepShape StepLayout::padded(const StepShape& wanted) const {
  if (!wanted.decode) return wanted;
  const int rows = std::min(rounded_up(wanted.sequences), max_sequences_);
  return {rows, rows, rows, true, wanted.arm};
}

// --- StepWriter -----------------------------------------------------------------------------

StepWriter::StepWriter(const StepLayout& layout, std::span<std::byte> bytes)
    : layout_(&layout), bytes_(bytes), arrays_(layout.arrays(bytes.data())) {
  TENON_CHECK(bytes.size() == layout.bytes());
  last_.reserve(static_cast<std::size_t>(layout.max_sequences()));
  masks_.reserve(last_.capacity());
}

void StepWriter::use(std::span<std::byte> bytes) {
  TENON_CHECK(bytes.size() == layout_->bytes());
  bytes_ = bytes;
  arrays_ = layout_->arrays(bytes.data());
}

void StepWriter::write(StepCommand command) {
  const StepHeader header{.command = command, .shape = {}};
  std::memcpy(bytes_.data(), &header, sizeof header);
}

std::span<const std::byte> StepWriter::used() const {
  const StepHeader header = StepReader::header(bytes_);
  return bytes_.first(layout_->used_bytes(header.shape, header.num_edits));
}

std::span<const std::byte> StepWriter::used_masks() const {
  const StepHeader header = StepReader::header(bytes_);
  return bytes_.subspan(layout_->offset(StepField::masks), layout_->mask_bytes(header.num_masks));
}

namespace {

StepShape shape_of(const BatchPlan& plan) {
  const int sequences = static_cast<int>(plan.entries.size());
  return {plan.num_tokens, sequences, sequences, plan.max_tokens_per_sequence <= 1};
}

}  // namespace

void StepWriter::write(const BatchPlan& plan, int block_tokens) {
  StepShape shape = layout_->padded(shape_of(plan));
  shape.arm = arm_;
  write(plan, block_tokens, shape);
}

void StepWriter::write(const BatchPlan& plan, int block_tokens, const StepShape& shape) {
  const StepShape real = shape_of(plan);
  TENON_CHECK(real.tokens <= shape.tokens && shape.tokens <= layout_->max_tokens());
  TENON_CHECK(real.sequences <= shape.sequences && shape.sequences <= layout_->max_sequences());
  TENON_CHECK(real.logits <= shape.logits && shape.logits <= layout_->max_sequences());
  TENON_CHECK(real.decode || !shape.decode);
  StepHeader header{.command = StepCommand::kRun,
                    .continues = continues(plan) ? 1 : 0,
                    .num_sequences = real.sequences,
                    .shape = shape};
  masks_.clear();
  int token = 0;
  int row = 0;
  for (const BatchEntry& entry : plan.entries) {
    if (entry.unread > 0) header.ahead = 1;
    write_sequence(entry, row, token, block_tokens);
    write_told(entry, row, token, header);
    write_draw(entry, row, header);
    plan_mask(entry, row++, header);
    token += entry.count;
  }
  TENON_CHECK(header.ahead == 0 || header.continues != 0);
  filler_.fill(masks_);
  std::fill(arrays_.edit_begins + row, arrays_.edit_begins + shape.logits + 1, header.num_edits);
  std::memcpy(bytes_.data(), &header, sizeof header);
  pad(real, shape);
}

// Whether this step's tokens are what the last one drew, row by row; notes whose tokens this one
// draws.
bool StepWriter::continues(const BatchPlan& plan) {
  const auto same = [](const BatchEntry& entry, RequestId last) {
    return entry.sequence->id == last && entry.count == 1;
  };
  const bool all =
      std::equal(plan.entries.begin(), plan.entries.end(), last_.begin(), last_.end(), same);
  last_.clear();
  for (const BatchEntry& entry : plan.entries)
    last_.push_back(entry.draws() ? entry.sequence->id : RequestId{});
  return all;
}

void StepWriter::write_sequence(const BatchEntry& entry, int row, int first_token,
                                int block_tokens) {
  const Sequence& sequence = *entry.sequence;
  const auto held = sequence.lease.blocks();
  TENON_CHECK(static_cast<int>(held.size()) <= layout_->max_blocks());
  for (int i = 0; i < entry.count; ++i) {
    const int position = entry.first + i;
    const int token = first_token + i;
    const bool known = position < sequence.length();  // else it is on the device alone
    arrays_.token_ids[token] = known ? sequence.tokens[static_cast<std::size_t>(position)] : 0;
    arrays_.positions[token] = position;
    arrays_.slot_mapping[token] =
        held[static_cast<std::size_t>(position / block_tokens)] * block_tokens +
        position % block_tokens;
  }
  const int length = entry.first + entry.count;
  arrays_.sequence_starts[row] = first_token;
  arrays_.sequence_lengths[row] = length;
  arrays_.state_from[row] = sequence.lease.state_from();
  arrays_.state_to[row] = sequence.lease.state_slot();
  arrays_.shared_blocks[row] = sequence.lease.num_shared();
  arrays_.fresh[row] = entry.first == 0 ? 1 : 0;
  arrays_.logit_rows[row] = first_token + entry.count - 1;
  std::int32_t* table = arrays_.block_table + std::ptrdiff_t{row} * layout_->max_blocks();
  std::fill(std::copy(held.begin(), held.end(), table), table + layout_->max_blocks(), 0);
}

void StepWriter::write_draw(const BatchEntry& entry, int row, StepHeader& header) {
  const Sequence& sequence = *entry.sequence;
  const SamplingParams& params = sequence.sampling;
  arrays_.temperature[row] = params.temperature;
  arrays_.top_k[row] = params.top_k;
  arrays_.top_p[row] = params.top_p;
  arrays_.seed[row] = static_cast<std::int64_t>(params.seed);
  arrays_.draw_position[row] = entry.first + entry.count;
  arrays_.min_p[row] = params.min_p;
  arrays_.repetition[row] = params.repetition_penalty;
  arrays_.frequency[row] = params.frequency_penalty;
  arrays_.presence[row] = params.presence_penalty;
  arrays_.wanted[row] = entry.draws() ? params.logprobs : -1;
  header.num_reports += arrays_.wanted[row] >= 0 ? 1 : 0;
  arrays_.edit_begins[row] = header.num_edits;
  if (!entry.draws() || !sequence.edits) return;
  const std::span<const sampling::Edit> edits = sequence.edits->list();
  TENON_CHECK(header.num_edits + sequence.num_edits() <= layout_->max_edits());
  if (!edits.empty())
    std::memcpy(arrays_.edits + std::ptrdiff_t{3} * header.num_edits, edits.data(),
                edits.size_bytes());
  header.num_edits += sequence.num_edits();
}

void StepWriter::plan_mask(const BatchEntry& entry, int row, StepHeader& header) {
  arrays_.mask_of[row] = -1;
  TokenConstraint* const constraint = entry.sequence->constraint.get();
  if (!entry.draws() || constraint == nullptr || !constraint->constrains()) return;
  const auto words = static_cast<std::size_t>(layout_->mask_words());
  auto* const mask = reinterpret_cast<std::uint32_t*>(arrays_.masks) +
                     words * static_cast<std::size_t>(header.num_masks);
  arrays_.mask_of[row] = header.num_masks++;
  masks_.push_back({constraint, std::span(mask, words)});
}

void StepWriter::write_told(const BatchEntry& entry, int row, int first_token, StepHeader& header) {
  const Sequence& sequence = *entry.sequence;
  const int count = entry.num_told(), behind = entry.first + entry.count;
  arrays_.told_from[row] = count > 0 ? first_token + entry.told_from() - entry.first : -1;
  arrays_.told_next[row] =
      behind < sequence.prompt_tokens ? sequence.tokens[static_cast<std::size_t>(behind)] : -1;
  arrays_.told_likeliest[row] = sequence.sampling.prompt_logprobs;
  header.num_told += count;
}

// Sequences without tokens, then rows of no sequence: they read and write no cache. Rows of logits
// repeat the first one.
void StepWriter::pad(const StepShape& real, const StepShape& shape) {
  for (int token = real.tokens; token < shape.tokens; ++token) {
    arrays_.token_ids[token] = arrays_.positions[token] = 0;
    arrays_.slot_mapping[token] = -1;
  }
  for (int row = real.sequences; row < shape.sequences; ++row) {
    arrays_.sequence_lengths[row] = 0;
    arrays_.state_from[row] = arrays_.state_to[row] = -1;
    arrays_.shared_blocks[row] = 0;
    arrays_.fresh[row] = 1;
    std::fill_n(arrays_.block_table + std::ptrdiff_t{row} * layout_->max_blocks(),
                layout_->max_blocks(), 0);
  }
  for (int row = real.sequences; row <= shape.sequences; ++row)
    arrays_.sequence_starts[row] = real.tokens;
  for (int row = real.logits; row < shape.logits; ++row) {
    arrays_.logit_rows[row] = 0;
    arrays_.temperature[row] = 0;
    arrays_.top_k[row] = 0;
    arrays_.top_p[row] = 1;
    arrays_.seed[row] = 0;
    arrays_.draw_position[row] = 0;
    arrays_.min_p[row] = arrays_.frequency[row] = arrays_.presence[row] = 0;
    arrays_.repetition[row] = 1;
    arrays_.wanted[row] = arrays_.mask_of[row] = -1;
  }
}

// --- StepReader -----------------------------------------------------------------------------

StepHeader StepReader::header(std::span<const std::byte> host) {
  StepHeader header;
  std::memcpy(&header, host.data(), sizeof header);
  return header;
}

HeldCaches StepReader::caches(const StepLayout& layout, std::span<const std::byte> host, int row) {
  const StepArrays arrays = layout.arrays(const_cast<std::byte*>(host.data()));
  const int tokens = arrays.sequence_lengths[row];
  const auto blocks = static_cast<std::size_t>((tokens + kBlockTokens - 1) / kBlockTokens);
  const std::int32_t* table = arrays.block_table + std::ptrdiff_t{row} * layout.max_blocks();
  const auto shared = static_cast<std::size_t>(arrays.shared_blocks[row]);
  return {std::span(table, blocks).subspan(shared), arrays.state_to[row]};
}

StepView StepReader::step(const StepLayout& layout, const StepShape& shape, void* base,
                          Device device) {
  StepView step;
  step.shape = shape;
#define TENON_STEP_FIELD(name, element, extent) \
  step.name = array(layout, StepField::name, shape, base, device);
#include "tenon/layers/step_fields.def"
  return step;
}

DrawView StepReader::draw(const StepLayout& layout, const StepShape& shape, void* base,
                          Device device) {
  DrawView draw;
#define TENON_DRAW_FIELD(name, element, extent) \
  draw.name = array(layout, StepField::name, shape, base, device);
#include "tenon/layers/step_fields.def"
  return draw;
}

}  // namespace tenon
