// The staged chain and the agreement on it. Kernels are in the ops; peers in comm.
#include "tenon/boundary/boundary.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <set>

#include "tenon/boundary/tuned.h"
#include "tenon/comm/collectives/collectives.h"
#include "tenon/comm/plan_context.h"
#include "tenon/core/env.h"
#include "tenon/ops/common/normed_rows.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/rmsnorm/rmsnorm.h"

namespace tenon {

namespace fused = fused_allreduce_rmsnorm_quant;

namespace {

// Powers of two and the rows at which measured choices end, below max_rows, then max_rows: a call
// with r rows runs as the first bucket >= r.
std::vector<int> row_buckets(int max_rows, const std::vector<std::int64_t>& ends) {
  std::set<int> buckets{max_rows};
  for (std::int64_t rows = 1; rows < max_rows; rows *= 2) buckets.insert(static_cast<int>(rows));
  for (const std::int64_t rows : ends)
    if (rows < max_rows) buckets.insert(static_cast<int>(rows));
  return {buckets.begin(), buckets.end()};
}

// What one bucket of one boundary does. The same on every rank.
struct Bucket {
  int max_rows = 0;
  Stage stage = Stage::kGeneric;
  Plan fused, norm;
  std::string reason;
  std::atomic<std::uint64_t> count{0};
};

std::string outputs_text(bool rows, bool fp8) {
  if (rows && fp8) return "rows, and codes with scales";
  return rows ? "rows alone" : fp8 ? "codes with scales alone" : "none";
}

}  // namespace

std::string_view name(Stage stage) {
  switch (stage) {
    case Stage::kOneKernel: return "one kernel";
    case Stage::kTwoKernels: return "two kernels";
    case Stage::kGeneric: return "generic";
  }
  return "?";
}

std::span<const Variant> boundary_variants(Target target) { return variants(fused::kOp, target); }

StagePolicy policy_of_site(StagePolicy of_model, std::size_t site) {
  if (of_model != StagePolicy::kMixed) return of_model;
  return static_cast<StagePolicy>(1 + site % 3);
}

// --- the channel ----------------------------------------------------------------------------

struct BoundaryChannel::State {
  ~State() {
    if (comm != nullptr) comm->discard(std::move(sum));
  }
  Spec spec;
  std::unique_ptr<Communicator> comm;  // a handle of its own: the maker's may end first
  PlanContext where;                   // limits agreed by the ranks
  std::vector<int> buckets;
  Channel mailbox;  // of stages 1 and 2; empty without peer pointers
  Buffer sum;       // [max_rows, hidden]: the rounded sum between the kernels of a chain

  Status prepare();  // what one rank may fail at alone

