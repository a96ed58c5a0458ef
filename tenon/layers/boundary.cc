// The staged chain and the agreement on it. Kernels are in the ops; peers in comm.
#include "tenon/layers/boundary.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "tenon/comm/collectives.h"
#include "tenon/core/env.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/rmsnorm/rmsnorm.h"

namespace tenon {

namespace fused = fused_allreduce_rmsnorm_quant;

namespace {

// Powers of two below max_rows, then max_rows: a call with r rows runs as the first bucket >= r.
std::vector<int> row_buckets(int max_rows) {
  std::vector<int> buckets;
  for (int rows = 1; rows < max_rows; rows *= 2) buckets.push_back(rows);
  buckets.push_back(max_rows);
  return buckets;
}

// A stable number for a name, so that ranks can compare names by agree_min.
template <class T>
std::string_view bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::int32_t fingerprint(std::string_view text) {
  std::uint32_t hash = 2166136261u;
  for (const char each : text) hash = (hash ^ static_cast<unsigned char>(each)) * 16777619u;
  return static_cast<std::int32_t>(hash >> 2);
}

// What one bucket of one boundary does. The same on every rank.
struct Bucket {
  int max_rows = 0;
  Stage stage = Stage::kGeneric;
  Plan fused, norm;
  std::string reason;
  std::atomic<std::uint64_t> count{0};
};

}  // namespace

std::string_view name(Stage stage) {
  switch (stage) {
    case Stage::kOneKernel: return "one kernel";
    case Stage::kTwoKernels: return "two kernels";
    case Stage::kGeneric: return "generic";
  }
  return "?";
}

// --- the channel ----------------------------------------------------------------------------

struct BoundaryChannel::State {
  Spec spec;
  Communicator* comm = nullptr;
  Situation where;  // limits agreed by the ranks
  std::vector<int> buckets;
  Mailbox mailbox;  // of stages 1 and 2; empty without peer pointers
  Buffer sum;       // [max_rows, hidden]: the rounded sum between the kernels of a chain

  std::size_t row_bytes() const {
    return static_cast<std::size_t>(spec.hidden) * size_of(spec.dtype);
  }
  Status prepare();  // what one rank may fail at alone

  // Stage and variant of each bucket, fixed by the first boundary when the residual is sharded.
  struct Choice {
    Stage stage;
    std::string variant;
  };
  std::vector<std::optional<Choice>> fixed;
};

Status BoundaryChannel::State::prepare() {
  if (spec.hidden <= 0 || spec.max_rows <= 0)
    return Status::error(Code::kInvalidArgument,
                         "hidden is " + std::to_string(spec.hidden) + " and max_rows " +
                             std::to_string(spec.max_rows) + "; both must be positive");
  buckets = row_buckets(spec.max_rows);
  fixed.resize(buckets.size());
  TENON_ASSIGN(where, situation(*comm));
  TENON_ASSIGN(
      sum, Buffer::allocate(comm->device(), static_cast<std::size_t>(spec.max_rows) * row_bytes()));
  return Status::ok();
}

BoundaryChannel::BoundaryChannel(std::unique_ptr<State> state) : state_(std::move(state)) {}
BoundaryChannel::~BoundaryChannel() = default;

Result<std::shared_ptr<BoundaryChannel>> BoundaryChannel::make(const Spec& spec,
                                                               Communicator& comm) {
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->comm = &comm;
  TENON_TRY(comm.agree(state->prepare(), "boundary channel"));
  // Plans must be equal on all ranks: they are made for the smallest device of the team, and a team
  // of different devices is none that anybody has measured.
  DeviceProperties& limits = state->where.properties;
  const std::int32_t device = fingerprint(limits.name);
  std::array<std::int32_t, 4> least{limits.num_units, limits.max_threads_per_block, device,
                                    -device};
  TENON_TRY(comm.agree_min(least), "boundary channel: agree on device limits");
  limits.num_units = least[0];
  limits.max_threads_per_block = least[1];
  if (least[2] != -least[3]) limits.name = "different devices";
  if (state->where.peer_pointers) {
    const std::size_t bytes = fused::mailbox_bytes(
        {spec.max_rows, spec.hidden, comm.size(),
         is_host(comm.device().target) ? 1 : comm.max_blocks(), !spec.sharded_residual});
    state->where.mailbox_bytes = bytes;
    TENON_ASSIGN(state->mailbox, comm.mailbox(bytes, spec.label));
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
  bool variant_is_forced() const;
  Status check_call(const PartialRows& partial, const TensorView& residual,
                    const TensorView& weight, const NormedRows& out) const;
  Status agree_on_options() const;
  Status validate() const;
  fused::Args planning_args(int rows) const;
  rmsnorm::Args norm_args(const TensorView& y, const TensorView& residual, const TensorView& weight,
                          const NormedRows& out) const;
  Status plan_bucket(Bucket& bucket) const;
  Status keep_uniform(std::size_t index) const;
  Status agree_on_buckets();
  Bucket& bucket_for(int rows) const;
};

namespace {

std::string where_is(const BoundarySpec& spec) { return "boundary \"" + spec.site + "\""; }

Status disagree(const BoundarySpec& spec, std::string_view what, std::int32_t low,
                std::int32_t high) {
  return Status::error(Code::kInvalidArgument, where_is(spec) + ": the ranks disagree about " +
                                                   std::string(what) + ": " + std::to_string(low) +
                                                   " on one, " + std::to_string(high) +
                                                   " on another; all must be equal");
}

}  // namespace

// The environment's knobs fill what the caller left open.
void Boundary::State::take_knobs() {
  if (spec.force_stage == 0) spec.force_stage = env().force_stage;
  if (spec.max_stage >= 1) spec.max_stage = std::max(spec.max_stage, env().max_stage);
}

bool Boundary::State::variant_is_forced() const {
  return !spec.force_variant.empty() || !forced_by_env(Op::fused_allreduce_rmsnorm_quant).empty();
}

// Called when the ranks know that their specs are equal, so all of them fail or none does.
Status Boundary::State::validate() const {
  if (spec.force_stage < 0 || spec.force_stage > 3 || spec.max_stage < 1 || spec.max_stage > 3)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": force_stage is " + std::to_string(spec.force_stage) +
                             " (accepted: 0 to 3) and max_stage " + std::to_string(spec.max_stage) +
                             " (accepted: 1 to 3)");
  if (spec.force_stage != 0 && spec.force_stage < spec.max_stage)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": stage " + std::to_string(spec.force_stage) +
                             " is forced, but max-stage " + std::to_string(spec.max_stage) +
                             " excludes it");
  const auto& limits = shared().spec;
  if (spec.hidden != limits.hidden || spec.max_rows > limits.max_rows || spec.dtype != limits.dtype)
    return Status::error(Code::kInvalidArgument,
                         where_is(spec) + ": wants " + std::to_string(spec.max_rows) + " rows of " +
                             std::to_string(spec.hidden) + " " + std::string(name(spec.dtype)) +
                             ", but its channel was made for " + std::to_string(limits.max_rows) +
                             " rows of " + std::to_string(limits.hidden) + " " +
                             std::string(name(limits.dtype)));
  return Status::ok();
}

