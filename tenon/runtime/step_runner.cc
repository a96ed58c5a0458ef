#include "tenon/runtime/step_runner.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string>
#include <utility>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon {
namespace {

// Rows of logits that a step has, up to which every rank gets all of them and draws all: the draw
// of so few takes no longer than that of one, and what it would save on links is less than it takes
// to tell each other the tokens. With more, rows are dealt to the ranks.
constexpr std::int64_t kMostGatheredRows = 4;

bool deals(const Communicator& comm, std::int64_t rows) {
  return rows > kMostGatheredRows && comm.size() > 1 && comm.can().peer_pointers;
}

// Of the rows of any step, the most whose logits a rank has whole.
std::int64_t most_held_rows(const Communicator& comm, std::int64_t rows) {
  if (!deals(comm, rows)) return rows;
  return std::max(kMostGatheredRows, most_dealt_rows(rows, comm.size()));
}

std::size_t logit_bytes(const StepLayout& layout, int vocab_size, const Communicator& comm) {
  return static_cast<std::size_t>(most_held_rows(comm, layout.max_sequences())) *
         static_cast<std::size_t>(vocab_size) * sizeof(float);
}

}  // namespace

// The arrays of the largest step, of which smaller ones use the beginnings: their places never
// change.
sampling::Report StepRunner::report(void* base, const StepShape& shape) const {
  return reports_at(base, parts_.comm.device(), parts_.layout.max_sequences(), 0, shape.logits);
}

RowRange StepRunner::own_rows(const StepShape& shape) const {
  if (!deals(parts_.comm, shape.logits)) return {0, shape.logits};
  return dealt_rows(shape.logits, parts_.comm.size(), parts_.comm.rank());
}

sampling::Args StepRunner::draw_args(const StepShape& shape, const RowRange& own) const {
  const Device device = parts_.comm.device();
  const DrawView draw = StepReader::draw(parts_.layout, shape, input_.data(), device);
  const auto of_own = [&](const TensorView& rows) { return rows.rows(own.first, own.count); };
  sampling::Args args;
  args.logits = logits(own.count);
  args.num_tokens = num_tokens_;
  args.temperature = of_own(draw.temperature);
  args.top_k = of_own(draw.top_k);
  args.top_p = of_own(draw.top_p);
  args.seed = of_own(draw.seed);
  args.position = of_own(draw.draw_position);
  args.out = of_own(drawn(shape));
  args.min_p = of_own(draw.min_p);
  args.edits = sampling::Edits{
      .list = draw.edits,
      .begins = draw.edit_begins.rows(own.first, own.count + 1),
      .repetition = of_own(draw.repetition),
      .frequency = of_own(draw.frequency),
      .presence = of_own(draw.presence),
      .saved = view(saved_.data(), DType::kF32, device, {parts_.layout.max_edits()})};
  if (parts_.layout.mask_words() > 0)
    args.mask = sampling::Mask{.allowed = draw.masks, .which = of_own(draw.mask_of)};
  const sampling::Report all = report(report_.data(), shape);
  args.report = sampling::Report{.wanted = of_own(draw.wanted),
                                 .drawn = of_own(all.drawn),
                                 .largest = of_own(all.largest),
                                 .mass = of_own(all.mass),
                                 .ids = of_own(all.ids),
                                 .logits = of_own(all.logits)};
  return args;
}

Result<std::unique_ptr<StepRunner>> StepRunner::make(const Parts& parts, int num_tokens,
                                                     bool graphs) {
  // Where ranks share a device, making a graph may wait for the device to be idle, which it is not
  // while another rank's kernel waits for this rank.
  const bool can_record = parts.comm.can().capturable && !parts.comm.shares_device();
  std::unique_ptr<StepRunner> made(new StepRunner(parts, num_tokens, graphs && can_record));
  TENON_TRY(made->allocate());
  TENON_TRY(made->plan_draws());
  TENON_ASSIGN(
      made->teller_,
      PromptTeller::make({parts.layout, parts.model, parts.comm, parts.stream}, num_tokens));
  return made;
}