  // Stage and variant of each bucket, fixed by the first boundary that was made when the residual
  // is sharded. Variants are of kBoundaryChoices.
  struct Choice {
    Stage stage;
    std::string variant;
  };
  std::vector<std::optional<Choice>> fixed;
};

namespace {

std::size_t sum_bytes(const BoundaryChannel::Spec& spec) {
  return static_cast<std::size_t>(spec.max_rows) * static_cast<std::size_t>(spec.hidden) *
         size_of(spec.dtype);
}

// Of stages 1 and 2; they have none without peer pointers.
std::size_t mailbox_bytes(const BoundaryChannel::Spec& spec, const Communicator& comm,
                          const PlanContext& where) {
  if (!where.peer_pointers) return 0;
  return fused::mailbox_bytes({spec.max_rows, spec.hidden, comm.size(),
                               is_host(comm.device().target) ? 1 : comm.max_blocks(),
                               !spec.sharded_residual});
}

}  // namespace

Status BoundaryChannel::State::prepare() {
  if (spec.hidden <= 0 || spec.max_rows <= 0)
    return Status::error(Code::kInvalidArgument,
                         "hidden is " + std::to_string(spec.hidden) + " and max_rows " +
                             std::to_string(spec.max_rows) + "; both must be positive");
  if (spec.dtype != DType::kBF16 && spec.dtype != DType::kF16)
    return Status::error(Code::kInvalidArgument,
                         "dtype is " + std::string(name(spec.dtype)) + "; accepted: bf16, f16");
  TENON_TRY(tuned_status());
  TENON_ASSIGN(where, plan_context(*comm));
  TENON_ASSIGN(sum, Buffer::allocate(comm->device(), sum_bytes(spec)));
  return Status::ok();
}

BoundaryChannel::BoundaryChannel(std::unique_ptr<State> state) : state_(std::move(state)) {}
BoundaryChannel::~BoundaryChannel() = default;

Result<std::int64_t> BoundaryChannel::count_bytes(const Spec& spec, const Communicator& comm) {
  TENON_ASSIGN(const PlanContext where, plan_context(comm));
  return static_cast<std::int64_t>(sum_bytes(spec) + mailbox_bytes(spec, comm, where));
}

std::int64_t BoundaryChannel::bytes() const {
  return static_cast<std::int64_t>(state_->sum.bytes() + state_->mailbox.view().bytes);
}

Result<std::shared_ptr<BoundaryChannel>> BoundaryChannel::make(const Spec& spec,
                                                               Communicator& comm) {
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->comm = comm.share();
  Fields fields;
  visit_equal_fields(spec, fields);
  fields.add("TENON_TUNED_FILE", tuned_file_text());
  const std::string where = "boundary channel \"" + spec.label + "\"";
  TENON_TRY(comm.agree_equal(fields, where));
  TENON_TRY(comm.agree(state->prepare(), "boundary channel"), where);
  // Plans must be equal on all ranks: they are made for the smallest device of the team, and a team
  // of different devices is none that anybody has measured.
  DeviceProperties& limits = state->where.properties;
  std::array<std::int32_t, 2> least{limits.num_units, limits.max_threads_per_block};
  TENON_TRY(comm.agree_min(least), where);
  limits.num_units = least[0];
  limits.max_threads_per_block = least[1];
  Fields device;
  device("device", limits.name);
  const Status same = comm.agree_equal(device, where);  // here a difference is no error
  if (same.code() == Code::kInvalidArgument) {
    limits.name = "different devices";
  } else {
    TENON_TRY(same);
  }
  const TunedTeam team{limits.name, comm.slowest_link_gbs(), comm.size(), !spec.sharded_residual};
  state->buckets = row_buckets(spec.max_rows, row_ends(tuned_tables(), team, spec.hidden));
  state->fixed.resize(state->buckets.size());
  if (state->where.peer_pointers) {
    const std::size_t bytes = mailbox_bytes(spec, comm, state->where);
    state->where.mailbox_bytes = bytes;
    TENON_ASSIGN(state->mailbox, comm.make_channel(bytes, spec.label));
  }
  return std::shared_ptr<BoundaryChannel>(new BoundaryChannel(std::move(state)));
}

// --- the boundary ---------------------------------------------------------------------------

struct Boundary::State {
  BoundarySpec spec;
  std::shared_ptr<BoundaryChannel> channel;
  std::vector<std::unique_ptr<Bucket>> buckets;

  BoundaryChannel::State& shared() const { return *channel->state_; }

