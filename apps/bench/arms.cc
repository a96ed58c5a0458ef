#include "apps/bench/arms.h"

#include <algorithm>
#include <bit>

#include "tenon/boundary/tuned.h"
#include "tenon/comm/collectives/collectives.h"
#include "tenon/comm/plan_context.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tenon/ops/rmsnorm/rmsnorm.h"
#include "tenon/reference/compare.h"

namespace tenon::apps {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;

constexpr std::size_t kAlign = 256;
constexpr std::uint8_t kPoison = 0x5a;  // no output is this everywhere

const std::vector<Arm>& all_arms() {
  static const std::vector<Arm> arms{
      {"vendor", Chain::kVendor, true, {}},
      {"three-kernels", Chain::kSplit, true, {}},
      {"two-kernels-fp8", Chain::kTwoKernels, false, {}},
      {"two-kernels", Chain::kTwoKernels, true, {}},
      {"one-kernel-fp8", Chain::kOneKernel, false, {}},
      {"one-kernel", Chain::kOneKernel, true, {}},
  };
  return arms;
}

// Stage 2, and the variants of stage 1 that the target has.
std::vector<Arm> all_choices(Target target) {
  std::vector<Arm> arms;
  for (const bool bf16 : {false, true}) {
    const std::string outputs = bf16 ? "+bf16" : "";
    for (const std::string_view choice : kBoundaryChoices) {
      const std::string name(choice);
      const bool one_kernel = choice != kTwoKernelsChoice;
      if (one_kernel && !has_variant(fused::kOp, target, choice)) continue;
      arms.push_back({name + outputs, one_kernel ? Chain::kOneKernel : Chain::kTwoKernels, bf16,
                      one_kernel ? name : std::string()});
    }
  }
  return arms;
}

}  // namespace

Result<std::vector<Arm>> chosen_arms(const BoundaryBench& options) {
  if (options.sweep_variants) return all_choices(options.target);
  std::vector<Arm> chosen;
  std::string accepted;
  for (const Arm& arm : all_arms()) {
    accepted += (accepted.empty() ? "" : ", ") + arm.name;
    const bool wanted = options.arms.empty() || std::find(options.arms.begin(), options.arms.end(),
                                                          arm.name) != options.arms.end();
    if (!wanted) continue;
    chosen.push_back(arm);
    if (arm.chain == Chain::kOneKernel) chosen.back().variant = options.variant;
  }
  for (const std::string& name : options.arms)
    if (std::none_of(chosen.begin(), chosen.end(),
                     [&](const Arm& arm) { return arm.name == name; }))
      return Status::error(Code::kInvalidArgument,
                           "bench boundary: --arms has \"" + name + "\"; accepted are " + accepted);
  return chosen;
}

// --- buffers ----------------------------------------------------------------------------------

std::size_t Bench::bytes_of(Kind kind) const {
  const std::size_t elements =
      static_cast<std::size_t>(shape_.rows) * static_cast<std::size_t>(shape_.hidden);
  switch (kind) {
    case kWeight: return static_cast<std::size_t>(shape_.hidden) * 2;
    case kCodes: return elements;
    case kScales: return elements / kGroup * 4;
    default: return elements * 2;
  }
}

void* Bench::at(Kind kind, int call) const {
  const Ring& ring = rings_[kind];
  return ring.buffer.as<std::byte>() + static_cast<std::size_t>(call % ring.copies) * ring.stride;
}

TensorView Bench::rows_of(Kind kind, int call) const {
  return view(at(kind, call), dtype_, stream_->device(), {shape_.rows, shape_.hidden});
}

