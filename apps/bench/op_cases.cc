#include "apps/bench/op_cases.h"

#include <algorithm>
#include <numeric>

#include "tenon/ops/bf16_gemm/bf16_gemm.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/make_weights/make_weights.h"
#include "tenon/ops/moe_experts/moe_experts.h"
#include "tenon/ops/moe_route/moe_route.h"

namespace tenon::apps {
namespace {

constexpr int kBlock = 128;       // of scales
constexpr int kMostCopies = 128;  // of small weights, which a large cache then partly holds
constexpr int kHostCopies = 2;
constexpr int kMostHeadRows = 512;  // logits are those of sequences, not of prompts' tokens

std::int64_t blocks(std::int64_t elements) { return (elements + kBlock - 1) / kBlock; }

std::string by(std::int64_t n, std::int64_t k) {
  return std::to_string(n) + " x " + std::to_string(k);
}

// The device memory of a part.
class Memory {
 public:
  explicit Memory(Stream& stream) : stream_(&stream) {}

  Device device() const { return stream_->device(); }
  Stream& stream() const { return *stream_; }

  // Zeros.
  Result<TensorView> zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
    TensorView made = view(nullptr, dtype, device(), shape);
    TENON_ASSIGN(Buffer buffer,
                 Buffer::allocate(device(), std::max<std::size_t>(made.bytes(), 256)));
    TENON_TRY(stream_->fill(buffer.data(), 0, buffer.bytes()));
    made.data = buffer.data();
    buffers_.push_back(std::move(buffer));
    return made;
  }

  // Numbers between center − spread and center + spread; of e4m3, codes of every size below 2.
  Result<TensorView> numbers(DType dtype, std::initializer_list<std::int64_t> shape,
                             float center = 0, float spread = 1) {
    TENON_ASSIGN(const TensorView made, zeros(dtype, shape));
    make_weights::Args args;
    args.made = {.key = ++keys_, .dtype = dtype, .center = center, .spread = spread};
    args.width = made.shape[static_cast<std::size_t>(made.num_dims - 1)];
    args.out = view(made.data, dtype, device(), {made.size() / args.width, args.width});
    TENON_ASSIGN(const PlanContext where, plan_context(device()));
    TENON_ASSIGN(const Plan plan, make_weights::plan(args, where));
    TENON_TRY(make_weights::run(plan, args, *stream_));
    return made;
  }

  Result<TensorView> integers(const std::vector<std::int32_t>& values,
                              std::initializer_list<std::int64_t> shape) {
    TENON_ASSIGN(const TensorView made, zeros(DType::kI32, shape));
    TENON_TRY(stream_->copy(made.data, values.data(), values.size() * sizeof(std::int32_t)));
    TENON_TRY(stream_->synchronize());
    return made;
  }

  // Rows of codes and their scales.
  Result<QuantView> codes(std::int64_t rows, std::int64_t width) {
    QuantView made;
    TENON_ASSIGN(made.data, numbers(DType::kE4M3, {rows, width}));
    TENON_ASSIGN(made.scale, numbers(DType::kF32, {rows, blocks(width)}, 1, 0.5f));
    return made;
  }