  void take_knobs();
  Status decide();
  bool variant_is_forced() const;
  Status check_call(const PartialRows& partial, const TensorView& residual,
                    const TensorView& weight, const NormedRows& out, const Stream& stream) const;
  Status agree_on_spec() const;
  Status validate() const;
  fused::Args planning_args(int rows) const;
  rmsnorm::Args norm_args(const TensorView& y, const TensorView& residual, const TensorView& weight,
                          const NormedRows& out) const;
  void follow_fixed(std::size_t index, PlanContext& where) const;
  Status plan_bucket(std::size_t index) const;
  std::optional<BoundaryChannel::State::Choice> choice(std::size_t index) const;
  Status check_uniform(std::size_t index) const;
  Status agree_on_outcome(const Status& decided) const;
  Bucket& bucket_for(int rows) const;
};

namespace {

std::string where_is(const BoundarySpec& spec) { return "boundary \"" + spec.site + "\""; }

}  // namespace

// The environment's knobs fill what the caller left open.
void Boundary::State::take_knobs() {
  if (spec.force_stage == StagePolicy::kFree)
    spec.force_stage = static_cast<StagePolicy>(env().force_stage);
  if (spec.max_stage >= 1) spec.max_stage = std::max(spec.max_stage, env().max_stage);
}

bool Boundary::State::variant_is_forced() const {
  return !spec.force_variant.empty() || !forced_by_env(fused::kOp).empty();
}

// A function of what the ranks have compared, so all of them fail or none does.
Status Boundary::State::validate() const {
  const int forced = static_cast<int>(spec.force_stage);
  if (spec.force_stage > StagePolicy::kGeneric || spec.max_stage < 1 || spec.max_stage > 3)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": force_stage is " + std::to_string(forced) +
                             " (accepted: 0 to 3) and max_stage " + std::to_string(spec.max_stage) +
                             " (accepted: 1 to 3)");
  if (forced != 0 && forced < spec.max_stage)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": stage " + std::to_string(forced) +
                             " is forced, but max-stage " + std::to_string(spec.max_stage) +
                             " excludes it");
  if (spec.max_rows < 1)
    return Status::error(Code::kInvalidArgument, where_is(spec) + ": max_rows is " +
                                                     std::to_string(spec.max_rows) +
                                                     "; accepted: 1 or more");
  if (!(spec.eps >= 0) || !std::isfinite(spec.eps) || !std::isfinite(spec.offset))
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": eps is " + std::to_string(spec.eps) +
                             " (accepted: finite, 0 or more) and offset " +
                             std::to_string(spec.offset) + " (accepted: finite)");
  if (spec.want_fp8 && (spec.group < 1 || !scale_layout_named(name(spec.layout))))
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": group is " + std::to_string(spec.group) +
                             " (accepted: 32, 64, 128, 256) and layout number " +
                             std::to_string(static_cast<int>(spec.layout)) + " (accepted: 0 to 2)");
  const auto& limits = shared().spec;
  if (spec.hidden != limits.hidden || spec.max_rows > limits.max_rows || spec.dtype != limits.dtype)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": forms " + std::to_string(spec.max_rows) + " rows of " +
                             std::to_string(spec.hidden) + " " + std::string(name(spec.dtype)) +
                             ", but its channel was made for " + std::to_string(limits.max_rows) +
                             " rows of " + std::to_string(limits.hidden) + " " +
                             std::string(name(limits.dtype)));
  return Status::ok();
}

// A rank that was told something else must not sail into another kernel: compare before planning.
Status Boundary::State::agree_on_spec() const {
  Fields fields;
  visit_equal_fields(spec, fields);
  fields("TENON_FORCE_VARIANT", env().force_variant);
  Fields of_channel;  // ranks may have come with different channels
  visit_equal_fields(shared().spec, of_channel);
  for (const Fields::Field& each : of_channel.all())
    fields.add("the channel's " + each.name, each.text);
  fields("the channel's mailbox", shared().mailbox.view().channel);
  return shared().comm->agree_equal(fields, where_is(spec));
}

// Plans ask for shapes and types only; the addresses are stand-ins that are never read.
fused::Args Boundary::State::planning_args(int rows) const {
  const auto& channel_state = shared();
  const Device device = channel_state.comm->device();
  void* somewhere = channel_state.sum.data();
  fused::Args args;
  args.partial.addend = view(somewhere, spec.dtype, device, {rows, spec.hidden});
  args.residual = args.partial.addend;
  args.weight = view(somewhere, spec.weight_dtype, device, {spec.hidden});
  args.eps = spec.eps;
  args.offset = spec.offset;
  args.fresh_residual = spec.fresh_residual;
  args.spread_residual = !channel_state.spec.sharded_residual;
  if (spec.want_bf16) args.out.bf16 = args.partial.addend;
  if (spec.want_fp8) {
    const auto scales = scale_shape(spec.layout, rows, spec.hidden, spec.group);
    args.out.fp8 =
        QuantView{view(somewhere, spec.fp8, device, {rows, spec.hidden}),
                  view(somewhere, scale_dtype(spec.layout), device, {scales[0], scales[1]}),
                  spec.group, spec.layout};
  }
  return args;
}

rmsnorm::Args Boundary::State::norm_args(const TensorView& y, const TensorView& residual,
                                         const TensorView& weight, const NormedRows& out) const {
  rmsnorm::Args args;
  args.y = y;
  args.residual = residual;
  args.weight = weight;
  args.eps = spec.eps;
  args.offset = spec.offset;
  args.fresh_residual = spec.fresh_residual;
  args.out = out;
  return args;
}

// With a sharded residual all boundaries of a bucket run alike: the first one that was made has
// chosen for outputs of its own, and others prefer what it takes.
void Boundary::State::follow_fixed(std::size_t index, PlanContext& where) const {
  const auto& fixed = shared().fixed[index];
  if (!shared().spec.sharded_residual || !fixed || fixed->stage == Stage::kGeneric) return;
  const bool one = fixed->stage == Stage::kOneKernel;
  where.preferred = *std::ranges::find(kBoundaryChoices, one ? fixed->variant : kTwoKernelsChoice);
  where.why_preferred = "is what another boundary of its channel takes";
}