// Copies enough that what a call uses was last used more than two caches ago, or before flush().
Status Bench::choose_copies(bool cold, int most) {
  cold_ = cold;
  if (!cold) return Status::ok();
  TENON_ASSIGN(const DeviceProperties device, properties(stream_->device()));
  std::size_t one = 0, least = 0;
  for (int kind = 0; kind < kNumKinds; ++kind) {
    one += bytes_of(static_cast<Kind>(kind)) + kAlign;
    if (kind != kResidualIn && kind != kSum && kind != kNormed)
      least += bytes_of(static_cast<Kind>(kind));
  }
  const std::size_t wanted = 2 * device.l2_bytes / least + 2;
  const std::size_t bound = std::max<std::size_t>(device.total_bytes / 4 / one, 2);
  copies_ = static_cast<int>(std::min({wanted, bound, static_cast<std::size_t>(most)}));
  TENON_ASSIGN(scratch_, Buffer::allocate(stream_->device(), 2 * device.l2_bytes));
  return Status::ok();
}

Status Bench::allocate(bool cold) {
  for (int kind = 0; kind < kNumKinds; ++kind) {
    Ring& ring = rings_[static_cast<std::size_t>(kind)];
    const bool residual = kind == kResidual || kind == kResidualIn;
    ring.copies = cold ? copies_ : residual ? 2 : 1;
    ring.stride = (bytes_of(static_cast<Kind>(kind)) + kAlign - 1) / kAlign * kAlign;
    TENON_ASSIGN(
        ring.buffer,
        Buffer::allocate(stream_->device(), ring.stride * static_cast<std::size_t>(ring.copies)));
  }
  return Status::ok();
}

Status Bench::fill(Kind kind, const std::vector<std::uint16_t>& values) {
  for (int copy = 0; copy < rings_[kind].copies; ++copy)
    TENON_TRY(
        stream_->copy(at(kind, copy), copy == 0 ? values.data() : at(kind, 0), bytes_of(kind)));
  return stream_->synchronize();  // the values are the host's, and end at the caller's
}

Status Bench::fill_addends(Inputs inputs) {
  const Communicator& comm = *channels_.comm;
  return fill(kPartial, make_addend(shape_, dtype_, inputs, comm.size(), comm.rank()));
}

Status Bench::fill_inputs() {
  TENON_TRY(fill_addends(Inputs::kCancelling));
  TENON_TRY(fill(kResidualIn, make_residual(shape_, dtype_)));
  TENON_TRY(fill(kWeight, make_weight(shape_.hidden, dtype_)));
  return reset();
}

Status Bench::reset() {
  const Buffer& from = rings_[kResidualIn].buffer;
  return stream_->copy(rings_[kResidual].buffer.data(), from.data(), from.bytes());
}

Status Bench::flush() {
  return cold_ ? stream_->fill(scratch_.data(), 0, scratch_.bytes()) : Status::ok();
}

Status Bench::poison() {
  for (const Kind kind : {kSum, kNormed, kCodes, kScales})
    TENON_TRY(stream_->fill(at(kind, 0), kPoison, bytes_of(kind)));
  return Status::ok();
}

// --- arguments and plans ------------------------------------------------------------------------

NormedRows Bench::outputs(int call, bool bf16, bool fp8) const {
  const Device device = stream_->device();
  NormedRows out;
  if (bf16) out.bf16 = rows_of(kNormed, call);
  if (fp8)
    out.fp8 = QuantView{
        view(at(kCodes, call), DType::kE4M3, device, {shape_.rows, shape_.hidden}),
        view(at(kScales, call), DType::kF32, device, {shape_.rows, shape_.hidden / kGroup}), kGroup,
        ScaleLayout::kRow};
  return out;
}

fused::Args Bench::fused_args(int call, bool bf16) const {
  fused::Args args;
  args.partial.addend = rows_of(kPartial, call);
  args.residual = rows_of(kResidual, call);
  args.weight = view(at(kWeight, call), dtype_, stream_->device(), {shape_.hidden});
  args.out = outputs(call, bf16, true);
  args.spread_residual = spread_residual_;
  return args;
}

fused::Args Bench::bucket_args(bool bf16) const {
  fused::Args args = fused_args(0, bf16);
  const std::int64_t rows = bucket_rows_;
  args.partial.addend.shape[0] = args.residual.shape[0] = rows;
  if (args.out.bf16) args.out.bf16->shape[0] = rows;
  if (args.out.fp8) args.out.fp8->data.shape[0] = args.out.fp8->scale.shape[0] = rows;
  return args;
}

