#include "tenon/runtime/prompt_teller.h"

#include <algorithm>
#include <span>

#include "tenon/device/launch_timer.h"

namespace tenon {
namespace {

constexpr std::size_t kZeroBytes = PromptTeller::kRows * sizeof(std::int64_t);
constexpr std::size_t kDrawnBytes = PromptTeller::kRows * sizeof(std::int32_t);

std::size_t input_bytes(const StepLayout& layout) {
  return 3 * static_cast<std::size_t>(layout.max_tokens()) * sizeof(std::int32_t);
}
std::size_t logit_bytes(int vocab_size) {
  return PromptTeller::kRows * static_cast<std::size_t>(vocab_size) * sizeof(float);
}

}  // namespace

Result<std::unique_ptr<PromptTeller>> PromptTeller::make(const Parts& parts, int num_tokens) {
  std::unique_ptr<PromptTeller> made(new PromptTeller(parts, num_tokens));
  TENON_TRY(made->allocate());
  TENON_ASSIGN(const PlanContext where, plan_context(parts.comm.device()));
  TENON_ASSIGN(made->plan_, sampling::plan(made->args(0, kRows), where));
  return made;
}

std::int64_t PromptTeller::count_bytes(const StepLayout& layout, int vocab_size) {
  return static_cast<std::int64_t>(input_bytes(layout) + logit_bytes(vocab_size) + kZeroBytes +
                                   kDrawnBytes +
                                   report_bytes(static_cast<std::size_t>(layout.max_tokens())));
}

std::int64_t PromptTeller::bytes() const {
  return static_cast<std::int64_t>(inputs_.bytes() + logits_.bytes() + zeros_.bytes() +
                                   drawn_.bytes() + reports_.bytes());
}

Status PromptTeller::allocate() {
  const Device device = parts_.comm.device();
  const std::size_t reports = report_bytes(static_cast<std::size_t>(parts_.layout.max_tokens()));
  TENON_ASSIGN(host_inputs_, HostBuffer::allocate(device, input_bytes(parts_.layout)));
  TENON_ASSIGN(host_reports_, HostBuffer::allocate(device, reports));
  TENON_ASSIGN(inputs_, Buffer::allocate(device, input_bytes(parts_.layout)));
  TENON_ASSIGN(logits_, Buffer::allocate(device, logit_bytes(parts_.model.vocab_size())));
  TENON_ASSIGN(zeros_, Buffer::allocate(device, kZeroBytes));
  TENON_ASSIGN(drawn_, Buffer::allocate(device, kDrawnBytes));
  TENON_ASSIGN(reports_, Buffer::allocate(device, reports));
  return parts_.stream.fill(zeros_.data(), 0, kZeroBytes);
}

// Rows [first, first + rows) of all that are told. The draw is greedy, and nobody asks for it.
sampling::Args PromptTeller::args(int first, int rows) const {
  const Device device = parts_.comm.device();
  const int ranks = parts_.comm.size(), most = parts_.layout.max_tokens();
  const auto zeros = [&](DType dtype) { return view(zeros_.data(), dtype, device, {rows}); };
  const auto input = [&](int array) {
    return view(inputs_.as<std::int32_t>() + std::ptrdiff_t{array} * most + first, DType::kI32,
                device, {rows});
  };
  sampling::Args args;
  args.logits =
      view(logits_.data(), DType::kF32, device, {ranks, rows, parts_.model.vocab_size() / ranks});
  args.num_tokens = num_tokens_;
  args.temperature = args.top_p = zeros(DType::kF32);
  args.top_k = args.position = zeros(DType::kI32);
  args.seed = zeros(DType::kI64);
  args.out = view(drawn_.data(), DType::kI32, device, {rows});
  args.report = reports_at(reports_.data(), device, most, first, rows);
  args.report->given = input(1);
  args.report->wanted = input(2);
  return args;
}

// Every rank has the same bytes, and so the same list.
void PromptTeller::list(std::span<const std::byte> step) {
  const StepArrays from = parts_.layout.arrays(const_cast<std::byte*>(step.data()));
  const StepHeader header = StepReader::header(step);
  const std::ptrdiff_t most = parts_.layout.max_tokens();
  auto* rows = reinterpret_cast<std::int32_t*>(host_inputs_.bytes().data());
  std::int32_t *given = rows + most, *wanted = given + most;
  int number = 0;
  for (int sequence = 0; sequence < header.num_sequences; ++sequence) {
    if (from.told_from[sequence] < 0) continue;
    const std::int32_t last = from.sequence_starts[sequence + 1] - 1;
    const std::int32_t next = from.told_next[sequence];
    for (std::int32_t row = from.told_from[sequence]; row < last + (next >= 0 ? 1 : 0); ++row) {
      rows[number] = row;
      given[number] = row < last ? from.token_ids[row + 1] : next;
      wanted[number++] = from.told_likeliest[sequence];
    }
  }
  TENON_CHECK(number == header.num_told && number <= most);
}

Status PromptTeller::enqueue(std::span<const std::byte> step) {
  const int told = StepReader::header(step).num_told;
  if (told == 0) return Status::ok();
  LaunchTimer::name_section("log probabilities of prompts");
  list(step);
  const std::span<std::byte> inputs = host_inputs_.bytes(), reports = host_reports_.bytes();
  TENON_TRY(parts_.stream.copy(inputs_.data(), inputs.data(), inputs.size()));
  for (int first = 0; first < told; first += kRows)
    TENON_TRY(tell(first, std::min(kRows, told - first)));
  return parts_.stream.copy(reports.data(), reports_.data(), reports.size());
}

Status PromptTeller::tell(int first, int rows) {
  const sampling::Args args = this->args(first, rows);
  const TensorView numbers =
      view(inputs_.as<std::int32_t>() + first, DType::kI32, parts_.comm.device(), {rows});
  TENON_ASSIGN(const LogitsShard shard, parts_.model.logits_of(numbers, parts_.stream));
  TENON_TRY(parts_.comm.all_gather(shard.logits, args.logits, parts_.stream));
  return sampling::run(plan_, args, parts_.stream);
}

TokenLogprobs PromptTeller::logprobs(int number) const {
  const std::int64_t most = parts_.layout.max_tokens();
  const sampling::Report report =
      reports_at(host_reports_.bytes().data(), parts_.comm.device(), most, 0, most);
  TokenLogprobs told = told_by(report, number);
  told.rank = report.before->as<const std::int32_t>()[number] + 1;
  return told;
}

}  // namespace tenon