 private:
  Stream* stream_;
  std::vector<Buffer> buffers_;
  std::uint64_t keys_ = 0;
};

// So many that all of them are twice what the cache holds.
int copies_of(const PlanContext& where, double bytes) {
  if (is_host(where.device.target)) return kHostCopies;
  const double wanted = 2.0 * static_cast<double>(where.properties.l2_bytes) / std::max(bytes, 1.0);
  return static_cast<int>(std::clamp(wanted + 2, 2.0, static_cast<double>(kMostCopies)));
}

// The first `rows` rows of codes.
QuantView first(const QuantView& all, std::int64_t rows) {
  QuantView part = all;
  part.data = all.data.rows(0, rows);
  part.scale = all.scale.rows(0, rows);
  return part;
}

// The copy with this number of tensors that lie behind each other in the first dimension.
TensorView copy_of(const TensorView& all, int copy) {
  TensorView one = all.rows(copy, 1);
  for (int i = 0; i + 1 < one.num_dims; ++i) {
    one.shape[static_cast<std::size_t>(i)] = one.shape[static_cast<std::size_t>(i + 1)];
    one.stride[static_cast<std::size_t>(i)] = one.stride[static_cast<std::size_t>(i + 1)];
  }
  --one.num_dims;
  return one;
}

struct Places {
  PlanContext where;
  int most_rows = 1;
};

// The call of an op, whose functions are these, with the arguments args_of(copy).
template <class Args, class ArgsOf>
Result<OpCall> call_with(Result<Plan> (*plan)(const Args&, const PlanContext&, std::string_view),
                         Traffic (*traffic)(const Args&),
                         Status (*run)(const Plan&, const Args&, Stream&), const ArgsOf& args_of,
                         const PlanContext& where, const std::shared_ptr<Memory>& memory) {
  const Args args = args_of(0);
  TENON_ASSIGN(const Plan made, plan(args, where, {}));
  OpCall call{std::string(made.variant_name), traffic(args), {}};
  call.run = [=](int copy) { return run(made, args_of(copy), memory->stream()); };
  return call;
}

// --- products

struct Product {
  std::string name;
  std::int64_t n = 0, k = 0;
  bool fp8 = true;
  bool activated = false;   // fp8: silu(gate) · up and its quantisation in the same launch
  std::int64_t beside = 0;  // fp8: columns of a bf16 product in the same launch
  DType out = DType::kBF16;
  int most_rows = 0;  // 0: as many as there are
};

Result<OpPart> fp8_product(const Product& product, const Places& at, Stream& stream) {
  const auto memory = std::make_shared<Memory>(stream);
  const std::int64_t n = product.n, k = product.k, rows = at.most_rows;
  OpPart part{.op = "fp8_gemm", .shape = by(n, k), .most_rows = at.most_rows};
  part.copies = copies_of(at.where, static_cast<double>(n) * static_cast<double>(k));
  TENON_ASSIGN(const QuantView x, memory->codes(rows, k));
  TENON_ASSIGN(const TensorView weight, memory->numbers(DType::kE4M3, {part.copies, n, k}));
  TENON_ASSIGN(const TensorView scale,
               memory->numbers(DType::kF32, {part.copies, blocks(n), blocks(k)}, 1, 0.5f));
  TENON_ASSIGN(const TensorView out, memory->zeros(product.out, {rows, n}));
  QuantView activated;
  if (product.activated) {
    TENON_ASSIGN(activated, memory->codes(rows, n / 2));
  }
  TensorView side_x, side_weight, side_out;
  if (product.beside > 0) {
    TENON_ASSIGN(side_x, memory->numbers(DType::kBF16, {rows, k}));
    TENON_ASSIGN(side_weight, memory->numbers(DType::kBF16, {part.copies, product.beside, k}));
    TENON_ASSIGN(side_out, memory->zeros(DType::kBF16, {rows, product.beside}));
    part.shape += " + " + std::to_string(product.beside);
  }
  part.at = [=, where = at.where](int count) -> Result<OpCall> {
    const auto args_of = [=](int copy) {
      fp8_gemm::Args args;
      args.x = first(x, count);
      args.weight = copy_of(weight, copy);
      args.weight_scale = copy_of(scale, copy);
      args.out = out.rows(0, count);
      if (product.activated) args.activated = first(activated, count);
      if (product.beside > 0)
        args.beside = fp8_gemm::Beside{side_x.rows(0, count), copy_of(side_weight, copy),
                                       side_out.rows(0, count)};
      return args;
    };
    return call_with(fp8_gemm::plan, fp8_gemm::traffic, fp8_gemm::run, args_of, where, memory);
  };
  return part;
}

Result<OpPart> bf16_product(const Product& product, const Places& at, Stream& stream) {
  const auto memory = std::make_shared<Memory>(stream);
  const int most = product.most_rows > 0 ? std::min(product.most_rows, at.most_rows) : at.most_rows;
  OpPart part{.op = "bf16_gemm",
              .shape = by(product.n, product.k),
              .most_rows = most,
              .why_most_rows = "there are logits of the last token of each sequence only"};
  part.copies = copies_of(at.where, 2.0 * static_cast<double>(product.n * product.k));
  TENON_ASSIGN(const TensorView x, memory->numbers(DType::kBF16, {most, product.k}));
  TENON_ASSIGN(const TensorView weight,
               memory->numbers(DType::kBF16, {part.copies, product.n, product.k}));
  TENON_ASSIGN(const TensorView out, memory->zeros(product.out, {most, product.n}));
  part.at = [=, where = at.where](int count) -> Result<OpCall> {
    const auto args_of = [=](int copy) {
      return bf16_gemm::Args{
          x.rows(0, count), copy_of(weight, copy), out.rows(0, count), {}, {}, {}};
    };
    return call_with(bf16_gemm::plan, bf16_gemm::traffic, bf16_gemm::run, args_of, where, memory);
  };
  return part;
}

// --- experts

// What moe_route makes for so many tokens. Every copy's tables begin where those of a step may.
struct Routing {
  TensorView weights, slot, offsets, token_of;  // [copies, kAlign · n]
};
constexpr std::int64_t kAlign = 64;  // elements

moe_route::Args routing_args(const qwen3_5::Config& config, const qwen3_5::Share& share,
                             const TensorView& logits, const Routing& routing, int copy) {
  const std::int64_t rows = logits.shape[0], top_k = config.top_k;
  const auto table = [&](const TensorView& all, std::initializer_list<std::int64_t> shape) {
    return view(copy_of(all, copy).data, all.dtype, all.device, shape);
  };
  moe_route::Args args;
  args.logits = logits;
  args.top_k = config.top_k;
  args.first_expert = static_cast<int>(share.experts.begin);
  args.local_experts = static_cast<int>(share.experts.count);
  args.weights = table(routing.weights, {rows, top_k});
  args.slot = table(routing.slot, {rows, top_k});
  args.offsets = table(routing.offsets, {share.experts.count + 1});
  args.token_of = table(routing.token_of, {rows * top_k});
  return args;
}

Result<Routing> routing_memory(Memory& memory, const qwen3_5::Config& config,
                               const qwen3_5::Share& share, int copies, int rows) {
  const auto tables = [&](DType dtype, std::int64_t elements) {
    return memory.zeros(dtype, {copies, (elements + kAlign - 1) / kAlign * kAlign});
  };
  const std::int64_t pairs = std::int64_t{rows} * config.top_k;
  Routing made;
  TENON_ASSIGN(made.weights, tables(DType::kF32, pairs));
  TENON_ASSIGN(made.slot, tables(DType::kI32, pairs));
  TENON_ASSIGN(made.offsets, tables(DType::kI32, share.experts.count + 1));
  TENON_ASSIGN(made.token_of, tables(DType::kI32, pairs));
  return made;
}

constexpr int kRoutings = 16;

Result<OpPart> choice(const qwen3_5::Config& config, const qwen3_5::Share& share, const Places& at,
                      Stream& stream) {
  const auto memory = std::make_shared<Memory>(stream);
  OpPart part{.op = "moe_route",
              .shape = std::to_string(config.top_k) + " of " + std::to_string(config.experts),
              .most_rows = at.most_rows};
  TENON_ASSIGN(const TensorView logits,
               memory->numbers(DType::kF32, {at.most_rows, config.experts}));
  part.at = [=, where = at.where](int count) -> Result<OpCall> {
    TENON_ASSIGN(const Routing routing, routing_memory(*memory, config, share, 1, count));
    const auto args_of = [=](int copy) {
      return routing_args(config, share, logits.rows(0, count), routing, copy);
    };
    return call_with(moe_route::plan, moe_route::traffic, moe_route::run, args_of, where, memory);
  };
  return part;
}

Result<moe_experts::Matrices> matrices(Memory& memory, std::int64_t experts, std::int64_t width,
                                       std::int64_t hidden, bool shared) {
  moe_experts::Matrices made;
  TENON_ASSIGN(made.gate_up, memory.numbers(DType::kE4M3, {experts, 2 * width, hidden}));
  TENON_ASSIGN(made.gate_up_scale,
               memory.numbers(DType::kF32, {experts, blocks(2 * width), blocks(hidden)}, 1, 0.5f));
  TENON_ASSIGN(made.down, memory.numbers(DType::kE4M3, {experts, hidden, width}));
  TENON_ASSIGN(made.down_scale,
               memory.numbers(DType::kF32, {experts, blocks(hidden), blocks(width)}, 1, 0.5f));
  if (!shared) return made;
  for (TensorView* each : {&made.gate_up, &made.gate_up_scale, &made.down, &made.down_scale})
    *each = copy_of(*each, 0);
  return made;
}

// Up and down. Every copy has the same matrices and other chosen experts.
Result<OpPart> experts(const qwen3_5::Config& config, const qwen3_5::Share& share, const Places& at,
                       Stream& stream) {
  const auto memory = std::make_shared<Memory>(stream);
  const std::int64_t hidden = config.hidden, width = share.moe_intermediate.count;
  const std::int64_t local = share.experts.count;
  const int most = std::min(at.most_rows, moe_experts::kMaxTokens);
  const bool shared = share.shared_intermediate.count == width;
  OpPart part{.op = "moe_experts",
              .shape = std::to_string(local) + " of " + by(width, hidden) +
                       (shared ? " and one for all" : ""),
              .copies = kRoutings,
              .most_rows = most,
              .why_most_rows = "with more, layers/mlp takes the products of fp8_gemm"};
  TENON_ASSIGN(const auto routed, matrices(*memory, local, width, hidden, false));
  moe_experts::Matrices all;
  if (shared) {
    TENON_ASSIGN(all, matrices(*memory, 1, width, hidden, true));
  }
  TENON_ASSIGN(const QuantView x, memory->codes(most, hidden));
  TENON_ASSIGN(const TensorView logits,
               memory->numbers(DType::kF32, {kRoutings, most, config.experts}));
  TENON_ASSIGN(const TensorView gate, memory->numbers(DType::kF32, {most, 1}));
  TENON_ASSIGN(const TensorView activation,
               memory->zeros(DType::kBF16, {most * (config.top_k + 1), width}));
  TENON_ASSIGN(const TensorView out, memory->zeros(DType::kBF16, {most, hidden}));
  part.at = [=, where = at.where](int count) -> Result<OpCall> {
    TENON_ASSIGN(const Routing routing, routing_memory(*memory, config, share, kRoutings, count));
    const auto routed_by = [=](int copy) {
      return routing_args(config, share, copy_of(logits, copy).rows(0, count), routing, copy);
    };
    TENON_ASSIGN(const Plan route, moe_route::plan(routed_by(0), where));
    for (int copy = 0; copy < kRoutings; ++copy)
      TENON_TRY(moe_route::run(route, routed_by(copy), memory->stream()));
    const auto args_with = [=](int copy, bool chooses) {
      moe_experts::Args args;
      args.x = first(x, count);
      args.routed = routed;
      if (shared) args.shared = all;
      const moe_route::Args tables = routed_by(copy);
      if (chooses) args.logits = tables.logits;
      args.first_expert = tables.first_expert;
      args.offsets = tables.offsets;
      args.token_of = tables.token_of;
      args.weights = tables.weights;
      args.slot = tables.slot;
      args.shared_gate = gate.rows(0, count);
      args.activation = activation.rows(0, std::int64_t{count} * (config.top_k + 1));
      args.out = {out.rows(0, count)};
      return args;
    };
    // As layers/mlp: with the choice where a variant makes it on the way.
    const bool chooses =
        count <= moe_experts::kMaxChosenTokens && moe_experts::plan(args_with(0, true), where);
    const auto args_of = [=](int copy) { return args_with(copy, chooses); };
    return call_with(moe_experts::plan, moe_experts::traffic, moe_experts::run, args_of, where,
                     memory);
  };
  return part;
}

// --- the delta net

// So many sequences of one token each.
Result<OpPart> delta_net(const qwen3_5::Share& share, const Places& at, Stream& stream) {
  using gated_delta_net::kHeadDim;
  const auto memory = std::make_shared<Memory>(stream);
  const std::int64_t conv = std::int64_t{2 * share.k_heads + share.v_heads} * kHeadDim;
  const std::int64_t values = std::int64_t{share.v_heads} * kHeadDim, heads = share.v_heads;
  // States of many sequences are large: as many slots as all copies of the largest call need, twice
  // the cache at least.
  const double slot_bytes = 4.0 * static_cast<double>(values * kHeadDim);
  const std::int64_t rows = at.most_rows;
  const std::int64_t slots = std::max<std::int64_t>(2 * rows, copies_of(at.where, slot_bytes));
  OpPart part{
      .op = "gated_delta_net",
      .shape = std::to_string(share.k_heads) + " + " + std::to_string(share.v_heads) + " heads",
      .copies = kMostCopies,
      .most_rows = at.most_rows};
  gated_delta_net::Args all;
  all.k_heads = share.k_heads;
  all.v_heads = share.v_heads;
  all.state_is_settled = true;  // as in a step
  TENON_ASSIGN(all.qkv, memory->numbers(DType::kBF16, {rows, conv}));
  TENON_ASSIGN(all.z, memory->numbers(DType::kBF16, {rows, values}));
  TENON_ASSIGN(all.b, memory->numbers(DType::kBF16, {rows, heads}));
  TENON_ASSIGN(all.a, memory->numbers(DType::kBF16, {rows, heads}));
  TENON_ASSIGN(all.conv_weight, memory->numbers(DType::kBF16, {conv, gated_delta_net::kTaps}));
  TENON_ASSIGN(all.a_log, memory->numbers(DType::kF32, {heads}));
  TENON_ASSIGN(all.dt_bias, memory->numbers(DType::kF32, {heads}));
  TENON_ASSIGN(all.norm, memory->numbers(DType::kF32, {std::int64_t{kHeadDim}}, 1, 0.5f));
  TENON_ASSIGN(all.conv_state,
               memory->numbers(DType::kBF16, {slots, gated_delta_net::kKeptInputs, conv}));
  TENON_ASSIGN(all.state,
               memory->numbers(DType::kF32, {slots, heads, kHeadDim, kHeadDim}, 0, 0.1f));
  TENON_ASSIGN(all.scratch, memory->zeros(DType::kBF16, {rows, gated_delta_net::scratch_columns(
                                                                   share.k_heads, share.v_heads,
                                                                   at.where.device.target)}));
  TENON_ASSIGN(const TensorView out, memory->zeros(DType::kBF16, {rows, values}));
  TENON_ASSIGN(const QuantView codes, memory->codes(rows, values));
  std::vector<std::int32_t> starts(static_cast<std::size_t>(rows + 1));
  std::iota(starts.begin(), starts.end(), 0);
  TENON_ASSIGN(all.sequence_starts, memory->integers(starts, {rows + 1}));
  TENON_ASSIGN(
      all.sequence_lengths,
      memory->integers(std::vector<std::int32_t>(static_cast<std::size_t>(rows), 1000), {rows}));
  TENON_ASSIGN(all.fresh, memory->zeros(DType::kI32, {rows}));
  // Slots 0 … and once more, so that a call may begin anywhere.
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(2 * slots));
  for (std::size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(slots));
  TENON_ASSIGN(const TensorView slot_numbers, memory->integers(numbers, {2 * slots}));
  part.at = [=, where = at.where](int count) -> Result<OpCall> {
    const auto args_of = [=](int copy) {
      gated_delta_net::Args args = all;
      for (TensorView* each : {&args.qkv, &args.z, &args.b, &args.a, &args.scratch,
                               &args.sequence_lengths, &args.fresh})
        *each = each->rows(0, count);
      args.sequence_starts = all.sequence_starts.rows(0, count + 1);
      const std::int64_t begin = std::int64_t{copy} * count % slots;
      args.state_from = args.state_to = slot_numbers.rows(begin, count);
      args.out = {out.rows(0, count), first(codes, count)};
      return args;
    };
    return call_with(gated_delta_net::plan, gated_delta_net::traffic, gated_delta_net::run, args_of,
                     where, memory);
  };
  return part;
}

}  // namespace