// Takes the most fused stage that is allowed and possible; each one passed over leaves a reason.
// A pure function of values that the ranks agreed on.
Status Boundary::State::plan_bucket(std::size_t index) const {
  Bucket& bucket = *buckets[index];
  const auto& channel_state = shared();
  const fused::Args args = planning_args(bucket.max_rows);
  TENON_ASSIGN(bucket.norm,
               rmsnorm::plan(norm_args(args.partial.addend, args.residual, args.weight, args.out),
                             channel_state.where),
               where_is(spec));
  Status forced_in_vain;  // a variant that is asked for by name runs, or nothing does
  const auto refusal = [&](Stage stage) -> Status {
    const int number = static_cast<int>(stage), forced = static_cast<int>(spec.force_stage);
    if (forced != 0 && forced != number)
      return Status::error(Code::kUnsupported, "stage " + std::to_string(forced) + " is forced");
    if (forced == 0 && number < spec.max_stage)
      return Status::error(Code::kUnsupported,
                           "max-stage " + std::to_string(spec.max_stage) + " excludes it");
    if (stage != Stage::kGeneric && !channel_state.where.peer_pointers)
      return Status::error(
          Code::kUnsupported,
          "transport " + std::string(channel_state.comm->transport()) + " has no peer pointers");
    if (stage != Stage::kOneKernel) return Status::ok();
    PlanContext where_planned = channel_state.where;
    prefer_measured(where_planned, channel_state.comm->slowest_link_gbs(), args.spread_residual,
                    boundary_outputs(spec.want_fp8, spec.want_bf16), bucket.max_rows, spec.hidden);
    follow_fixed(index, where_planned);
    auto planned = fused::plan(args, where_planned, spec.force_variant);
    if (!planned) {
      if (variant_is_forced()) forced_in_vain = planned.status();
      return planned.status();
    }
    bucket.fused = *std::move(planned);
    return Status::ok();
  };
  for (const Stage stage : {Stage::kOneKernel, Stage::kTwoKernels, Stage::kGeneric}) {
    const Status answer = refusal(stage);
    if (answer) {
      bucket.stage = stage;
      return Status::ok();
    }
    TENON_TRY(forced_in_vain, where_is(spec));
    if (!bucket.reason.empty()) bucket.reason += "; ";
    bucket.reason += std::string(name(stage)) + ": " + std::string(answer.message());
  }
  return Status::error(Code::kUnsupported, where_is(spec) + ", up to " +
                                               std::to_string(bucket.max_rows) +
                                               " rows: no stage is possible: " + bucket.reason);
}

// What a bucket must have in common with that of other boundaries, where there is such a thing.
std::optional<BoundaryChannel::State::Choice> Boundary::State::choice(std::size_t index) const {
  if (!shared().spec.sharded_residual) return {};
  const Bucket& bucket = *buckets[index];
  const bool one = bucket.stage == Stage::kOneKernel;
  return BoundaryChannel::State::Choice{
      bucket.stage, std::string(one ? bucket.fused.variant_name : std::string_view())};
}

// A sharded residual stands or falls with all boundaries of a bucket running alike.
Status Boundary::State::check_uniform(std::size_t index) const {
  const auto mine = choice(index);
  const auto& fixed = shared().fixed[index];
  if (!mine || !fixed || (fixed->stage == mine->stage && fixed->variant == mine->variant))
    return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       where_is(spec) + " would run as " + std::string(name(mine->stage)) + " " +
                           mine->variant + " where another boundary of its channel runs as " +
                           std::string(name(fixed->stage)) + " " + fixed->variant +
                           "; with a sharded residual all must be alike");
}

// Everything about the boundary that is not the caller's, from values that the ranks agreed on.
Status Boundary::State::decide() {
  TENON_TRY(validate());
  const std::vector<int>& rows = shared().buckets;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i > 0 && rows[i - 1] >= spec.max_rows) break;  // no call gets there
    buckets.push_back(std::make_unique<Bucket>());
    buckets.back()->max_rows = rows[i];
    TENON_TRY(plan_bucket(i));
    TENON_TRY(check_uniform(i));
  }
  return Status::ok();
}

