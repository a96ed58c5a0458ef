// Products and lookups by rows: scratch, row buckets, Linear, OutProjection, Embedding, Head.
#include <limits>

#include "tenon/layers/layers.h"
#include "tenon/ops/bf16_gemm/bf16_gemm.h"
#include "tenon/ops/embedding/embedding.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"

namespace tenon {
namespace {

constexpr int kGroup = 128;                         // activations: one scale per 128 features
constexpr ScaleLayout kLayout = ScaleLayout::kRow;  // of every activation here

std::int64_t num_rows(const NormedRows& x) {
  return x.fp8 ? x.fp8->data.shape[0] : x.bf16->shape[0];
}

fp8_gemm::Args fp8_args(const Matrix& matrix, const std::optional<Grouping>& grouping,
                        const NormedRows& x, const TensorView& out) {
  fp8_gemm::Args args;
  args.x = *x.fp8;
  args.weight = matrix.weight;
  args.weight_scale = matrix.scale;
  args.out = out;
  if (!grouping) return args;
  args.offsets = grouping->offsets;
  if (grouping->row_of) args.row_of = grouping->row_of->rows(0, out.shape[0]);
  return args;
}

// An empty plan where no variant takes these arguments.
Result<Plan> plan_or_nothing(const fp8_gemm::Args& args, const PlanContext& where) {
  Result<Plan> plan = fp8_gemm::plan(args, where);
  if (!plan && plan.status().code() == Code::kUnsupported) return Plan{};
  return plan;
}

bf16_gemm::Args bf16_args(const Matrix& matrix, const std::optional<Grouping>& grouping,
                          const NormedRows& x, const TensorView& out) {
  bf16_gemm::Args args;
  args.x = *x.bf16;
  args.weight = matrix.weight;
  args.out = out;
  if (!grouping) return args;
  args.offsets = grouping->offsets;
  if (grouping->row_of) args.row_of = grouping->row_of->rows(0, out.shape[0]);
  return args;
}

}  // namespace

const Plan& RowPlans::at(std::int64_t rows) const {
  std::size_t bucket = 0;
  while (bucket + 1 < plans_.size() && (std::int64_t{1} << bucket) < rows) ++bucket;
  return plans_[bucket];
}

void* Nowhere::next(std::size_t bytes) {
  constexpr std::uintptr_t kApart = 256;
  const std::uintptr_t here = next_;
  next_ += (bytes / kApart + 1) * kApart;
  return reinterpret_cast<void*>(here);
}

Result<TensorView> Scratch::tensor(std::string_view label, DType dtype,
                                   std::initializer_list<std::int64_t> shape) {
  TensorView wanted = view(nullptr, dtype, device_, shape);
  const std::string key = std::string(label) + " " + describe(wanted);
  if (const auto found = tensors_.find(key); found != tensors_.end()) return found->second;
  bytes_ += static_cast<std::int64_t>(wanted.bytes());
  if (stream_ == nullptr) {
    wanted.data = nowhere_.next(wanted.bytes());
  } else {
    TENON_ASSIGN(Buffer memory, Buffer::allocate(device_, wanted.bytes()), "scratch " + key);
    wanted.data = memory.data();
    TENON_TRY(stream_->fill(wanted.data, 0, wanted.bytes()));
    buffers_.push_back(std::move(memory));
  }
  tensors_.emplace(key, wanted);
  return wanted;
}

Result<QuantView> Scratch::codes(std::string_view label, std::int64_t rows, std::int64_t columns) {
  if (columns % kGroup != 0)
    return Status::error(Code::kUnsupported, std::string(label) + ": " + std::to_string(columns) +
                                                 " features cannot be quantised; a multiple of " +
                                                 std::to_string(kGroup) + " can");
  const auto [height, width] = scale_shape(kLayout, rows, columns, kGroup);
  QuantView codes;
  TENON_ASSIGN(codes.data, tensor(std::string(label) + " codes", DType::kE4M3, {rows, columns}));
  TENON_ASSIGN(codes.scale,
               tensor(std::string(label) + " scales", scale_dtype(kLayout), {height, width}));
  codes.group = kGroup;
  codes.layout = kLayout;
  return codes;
}

Result<TensorView> Scratch::placeholder(DType dtype, std::initializer_list<std::int64_t> shape) {
  TENON_ASSIGN(const TensorView somewhere, tensor("placeholder", DType::kU8, {256}));
  return view(somewhere.data, dtype, device_, shape);
}

Status Scratch::write(const TensorView& tensor, const void* from) {
  if (stream_ == nullptr) return Status::ok();
  TENON_TRY(stream_->copy(tensor.data, from, tensor.bytes()));
  return stream_->synchronize();
}

QuantView first_rows(const QuantView& all, std::int64_t rows) {
  QuantView part = all;
  part.data = all.data.rows(0, rows);
  const auto [height, width] = scale_shape(all.layout, rows, all.data.shape[1], all.group);
  part.scale = view(all.scale.data, all.scale.dtype, all.scale.device, {height, width});
  return part;
}

NormedRows first_rows(const NormedRows& all, std::int64_t rows) {
  NormedRows part;
  if (all.bf16) part.bf16 = all.bf16->rows(0, rows);
  if (all.fp8) part.fp8 = first_rows(*all.fp8, rows);
  return part;
}

// --- Linear ---------------------------------------------------------------------------------

Result<Linear> Linear::make(const Matrix& matrix, const NormedRows& x, const TensorView& out,
                            const PlanContext& where, std::optional<Grouping> grouping) {
  Linear linear;
  linear.matrix_ = matrix;
  linear.grouping_ = grouping;
  const std::int64_t max_rows = out.shape[0], max_tokens = num_rows(x);
  const auto make_plan = [&](std::int64_t rows) -> Result<Plan> {
    const NormedRows part = first_rows(x, (rows * max_tokens + max_rows - 1) / max_rows);
    if (matrix.is_fp8())
      return fp8_gemm::plan(fp8_args(matrix, linear.grouping_, part, out.rows(0, rows)), where);
    return bf16_gemm::plan(bf16_args(matrix, linear.grouping_, part, out.rows(0, rows)), where);
  };
  TENON_ASSIGN(linear.plans_, RowPlans::make(max_rows, make_plan));
  return linear;
}

Status Linear::run(const NormedRows& x, const TensorView& out, Stream& stream) const {
  const Plan& plan = plans_.at(out.shape[0]);
  if (matrix_.is_fp8()) return fp8_gemm::run(plan, fp8_args(matrix_, grouping_, x, out), stream);
  return bf16_gemm::run(plan, bf16_args(matrix_, grouping_, x, out), stream);
}

Result<RowPlans> Linear::plan_activated(const NormedRows& x, const TensorView& out,
                                        const QuantView& activated,
                                        const PlanContext& where) const {
  const std::int64_t max_rows = out.shape[0], max_tokens = num_rows(x);
  return RowPlans::make(max_rows, [&](std::int64_t rows) {
    const NormedRows part = first_rows(x, (rows * max_tokens + max_rows - 1) / max_rows);
    fp8_gemm::Args args = fp8_args(matrix_, grouping_, part, out.rows(0, rows));
    args.activated = first_rows(activated, rows);
    return plan_or_nothing(args, where);
  });
}

Status Linear::run_activated(const Plan& plan, const NormedRows& x, const TensorView& out,
                             const QuantView& activated, Stream& stream) const {
  fp8_gemm::Args args = fp8_args(matrix_, grouping_, x, out);
  args.activated = activated;
  return fp8_gemm::run(plan, args, stream);
}

Result<RowPlans> Linear::plan_beside(const NormedRows& x, const TensorView& out,
                                     const Linear& other, const TensorView& other_out,
                                     const PlanContext& where) const {
  if (!matrix_.is_fp8() || other.matrix_.is_fp8()) return RowPlans{};
  return RowPlans::make(out.shape[0], [&](std::int64_t rows) {
    const NormedRows part = first_rows(x, rows);
    fp8_gemm::Args args = fp8_args(matrix_, {}, part, out.rows(0, rows));
    args.beside = fp8_gemm::Beside{*part.bf16, other.matrix_.weight, other_out.rows(0, rows)};
    return plan_or_nothing(args, where);
  });
}

Status Linear::run_beside(const Plan& plan, const NormedRows& x, const TensorView& out,
                          const Linear& other, const TensorView& other_out, Stream& stream) const {
  fp8_gemm::Args args = fp8_args(matrix_, {}, x, out);
  args.beside = fp8_gemm::Beside{*x.bf16, other.matrix_.weight, other_out};
  return fp8_gemm::run(plan, args, stream);
}

void Linear::add_to(NormedForms* forms) const {
  (matrix_.is_fp8() ? forms->fp8 : forms->bf16) = true;
}

// --- OutProjection --------------------------------------------------------------------------

Result<OutProjection> OutProjection::make(std::string_view label, const Matrix& matrix,
                                          fp8_quant::Prologue prologue, const TensorView& in,
                                          const TensorView& out, LayerContext& context,
                                          std::optional<Grouping> grouping) {
  OutProjection projection;
  projection.prologue_ = prologue;
  if (grouping)
    projection.row_limit_ = grouping->offsets.as<std::int32_t>() + grouping->offsets.shape[0] - 1;
  const std::int64_t width =
      matrix.weight.shape[static_cast<std::size_t>(matrix.weight.num_dims - 1)];
  NormedRows& activation = projection.activation_;
  const bool as_it_is = prologue == fp8_quant::Prologue::kNone && !matrix.is_fp8();
  if (matrix.is_fp8()) {
    TENON_ASSIGN(activation.fp8, context.scratch.codes(label, in.shape[0], width));
  } else if (!as_it_is) {
    TENON_ASSIGN(activation.bf16,
                 context.scratch.tensor(label, DType::kBF16, {in.shape[0], width}));
  }
  if (!as_it_is) {
    const auto make_plan = [&](std::int64_t rows) {
      return fp8_quant::plan({.in = in.rows(0, rows),
                              .prologue = prologue,
                              .row_limit = projection.row_limit_,
                              .out = first_rows(activation, rows)},
                             context.where);
    };
    TENON_ASSIGN(projection.activate_, RowPlans::make(in.shape[0], make_plan));
  }
  const NormedRows read = as_it_is ? NormedRows{.bf16 = in, .fp8 = {}} : activation;
  TENON_ASSIGN(projection.product_, Linear::make(matrix, read, out, context.where, grouping));
  return projection;
}

Status OutProjection::run(const TensorView& in, const TensorView& out, Stream& stream) const {
  if (!activate_) return product_.run({.bf16 = in, .fp8 = {}}, out, stream);
  const std::int64_t rows = in.shape[0];
  const NormedRows activation = first_rows(activation_, rows);
  TENON_TRY(fp8_quant::run(
      activate_->at(rows),
      {.in = in, .prologue = prologue_, .row_limit = row_limit_, .out = activation}, stream));
  return product_.run(activation, out, stream);
}

Status OutProjection::finish(const TensorView& out, Stream& stream) const {
  return product_.run(first_rows(activation_, out.shape[0]), out, stream);
}

// --- Embedding ------------------------------------------------------------------------------

Result<Embedding> Embedding::make(const TensorView& table, std::int32_t vocab_begin,
                                  LayerContext& context) {
  Embedding embedding;
  embedding.table_ = table;
  embedding.vocab_begin_ = vocab_begin;
  const auto make_plan = [&](std::int64_t rows) -> Result<Plan> {
    TENON_ASSIGN(const TensorView ids, context.scratch.placeholder(DType::kI32, {rows}));
    return embedding::plan({.ids = ids,
                            .table = table,
                            .vocab_begin = vocab_begin,
                            .out = {context.partial.rows(0, rows)}},
                           context.where);
  };
  TENON_ASSIGN(embedding.plans_, RowPlans::make(context.scratch.max_rows(), make_plan));
  return embedding;
}

Status Embedding::run(const TensorView& ids, const PartialRows& out, Stream& stream) const {
  return embedding::run(plans_.at(ids.shape[0]),
                        {.ids = ids, .table = table_, .vocab_begin = vocab_begin_, .out = out},
                        stream);
}

// --- Head -----------------------------------------------------------------------------------

Result<Head> Head::make(const TensorView& table, std::int32_t vocab_begin, std::int64_t width,
                        LayerContext& context) {
  Head head;
  head.table_ = table;
  head.vocab_begin_ = vocab_begin;
  const std::int64_t rows = context.max_logits, filled = table.shape[0];
  TENON_ASSIGN(head.logits_, context.scratch.tensor("logits", DType::kF32, {rows, width}));
  if (filled < width) {
    const std::vector<float> nothing(static_cast<std::size_t>(rows * width),
                                     -std::numeric_limits<float>::infinity());
    TENON_TRY(context.scratch.write(head.logits_, nothing.data()));
  }
  if (filled == 0) return head;
  const auto make_plan = [&](std::int64_t number) -> Result<Plan> {
    TENON_ASSIGN(const TensorView logit_rows, context.scratch.placeholder(DType::kI32, {number}));
    TensorView out = head.logits_.rows(0, number);
    out.shape[1] = filled;
    return bf16_gemm::plan({.x = *context.x.bf16,
                            .weight = table,
                            .out = out,
                            .row_index = logit_rows,
                            .offsets = {},
                            .row_of = {}},
                           context.where);
  };
  TENON_ASSIGN(head.plans_, RowPlans::make(rows, make_plan));
  return head;
}

Result<LogitsShard> Head::run(const NormedRows& x, const TensorView& logit_rows,
                              Stream& stream) const {
  const std::int64_t rows = logit_rows.shape[0];
  const LogitsShard shard{.logits = logits_.rows(0, rows), .vocab_begin = vocab_begin_};
  if (rows == 0 || table_.shape[0] == 0) return shard;
  TensorView out = shard.logits;
  out.shape[1] = table_.shape[0];
  TENON_TRY(bf16_gemm::run(plans_.at(rows),
                           {.x = *x.bf16,
                            .weight = table_,
                            .out = out,
                            .row_index = logit_rows,
                            .offsets = {},
                            .row_of = {}},
                           stream));
  return shard;
}

}  // namespace tenon