// A rank that was told something else must not sail into another kernel: compare before planning.
Status Boundary::State::agree_on_options() const {
  const BoundaryChannel::Spec& channel_spec = shared().spec;
  const struct {
    std::string_view what;
    std::int32_t mine;
  } options[] = {
      {"hidden", spec.hidden},
      {"max_rows", spec.max_rows},
      {"dtype", static_cast<std::int32_t>(spec.dtype)},
      {"weight_dtype", static_cast<std::int32_t>(spec.weight_dtype)},
      {"eps", fingerprint(bytes_of(spec.eps))},
      {"offset", fingerprint(bytes_of(spec.offset))},
      {"fresh_residual", spec.fresh_residual},
      {"want_bf16", spec.want_bf16},
      {"want_fp8", spec.want_fp8},
      {"fp8", static_cast<std::int32_t>(spec.fp8)},
      {"group", spec.group},
      {"layout", static_cast<std::int32_t>(spec.layout)},
      {"force_stage", spec.force_stage},
      {"max_stage", spec.max_stage},
      {"force_variant", fingerprint(spec.force_variant)},
      {"TENON_FORCE_VARIANT", fingerprint(env().force_variant)},
      {"the channel's max_rows", channel_spec.max_rows},
      {"the channel's sharded_residual", channel_spec.sharded_residual},
  };
  std::vector<std::int32_t> both;
  for (const auto& [what, mine] : options) {
    both.push_back(mine);
    both.push_back(-mine);
  }
  TENON_TRY(shared().comm->agree_min(both), where_is(spec) + ": agree on options");
  for (std::size_t i = 0; i < std::size(options); ++i)
    if (both[2 * i] != -both[2 * i + 1])
      return disagree(spec, options[i].what, both[2 * i], -both[2 * i + 1]);
  return Status::ok();
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

// Takes the most fused stage that is allowed and possible; each one passed over leaves a reason.
// A pure function of values that the ranks agreed on.
Status Boundary::State::plan_bucket(Bucket& bucket) const {
  const auto& channel_state = shared();
  const fused::Args args = planning_args(bucket.max_rows);
  TENON_ASSIGN(bucket.norm,
               rmsnorm::plan(norm_args(args.partial.addend, args.residual, args.weight, args.out),
                             channel_state.where),
               where_is(spec));
  Status forced_in_vain;  // a variant that is asked for by name runs, or nothing does
  const auto refusal = [&](Stage stage) -> Status {
    const int number = static_cast<int>(stage);
    if (spec.force_stage != 0 && spec.force_stage != number)
      return Status::error(Code::kUnsupported,
                           "stage " + std::to_string(spec.force_stage) + " is forced");
    if (spec.force_stage == 0 && number < spec.max_stage)
      return Status::error(Code::kUnsupported,
                           "max-stage " + std::to_string(spec.max_stage) + " excludes it");
    if (stage != Stage::kGeneric && !channel_state.where.peer_pointers)
      return Status::error(
          Code::kUnsupported,
          "transport " + std::string(channel_state.comm->transport()) + " has no peer pointers");
    if (stage != Stage::kOneKernel) return Status::ok();
    auto planned = fused::plan(args, channel_state.where, spec.force_variant);
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

// A sharded residual stands or falls with all boundaries of a bucket running alike.
Status Boundary::State::keep_uniform(std::size_t index) const {
  auto& channel_state = shared();
  if (!channel_state.spec.sharded_residual) return Status::ok();
  const Bucket& bucket = *buckets[index];
  const std::string variant(bucket.stage == Stage::kOneKernel ? bucket.fused.variant_name
                                                              : std::string_view());
  auto& fixed = channel_state.fixed[index];
  if (!fixed) fixed = BoundaryChannel::State::Choice{bucket.stage, variant};
  if (fixed->stage == bucket.stage && fixed->variant == variant) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       where_is(spec) + " would run as " + std::string(name(bucket.stage)) + " " +
                           variant + " where another boundary of its channel runs as " +
                           std::string(name(fixed->stage)) + " " + fixed->variant +
                           "; with a sharded residual all must be alike");
}

// Plans are pure functions of agreed values, so this can only fail where ranks run different
// builds.
Status Boundary::State::agree_on_buckets() {
  std::vector<std::int32_t> values;
  for (const auto& bucket : buckets) {
    const bool one = bucket->stage == Stage::kOneKernel;
    const std::array<std::int32_t, 5> mine{static_cast<std::int32_t>(bucket->stage),
                                           one ? fingerprint(bucket->fused.variant_name) : 0,
                                           one ? bucket->fused.shape.blocks : 0,
                                           one ? bucket->fused.shape.threads : 0, bucket->max_rows};
    for (const std::int32_t each : mine) {
      values.push_back(each);
      values.push_back(-each);
    }
  }
  TENON_TRY(shared().comm->agree_min(values), where_is(spec) + ": agree on stages");
  for (std::size_t i = 0; i < values.size(); i += 2)
    if (values[i] != -values[i + 1]) return disagree(spec, "a plan", values[i], -values[i + 1]);
  return Status::ok();
}

// Tensors are the caller's; that they fit the spec is what the ranks agreed on.
Status Boundary::State::check_call(const PartialRows& partial, const TensorView& residual,
                                   const TensorView& weight, const NormedRows& out) const {
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
                         where_is(spec) + ": the outputs passed are not those it was made for");
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
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->channel = std::move(channel);
  state->take_knobs();
  TENON_TRY(state->agree_on_options());
  TENON_TRY(state->validate());
  const auto& rows = state->shared().buckets;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    state->buckets.push_back(std::make_unique<Bucket>());
    state->buckets.back()->max_rows = rows[i];
    TENON_TRY(state->plan_bucket(*state->buckets.back()));
    TENON_TRY(state->keep_uniform(i));
  }
  TENON_TRY(state->agree_on_buckets());
  return Boundary(std::move(state));
}