// Decisions are pure functions of agreed values, so they can only differ where ranks run different
// builds. Failures are compared too: nobody leaves alone.
Status Boundary::State::agree_on_outcome(const Status& decided) const {
  Fields outcome;
  outcome.add("whether it can be made", decided.to_string());
  for (const auto& bucket : buckets) {
    const bool one = bucket->stage == Stage::kOneKernel;
    const Plan& plan = one ? bucket->fused : bucket->norm;
    const LaunchShape& shape = plan.launches.front().shape;
    outcome.add("the plan for up to " + std::to_string(bucket->max_rows) + " rows",
                std::string(name(bucket->stage)) + " " + std::string(plan.variant_name) + " of " +
                    std::to_string(shape.blocks) + " × " + std::to_string(shape.threads));
  }
  return shared().comm->agree_equal(outcome, where_is(spec));
}

// Tensors are the caller's; that they fit the spec is what the ranks agreed on. The rest (strides,
// alignment, the scales' shape, overlaps) is the same for every caller of the ops and is checked
// there.
Status Boundary::State::check_call(const PartialRows& partial, const TensorView& residual,
                                   const TensorView& weight, const NormedRows& out,
                                   const Stream& stream) const {
  const std::int64_t rows = partial.addend.shape[0];
  const auto refuse = [&](std::string_view what, const TensorView& found, DType dtype) {
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": " + std::string(what) + " is " + describe(found) +
                             "; it was made for " + std::string(name(dtype)) + " rows of " +
                             std::to_string(spec.hidden) + ", " + std::to_string(rows) +
                             " of them in this call");
  };
  const auto fits = [&](const TensorView& tensor, DType dtype) {
    return tensor.dtype == dtype && tensor.num_dims == 2 && tensor.shape[0] == rows &&
           tensor.shape[1] == spec.hidden;
  };
  const Device device = shared().where.device;
  if (stream.device() != device || partial.addend.device != device) [[unlikely]]
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": the addend is " + describe(partial.addend) +
                             " and the stream is on " + std::string(name(stream.device().target)) +
                             ":" + std::to_string(stream.device().index) +
                             "; its communicator is on " + std::string(name(device.target)) + ":" +
                             std::to_string(device.index));
  if (!fits(partial.addend, spec.dtype)) return refuse("the addend", partial.addend, spec.dtype);
  if (!partial.addend.contiguous())
    return Status::error(Code::kInvalidArgument, where_is(spec) + ": the addend has gaps between " +
                                                     "its rows: " + describe(partial.addend));
  if (!fits(residual, spec.dtype)) return refuse("the residual", residual, spec.dtype);
  if (weight.dtype != spec.weight_dtype || weight.size() != spec.hidden)
    return Status::error(Code::kInvalidArgument, where_is(spec) + ": the weight is " +
                                                     describe(weight) + "; it was made for " +
                                                     std::string(name(spec.weight_dtype)) + " [" +
                                                     std::to_string(spec.hidden) + "]");
  if (out.bf16.has_value() != spec.want_bf16 || out.fp8.has_value() != spec.want_fp8)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": the outputs passed are " +
                             outputs_text(out.bf16.has_value(), out.fp8.has_value()) +
                             "; it was made for " + outputs_text(spec.want_bf16, spec.want_fp8));
  if (out.bf16 && !fits(*out.bf16, spec.dtype)) return refuse("out.bf16", *out.bf16, spec.dtype);
  if (!out.fp8) return Status::ok();
  if (!fits(out.fp8->data, spec.fp8)) return refuse("out.fp8", out.fp8->data, spec.fp8);
  if (out.fp8->group != spec.group || out.fp8->layout != spec.layout)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": the scales passed have another group or layout");
  return Status::ok();
}

Bucket& Boundary::State::bucket_for(int rows) const {
  for (const auto& bucket : buckets)
    if (rows <= bucket->max_rows) return *bucket;
  return *buckets.back();
}

Boundary::Boundary(std::unique_ptr<State> state) : state_(std::move(state)) {}
Boundary::Boundary(Boundary&&) noexcept = default;
Boundary& Boundary::operator=(Boundary&&) noexcept = default;
Boundary::~Boundary() = default;