namespace {

rmsnorm::Args norm_args(const fused::Args& from, const TensorView& sum, const NormedRows& out) {
  rmsnorm::Args args;
  args.y = sum;
  args.residual = from.residual;
  args.weight = from.weight;
  args.out = out;
  return args;
}

fp8_quant::Args quant_args(const TensorView& normed, const NormedRows& out) {
  fp8_quant::Args args;
  args.in = normed;
  args.out = out;
  return args;
}

}  // namespace

Result<Plan> Bench::plan_of_bucket(const PlanContext& where, bool bf16) const {
  PlanContext measured = where;
  prefer_measured(measured, channels_.comm->slowest_link_gbs(), spread_residual_,
                  boundary_outputs(true, bf16), bucket_rows_, shape_.hidden);
  return fused::plan(bucket_args(bf16), measured);
}

std::string_view Bench::default_choice(bool bf16) const {
  const auto where = plan_context(*channels_.comm);
  if (!where) return {};
  const auto chosen = plan_of_bucket(*where, bf16);
  return chosen ? chosen->variant_name : kTwoKernelsChoice;
}

Status Bench::plan_arm(const PlanContext& where, std::size_t index) {
  const Arm& arm = arms_[index];
  Plans& plans = plans_[index];
  const fused::Args args = fused_args(0, arm.bf16);
  if (arm.chain == Chain::kOneKernel) {
    // The variant is that of the rows' bucket, unless one is asked for; how it runs follows from
    // the rows of a call.
    std::string_view variant = arm.variant;
    if (variant.empty()) {
      TENON_ASSIGN(const Plan of_bucket, plan_of_bucket(where, arm.bf16));
      variant = of_bucket.variant_name;
    }
    TENON_ASSIGN(plans.one, fused::plan(args, where, variant));
    return Status::ok();
  }
  if (arm.chain == Chain::kVendor && channels_.vendor == nullptr)
    return Status::error(Code::kUnsupported, "no vendor library");
  const bool quantises = arm.chain == Chain::kTwoKernels;
  const NormedRows out = outputs(0, arm.bf16, quantises);
  TENON_ASSIGN(plans.norm, rmsnorm::plan(norm_args(args, rows_of(kSum, 0), out), where));
  if (quantises) return Status::ok();
  TENON_ASSIGN(plans.quant,
               fp8_quant::plan(quant_args(rows_of(kNormed, 0), outputs(0, false, true)), where));
  return Status::ok();
}

const Plan& Bench::plan(std::size_t arm) const {
  return arms_[arm].chain == Chain::kOneKernel ? plans_[arm].one : plans_[arm].norm;
}

Result<Bench> Bench::make(const BoundaryBench& options, Shape shape, bool cold,
                          const std::vector<Arm>& arms, const Channels& channels, Stream& stream) {
  Bench bench;
  bench.shape_ = shape;
  bench.dtype_ = options.dtype;
  bench.spread_residual_ = options.spread_residual;
  bench.arms_ = arms;
  bench.channels_ = channels;
  bench.stream_ = &stream;
  TENON_TRY(bench.choose_copies(cold, std::max(options.iterations, 2)));
  TENON_TRY(bench.allocate(cold));
  TENON_TRY(bench.fill_inputs());
  TENON_ASSIGN(const PlanContext where, plan_context(*channels.comm));
  const TunedTeam team{where.properties.name, channels.comm->slowest_link_gbs(), where.team_size,
                       options.spread_residual};
  bench.bucket_rows_ = static_cast<int>(std::bit_ceil(static_cast<unsigned>(shape.rows)));
  for (const std::int64_t end : row_ends(tuned_tables(), team, shape.hidden))
    if (end >= shape.rows) bench.bucket_rows_ = std::min(bench.bucket_rows_, static_cast<int>(end));
  bench.plans_.resize(arms.size());
  for (std::size_t arm = 0; arm < arms.size(); ++arm)
    bench.able_.push_back(bench.plan_arm(where, arm));
  return bench;
}