std::int64_t StepRunner::count_bytes(const StepLayout& layout, int vocab_size,
                                     const Communicator& comm) {
  const auto rows = static_cast<std::size_t>(layout.max_sequences());
  return static_cast<std::int64_t>(report_bytes(rows) +
                                   static_cast<std::size_t>(layout.max_edits()) * sizeof(float) +
                                   layout.bytes() + logit_bytes(layout, vocab_size, comm)) +
         PromptTeller::count_bytes(layout, vocab_size) + comm.mailbox_bytes();
}

std::int64_t StepRunner::bytes() const {
  return static_cast<std::int64_t>(report_.bytes() + saved_.bytes() + input_.bytes() +
                                   logits_.bytes()) +
         teller_->bytes() + parts_.comm.mailbox_bytes();
}

Status StepRunner::allocate() {
  const Device device = parts_.comm.device();
  const StepLayout& layout = parts_.layout;
  const auto rows = static_cast<std::size_t>(layout.max_sequences());
  for (Slot& each : slots_) {
    TENON_ASSIGN(each.input, HostBuffer::allocate(device, layout.bytes()));
    TENON_ASSIGN(each.drawn, HostBuffer::allocate(device, rows * sizeof(std::int32_t)));
    TENON_ASSIGN(each.report, HostBuffer::allocate(device, report_bytes(rows)));
    TENON_ASSIGN(each.ended, Event::create(device));
  }
  TENON_ASSIGN(report_, Buffer::allocate(device, report_bytes(rows)));
  const auto edits = static_cast<std::size_t>(layout.max_edits());
  TENON_ASSIGN(saved_, Buffer::allocate(device, edits * sizeof(float)));
  TENON_ASSIGN(input_, Buffer::allocate(device, layout.bytes()));
  TENON_ASSIGN(logits_, Buffer::allocate(
                            device, logit_bytes(layout, parts_.model.vocab_size(), parts_.comm)));
  return parts_.stream.fill(input_.data(), 0, input_.bytes());
}

TensorView StepRunner::logits(const StepShape& shape) const {
  return logits(own_rows(shape).count);
}

TensorView StepRunner::logits(std::int64_t rows) const {
  const int ranks = parts_.comm.size();
  return view(logits_.data(), DType::kF32, parts_.comm.device(),
              {ranks, rows, parts_.model.vocab_size() / ranks});
}

// Drawn tokens take the place of the step's own: row i's is the id of row i's next token, where the
// next step finds it without the host.
TensorView StepRunner::drawn(const StepShape& shape) const {
  void* ids = input_.as<std::byte>() + parts_.layout.offset(StepField::token_ids);
  return view(ids, DType::kI32, parts_.comm.device(), {shape.logits});
}

// A recorded step launches blocks for fewer than twice the rows that it has.
Status StepRunner::plan_draws() {
  TENON_ASSIGN(const PlanContext where, plan_context(parts_.comm.device()));
  const std::int64_t most = most_held_rows(parts_.comm, parts_.layout.max_sequences());
  for (std::int64_t next = 1, planned = 0; planned < most; next *= 2) {
    planned = std::min(next, most);
    const int rows = static_cast<int>(planned);
    const StepShape all{rows, rows, rows, true};
    TENON_ASSIGN(Plan plan, sampling::plan(draw_args(all, {0, rows}), where));
    draw_plans_.push_back(std::move(plan));
  }
  return Status::ok();
}

Status StepRunner::upload() {
  const StepHeader step = header();
  const StepField first = step.continues != 0 ? StepField::positions : StepField::token_ids;
  const std::size_t begin = parts_.layout.offset(first);
  const std::size_t end = parts_.layout.used_bytes(step.shape, step.num_edits);
  const auto copy = [&](std::size_t from, std::size_t bytes) {
    return parts_.stream.copy(input_.as<std::byte>() + from, input().data() + from, bytes);
  };
  TENON_TRY(copy(begin, end - begin));
  if (step.num_masks == 0) return Status::ok();
  return copy(parts_.layout.offset(StepField::masks), parts_.layout.mask_bytes(step.num_masks));
}

