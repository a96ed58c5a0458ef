#include "tenon/runtime/step_input.h"

#include <cstring>

namespace tenon {
namespace {

struct Header {
  StepCommand command;
  std::int32_t num_tokens, num_sequences, max_tokens_per_sequence;
};

Header read_header(std::span<const std::byte> host) {
  Header header;
  std::memcpy(&header, host.data(), sizeof header);
  return header;
}

}  // namespace

StepLayout::StepLayout(int max_tokens, int max_sequences, int max_blocks_per_sequence)
    : max_tokens_(max_tokens), max_sequences_(max_sequences), max_blocks_(max_blocks_per_sequence) {
  const auto tokens = static_cast<std::size_t>(max_tokens);
  const auto sequences = static_cast<std::size_t>(max_sequences);
  const auto place = [&](Field field, std::size_t count, std::size_t element) {
    offset_[field] = bytes_;
    bytes_ += (count * element + 63) / 64 * 64;  // every array starts on its own cache line
  };
  place(kHeader, 1, sizeof(Header));
  for (const Field field : {kTokenIds, kPositions, kSlotMapping}) place(field, tokens, 4);
  place(kSequenceStarts, sequences + 1, 4);
  for (const Field field : {kSequenceLengths, kStateSlots, kFresh, kLogitRows})
    place(field, sequences, 4);
  place(kBlockTable, sequences * static_cast<std::size_t>(max_blocks_per_sequence), 4);
  for (const Field field : {kTemperature, kTopK, kTopP}) place(field, sequences, 4);
  place(kSeed, sequences, 8);
  place(kDrawPosition, sequences, 4);
}

StepWriter::StepWriter(const StepLayout& layout) : layout_(&layout), bytes_(layout.bytes()) {}

template <class T>
T* StepWriter::field(int which) {
  return reinterpret_cast<T*>(bytes_.data() + layout_->offset_[which]);
}

void StepWriter::write(StepCommand command) {
  const Header header{command, 0, 0, 0};
  std::memcpy(bytes_.data(), &header, sizeof header);
}

void StepWriter::write(const BatchPlan& plan, int block_tokens) {
  TENON_CHECK(plan.num_tokens <= layout_->max_tokens_);
  TENON_CHECK(static_cast<int>(plan.entries.size()) <= layout_->max_sequences_);
  const Header header{StepCommand::kRun, plan.num_tokens,
                      static_cast<std::int32_t>(plan.entries.size()), plan.max_tokens_per_sequence};
  std::memcpy(bytes_.data(), &header, sizeof header);
  auto* ids = field<std::int32_t>(StepLayout::kTokenIds);
  auto* positions = field<std::int32_t>(StepLayout::kPositions);
  auto* slots = field<std::int32_t>(StepLayout::kSlotMapping);
  auto* starts = field<std::int32_t>(StepLayout::kSequenceStarts);
  auto* blocks = field<std::int32_t>(StepLayout::kBlockTable);
  int token = 0;
  int row = 0;
  for (const BatchEntry& entry : plan.entries) {
    const Sequence& sequence = *entry.sequence;
    const auto held = sequence.lease.blocks();
    TENON_CHECK(static_cast<int>(held.size()) <= layout_->max_blocks_);
    starts[row] = token;
    for (int i = 0; i < entry.count; ++i, ++token) {
      const int position = entry.first + i;
      ids[token] = sequence.tokens[static_cast<std::size_t>(position)];
      positions[token] = position;
      slots[token] = held[static_cast<std::size_t>(position / block_tokens)] * block_tokens +
                     position % block_tokens;
    }
    field<std::int32_t>(StepLayout::kSequenceLengths)[row] = entry.first + entry.count;
    field<std::int32_t>(StepLayout::kStateSlots)[row] = sequence.lease.state_slot();
    field<std::int32_t>(StepLayout::kFresh)[row] = entry.first == 0 ? 1 : 0;
    field<std::int32_t>(StepLayout::kLogitRows)[row] = token - 1;
    std::int32_t* table = blocks + row * layout_->max_blocks_;
    for (int i = 0; i < layout_->max_blocks_; ++i)
      table[i] = i < static_cast<int>(held.size()) ? held[static_cast<std::size_t>(i)] : 0;
    const SamplingParams& sampling = sequence.sampling;
    field<float>(StepLayout::kTemperature)[row] = sampling.temperature;
    field<std::int32_t>(StepLayout::kTopK)[row] = sampling.top_k;
    field<float>(StepLayout::kTopP)[row] = sampling.top_p;
    field<std::int64_t>(StepLayout::kSeed)[row] = static_cast<std::int64_t>(sampling.seed);
    field<std::int32_t>(StepLayout::kDrawPosition)[row] = entry.first + entry.count;
    ++row;
  }
  starts[row] = token;
}

StepCommand StepReader::command(std::span<const std::byte> host) {
  return read_header(host).command;
}

HeldCaches StepReader::caches(const StepLayout& layout, std::span<const std::byte> host, int row) {
  const auto field = [&](int which) {
    return reinterpret_cast<const std::int32_t*>(host.data() + layout.offset_[which]);
  };
  const int tokens = field(StepLayout::kSequenceLengths)[row];
  const auto blocks = static_cast<std::size_t>((tokens + kBlockTokens - 1) / kBlockTokens);
  return {{field(StepLayout::kBlockTable) + std::ptrdiff_t{row} * layout.max_blocks_, blocks},
          field(StepLayout::kStateSlots)[row]};
}

StepView StepReader::step(const StepLayout& layout, std::span<const std::byte> host, void* base,
                          Device device) {
  const Header header = read_header(host);
  const auto array = [&](int field, std::initializer_list<std::int64_t> shape) {
    return view(static_cast<std::byte*>(base) + layout.offset_[field], DType::kI32, device, shape);
  };
  const std::int64_t tokens = header.num_tokens;
  const std::int64_t sequences = header.num_sequences;
  StepView step;
  step.num_tokens = header.num_tokens;
  step.num_sequences = header.num_sequences;
  step.max_tokens_per_sequence = header.max_tokens_per_sequence;
  step.token_ids = array(StepLayout::kTokenIds, {tokens});
  step.positions = array(StepLayout::kPositions, {tokens});
  step.slot_mapping = array(StepLayout::kSlotMapping, {tokens});
  step.sequence_starts = array(StepLayout::kSequenceStarts, {sequences + 1});
  step.sequence_lengths = array(StepLayout::kSequenceLengths, {sequences});
  step.state_slots = array(StepLayout::kStateSlots, {sequences});
  step.fresh = array(StepLayout::kFresh, {sequences});
  step.logit_rows = array(StepLayout::kLogitRows, {sequences});
  step.block_table = array(StepLayout::kBlockTable, {sequences, layout.max_blocks_});
  return step;
}

StepReader::Sampling StepReader::sampling(const StepLayout& layout, std::span<const std::byte> host,
                                          void* base, Device device) {
  const std::int64_t rows = read_header(host).num_sequences;
  const auto array = [&](int field, DType dtype) {
    return view(static_cast<std::byte*>(base) + layout.offset_[field], dtype, device, {rows});
  };
  return {array(StepLayout::kTemperature, DType::kF32), array(StepLayout::kTopK, DType::kI32),
          array(StepLayout::kTopP, DType::kF32), array(StepLayout::kSeed, DType::kI64),
          array(StepLayout::kDrawPosition, DType::kI32)};
}

}  // namespace tenon