Status Bench::enqueue(std::size_t index, int call) {
  const Arm& arm = arms_[index];
  const Plans& plans = plans_[index];
  const fused::Args args = fused_args(call, arm.bf16);
  if (arm.chain == Chain::kOneKernel)
    return fused::run(plans.one, args, channels_.fused.view(), *stream_);
  const TensorView sum = rows_of(kSum, call);
  if (arm.chain == Chain::kVendor) {
    TENON_TRY(channels_.vendor->all_reduce(args.partial, sum, *stream_));
  } else {
    TENON_TRY(collectives::all_reduce(channels_.sum, args.partial, sum, *stream_));
  }
  const bool quantises = arm.chain == Chain::kTwoKernels;
  TENON_TRY(
      rmsnorm::run(plans.norm, norm_args(args, sum, outputs(call, arm.bf16, quantises)), *stream_));
  if (quantises) return Status::ok();
  return fp8_quant::run(plans.quant, quant_args(rows_of(kNormed, call), outputs(call, false, true)),
                        *stream_);
}

Traffic Bench::traffic(bool bf16) const {
  return fused::traffic(fused_args(0, bf16), channels_.comm->size());
}

// --- against the oracle -------------------------------------------------------------------------

// The given rows of everything that call 0 wrote, packed. Runs of rows travel together.
Status Bench::fetch_rows(const std::vector<int>& rows, reference::BoundaryOutputs& found) {
  const auto fetch = [&](Kind kind, auto& to) -> Status {
    const std::size_t bytes = bytes_of(kind) / static_cast<std::size_t>(shape_.rows);
    to.resize(rows.size() * bytes / sizeof(to[0]));
    auto* const host = reinterpret_cast<std::byte*>(to.data());
    const auto* const device = static_cast<const std::byte*>(at(kind, 0));
    for (std::size_t first = 0, last = 0; first < rows.size(); first = last) {
      for (last = first + 1; last < rows.size() && rows[last] == rows[last - 1] + 1;) ++last;
      TENON_TRY(stream_->copy(host + first * bytes,
                              device + static_cast<std::size_t>(rows[first]) * bytes,
                              (last - first) * bytes));
    }
    return Status::ok();
  };
  TENON_TRY(fetch(kResidual, found.residual));
  TENON_TRY(fetch(kNormed, found.norm));
  TENON_TRY(fetch(kCodes, found.codes));
  TENON_TRY(fetch(kScales, found.scales));
  return stream_->synchronize();
}

Result<std::string> Bench::difference(std::size_t index, const Oracle& oracle) {
  const Arm& arm = arms_[index];
  const Communicator& comm = *channels_.comm;
  TENON_TRY(reset());
  TENON_TRY(poison());
  TENON_TRY(enqueue(index, 0));
  TENON_TRY(stream_->synchronize());
  TENON_TRY(comm.health());
  if (arm.chain == Chain::kVendor) TENON_TRY(channels_.vendor->health());
  reference::BoundaryOutputs found;
  TENON_TRY(fetch_rows(oracle.rows, found));
  const auto hidden = static_cast<std::ptrdiff_t>(shape_.hidden);
  for (std::size_t i = 0; i < oracle.rows.size(); ++i) {
    if (arm.chain != Chain::kOneKernel || spread_residual_) break;
    const int owner = fused::residual_owner(plans_[index].one.variant_name, oracle.rows[i],
                                            shape_.rows, comm.size());
    if (owner < 0 || owner == comm.rank()) continue;
    const auto first = static_cast<std::ptrdiff_t>(i) * hidden;
    std::copy_n(oracle.expected.residual.begin() + first, hidden, found.residual.begin() + first);
  }
  if (!arm.bf16) found.norm = oracle.expected.norm;
  return reference::difference(oracle.shape, oracle.expected, found);
}

}  // namespace tenon::apps