Status Boundary::run(const PartialRows& partial, const TensorView& residual,
                     const TensorView& weight, const NormedRows& out, Stream& stream) {
  const auto rows = static_cast<int>(partial.addend.shape[0]);
  if (rows > state_->spec.max_rows)
    return Status::error(Code::kInvalidArgument, where_is(state_->spec) + ": " +
                                                     std::to_string(rows) +
                                                     " rows were passed; it was made for at most " +
                                                     std::to_string(state_->spec.max_rows));
  if (rows == 0) return Status::ok();
  TENON_TRY(state_->check_call(partial, residual, weight, out));
  auto& channel_state = state_->shared();
  TENON_TRY(channel_state.mailbox.ready(), where_is(state_->spec));
  Bucket& bucket = state_->bucket_for(rows);
  bucket.count.fetch_add(1, std::memory_order_relaxed);
  if (bucket.stage == Stage::kOneKernel) {
    fused::Args args;
    args.partial = partial;
    args.residual = residual;
    args.weight = weight;
    args.eps = state_->spec.eps;
    args.offset = state_->spec.offset;
    args.fresh_residual = state_->spec.fresh_residual;
    args.spread_residual = !channel_state.spec.sharded_residual;
    args.out = out;
    return fused::run(bucket.fused, args, channel_state.mailbox.team(), stream);
  }
  const TensorView sum = view(channel_state.sum.data(), state_->spec.dtype,
                              channel_state.comm->device(), {rows, state_->spec.hidden});
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
    const LaunchShape& shape = one ? bucket->fused.shape : bucket->norm.shape;
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