std::vector<OpMaker> op_makers(const qwen3_5::Config& config, const qwen3_5::Share& share,
                               const PlanContext& where, int most_rows) {
  const Places at{where, most_rows};
  std::vector<OpMaker> makers;
  const auto add = [&](const Product& product) {
    makers.push_back({product.name, [=](Stream& stream) {
                        return product.fp8 ? fp8_product(product, at, stream)
                                           : bf16_product(product, at, stream);
                      }});
  };
  const std::int64_t hidden = config.hidden;
  const std::int64_t keys = std::int64_t{share.k_heads} * config.key_dim;
  const std::int64_t values = std::int64_t{share.v_heads} * config.value_dim;
  const bool fp8 = config.quantized;
  const auto has = [&](qwen3_5::LayerKind kind) {
    return std::find(config.layers.begin(), config.layers.end(), kind) != config.layers.end();
  };
  if (has(qwen3_5::LayerKind::kDeltaNet)) {
    const std::int64_t qkvz = 2 * keys + 2 * values, ba = 2 * share.v_heads;
    add({.name = "delta net: q|k|v|z", .n = qkvz, .k = hidden, .fp8 = fp8});
    add({.name = "delta net: b|a", .n = ba, .k = hidden, .fp8 = false});
    if (fp8) add({.name = "delta net: both", .n = qkvz, .k = hidden, .beside = ba});
    makers.push_back({"delta net: conv to quantised out",
                      [=](Stream& stream) { return delta_net(share, at, stream); }});
    add({.name = "delta net: out", .n = hidden, .k = values, .fp8 = fp8});
  }
  if (has(qwen3_5::LayerKind::kAttention)) {
    const std::int64_t q = std::int64_t{share.q_heads} * config.head_dim;
    const std::int64_t kv = std::int64_t{share.kv_heads} * config.head_dim;
    add({.name = "attention: q|gate|k|v", .n = 2 * q + 2 * kv, .k = hidden, .fp8 = fp8});
    add({.name = "attention: out", .n = hidden, .k = q, .fp8 = fp8});
  }
  if (config.is_moe()) {
    add({.name = "experts: router, gate",
         .n = config.experts + 1,
         .k = hidden,
         .fp8 = false,
         .out = DType::kF32});
    makers.push_back(
        {"experts: choice", [=](Stream& stream) { return choice(config, share, at, stream); }});
    if (fp8)
      makers.push_back({"experts: up, down",
                        [=](Stream& stream) { return experts(config, share, at, stream); }});
  } else {
    const std::int64_t width = share.intermediate.count;
    add({.name = "mlp: gate|up", .n = 2 * width, .k = hidden, .fp8 = fp8});
    if (fp8)
      add({.name = "mlp: gate|up, activated", .n = 2 * width, .k = hidden, .activated = true});
    add({.name = "mlp: down", .n = hidden, .k = width, .fp8 = fp8});
  }
  add({.name = "head",
       .n = share.vocab_width,
       .k = hidden,
       .fp8 = false,
       .out = DType::kF32,
       .most_rows = kMostHeadRows});
  return makers;
}

}  // namespace tenon::apps