Result<Boundary> Boundary::make(const BoundarySpec& spec,
                                std::shared_ptr<BoundaryChannel> channel) {
  if (channel == nullptr)
    return Status::error(Code::kInvalidArgument, where_is(spec) + ": there is no channel");
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->channel = std::move(channel);
  state->take_knobs();
  TENON_TRY(state->agree_on_spec());
  const Status decided = state->decide();
  TENON_TRY(state->agree_on_outcome(decided));
  TENON_TRY(decided);
  // Only now: what could not be made leaves nothing behind.
  for (std::size_t i = 0; i < state->buckets.size(); ++i)
    state->shared().fixed[i] = state->choice(i);
  return Boundary(std::move(state));
}

Status Boundary::run(const PartialRows& partial, const TensorView& residual,
                     const TensorView& weight, const NormedRows& out, Stream& stream) {
  const TensorView& addend = partial.addend;
  if (addend.num_dims == 2 && addend.shape[0] == 0) return Status::ok();
  if (addend.num_dims == 2 && addend.shape[0] > state_->spec.max_rows)
    return Status::error(Code::kInvalidArgument, where_is(state_->spec) + ": " +
                                                     std::to_string(addend.shape[0]) +
                                                     " rows were passed; it was made for at most " +
                                                     std::to_string(state_->spec.max_rows));
  TENON_TRY(state_->check_call(partial, residual, weight, out, stream));
  const auto rows = static_cast<int>(addend.shape[0]);
  auto& channel_state = state_->shared();
  TENON_TRY(channel_state.mailbox.ready(), where_is(state_->spec));
  channel_state.comm->tell_call();
  Bucket& bucket = state_->bucket_for(rows);
  fused::Args args;
  args.partial = partial;
  args.residual = residual;
  args.weight = weight;
  args.eps = state_->spec.eps;
  args.offset = state_->spec.offset;
  args.fresh_residual = state_->spec.fresh_residual;
  args.spread_residual = !channel_state.spec.sharded_residual;
  args.out = out;
  if (bucket.stage == Stage::kOneKernel) {
    TENON_TRY(fused::run(bucket.fused, args, channel_state.mailbox.view(), stream),
              where_is(state_->spec));
    bucket.count.fetch_add(1, std::memory_order_relaxed);
    return Status::ok();
  }
  // Before the first of the two kernels: the second must not be refused alone.
  TENON_TRY(fused::check(args), where_is(state_->spec));
  TENON_TRY(check_apart({"the addend", addend, residual, weight, out}), where_is(state_->spec));
  bucket.count.fetch_add(1, std::memory_order_relaxed);
  const TensorView sum = view(channel_state.sum.data(), state_->spec.dtype,
                              channel_state.where.device, {rows, state_->spec.hidden});
  if (bucket.stage == Stage::kTwoKernels) {
    TENON_TRY(collectives::all_reduce(channel_state.mailbox, partial, sum, stream));
  } else {
    TENON_TRY(channel_state.comm->all_reduce(partial, sum, stream));
  }
  return rmsnorm::run(bucket.norm, state_->norm_args(sum, residual, weight, out), stream);
}

const BoundarySpec& Boundary::spec() const { return state_->spec; }
Stage Boundary::stage(int rows) const { return state_->bucket_for(rows).stage; }
std::string_view Boundary::variant(int rows) const {
  const Bucket& bucket = state_->bucket_for(rows);
  switch (bucket.stage) {
    case Stage::kOneKernel: return bucket.fused.variant_name;
    case Stage::kTwoKernels: return "peer_all_reduce";
    case Stage::kGeneric: return state_->shared().comm->transport();
  }
  return "?";
}
std::string_view Boundary::why(int rows) const { return state_->bucket_for(rows).reason; }

std::vector<BoundaryUse> Boundary::uses() const {
  const auto& channel_state = state_->shared();
  std::vector<BoundaryUse> found;
  for (const auto& bucket : state_->buckets) {
    const bool one = bucket->stage == Stage::kOneKernel;
    const Plan& plan = one ? bucket->fused : bucket->norm;
    const LaunchShape& shape = plan.launches.front().shape;
    BoundaryUse use{state_->spec.site, bucket->max_rows,
                    bucket->stage,     std::string(variant(bucket->max_rows)),
                    bucket->reason,    bucket->count.load(std::memory_order_relaxed)};
    use.blocks = shape.blocks;
    use.threads = shape.threads;
    if (bucket->stage != Stage::kGeneric) use.mailbox_bytes = channel_state.mailbox.bytes();
    found.push_back(std::move(use));
  }
  return found;
}

}  // namespace tenon