Status StepRunner::enqueue() {
  const StepShape shape = header().shape;
  TENON_TRY(std::exchange(times_next_, false)
                ? enqueue_timed(shape)
                : graphs_.run(shape, parts_.stream, [this, &shape] { return launch(shape); }));
  // Not recorded: few steps have any.
  if (header().num_reports > 0 && deals(parts_.comm, shape.logits))
    TENON_TRY(collect_reports(shape));
  return teller_->enqueue(input());
}

Status StepRunner::collect_reports(const StepShape& shape) {
  const sampling::Report all = report(report_.data(), shape);
  for (const TensorView& each : {all.mass, all.drawn, all.largest, all.ids, all.logits})
    TENON_TRY(parts_.comm.collect_rows(each, parts_.stream));
  return Status::ok();
}

Status StepRunner::enqueue_timed(const StepShape& shape) {
  constexpr int kMostLaunches = 4096;
  Stream& stream = parts_.stream;
  if (!timer_) {
    TENON_ASSIGN(timer_, LaunchTimer::make(stream, kMostLaunches));
  }
  const auto launch_timed = [&] {
    timer_->start();
    const Status launched = guarded([&] { return launch(shape); });
    timer_->stop();
    return launched;
  };
  if (graphs_.enabled() && Graph::begin(stream)) {
    const Status launched = launch_timed();
    auto ended = Graph::end(stream);
    if (launched && ended) {
      timed_ = *std::move(ended);
      return timed_->replay(stream);
    }
    // Not every driver takes times in a recording.
    const Status& why = launched ? ended.status() : launched;
    log(LogLevel::kWarning, "a timed step is not recorded: " + std::string(why.message()));
  }
  return launch_timed();
}

Result<std::vector<LaunchTimer::Entry>> StepRunner::launch_times() {
  if (timer_) return timer_->read();
  return Status::error(Code::kInvalidArgument,
                       "no step was timed; accepted is a call after time_next() and a step");
}

Status StepRunner::launch(const StepShape& shape) {
  const Device device = parts_.comm.device();
  const StepView step = StepReader::step(parts_.layout, shape, input_.data(), device);
  TENON_ASSIGN(const StepOutput output, parts_.model.forward(step, parts_.caches, parts_.stream));
  Communicator& comm = parts_.comm;
  const bool dealt = deals(comm, shape.logits);
  const RowRange own = own_rows(shape);
  const TensorView& mine = output.logits.logits;
  LaunchTimer::name_section("logits of all ranks");
  TENON_TRY(dealt ? comm.deal_rows(mine, logits(own.count), parts_.stream)
                  : comm.all_gather(mine, logits(own.count), parts_.stream));
  LaunchTimer::name_section("draw");
  if (own.count > 0) {
    const auto plan = std::bit_width(static_cast<std::uint64_t>(own.count - 1));
    TENON_TRY(sampling::run(draw_plans_[plan], draw_args(shape, own), parts_.stream));
  }
  return dealt ? comm.collect_rows(drawn(shape), parts_.stream) : Status::ok();
}

Status StepRunner::fetch() {
  TENON_CHECK(in_flight() < kMostInFlight);
  Slot& own = slot(launched_);
  const StepHeader step = header();
  const TensorView from = drawn(step.shape);
  TENON_TRY(parts_.stream.copy(own.drawn.bytes().data(), from.data, from.bytes()));
  const std::span<std::byte> report = own.report.bytes();
  if (step.num_reports > 0)
    TENON_TRY(parts_.stream.copy(report.data(), report_.data(), report.size()));
  TENON_TRY(own.ended->record(parts_.stream));
  ++launched_;
  return Status::ok();
}

Result<std::span<const std::int32_t>> StepRunner::take() {
  TENON_CHECK(in_flight() > 0);
  const Slot& oldest = slot(taken_);
  TENON_TRY(oldest.ended->await());
  ++taken_;
  const StepHeader step = StepReader::header(oldest.input.bytes());
  return std::span(reinterpret_cast<const std::int32_t*>(oldest.drawn.bytes().data()),
                   static_cast<std::size_t>(step.num_sequences));
}

TokenLogprobs StepRunner::logprobs(int row) const {
  const Slot& last = slot(taken_ - 1);
  const StepShape shape = StepReader::header(last.input.bytes()).shape;
  return told_by(report(last.report.bytes().data(), shape), row);
}

}  // namespace tenon
