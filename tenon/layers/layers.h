// What a decoder is made of, between two boundaries: Embedding, Linear, OutProjection, Attention,
// DeltaNet, Mixer, Mlp, Head. Small structs of views and plans, made at load for the largest step;
// run() only launches. Weights and norm rows are views that the model owns.
// Not here: norms and sums over ranks (boundary.h), checkpoints (models/).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/caches.h"
#include "tenon/layers/step.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tenon/ops/moe_combine/moe_combine.h"
#include "tenon/ops/moe_experts/moe_experts.h"
#include "tenon/ops/moe_route/moe_route.h"
#include "tenon/ops/registry.h"

namespace tenon {

// A weight [out, in], or [experts, out, in], of this rank: bf16, or e4m3 with its f32 scales per
// 128 × 128 block. No data when the rank has no share of it; the type is known all the same.
struct Matrix {
  TensorView weight;
  TensorView scale;  // f32 [ceil(out / 128), ceil(in / 128)], or with [experts, …]; fp8 only

  bool is_fp8() const { return weight.dtype == DType::kE4M3; }
  explicit operator bool() const { return weight.data != nullptr; }
};

// One plan per row bucket (1, 2, 4, 8, …, max). A plan serves every row count of its bucket. Plans
// may be empty where the caller has another way.
class RowPlans {
 public:
  // make_plan(rows) → Result<Plan>, called for the largest row count of each bucket.
  template <class MakePlan>
  static Result<RowPlans> make(std::int64_t max_rows, MakePlan make_plan) {
    RowPlans plans;
    for (std::int64_t rows = 1;; rows *= 2) {
      TENON_ASSIGN(Plan plan, make_plan(rows < max_rows ? rows : max_rows));
      plans.plans_.push_back(std::move(plan));
      if (rows >= max_rows) return plans;
    }
  }
  const Plan& at(std::int64_t rows) const;
  // Null where there is none, or an empty one.
  const Plan* find(std::int64_t rows) const {
    return plans_.empty() || at(rows).op == nullptr ? nullptr : &at(rows);
  }

 private:
  std::vector<Plan> plans_;
};

// Addresses for tensors whose memory is not there (yet): apart from each other and aligned as
// memory is, so that plans may look at them. Nobody may read or write there.
class Nowhere {
 public:
  void* next(std::size_t bytes);

 private:
  std::uintptr_t next_ = std::uintptr_t{1} << 40;
};

// Named memory of one step, allocated at load, zeroed, and shared by all layers, which use it in
// turn. Asking again for the same label and shape gives the same memory.
class Scratch {
 public:
  Scratch(Stream& stream, int max_rows)
      : stream_(&stream), device_(stream.device()), max_rows_(max_rows) {}
  // Only counts: the tensors are nowhere.
  Scratch(Device device, int max_rows) : device_(device), max_rows_(max_rows) {}

  Result<TensorView> tensor(std::string_view label, DType dtype,
                            std::initializer_list<std::int64_t> shape);
  Result<TensorView> rows(std::string_view label, DType dtype, std::int64_t columns) {
    return tensor(label, dtype, {max_rows_, columns});
  }
  Result<QuantView> codes(std::string_view label, std::int64_t rows, std::int64_t columns);

  // A view that plans may look at but nobody may read or write: caches do not exist at load.
  Result<TensorView> placeholder(DType dtype, std::initializer_list<std::int64_t> shape);

  // Fills a tensor of this scratch from host memory of its size, and waits until that is done.
  Status write(const TensorView& tensor, const void* from);

  int max_rows() const { return max_rows_; }
  std::int64_t bytes() const { return bytes_; }  // of all tensors so far
  std::vector<Buffer> take_buffers() { return std::move(buffers_); }

 private:
  Stream* stream_ = nullptr;
  Device device_;
  int max_rows_;
  std::int64_t bytes_ = 0;
  Nowhere nowhere_;
  std::map<std::string, TensorView> tensors_;
  std::vector<Buffer> buffers_;
};

// The first `rows` rows; the scales of fp8 rows lie where their layout puts them for that many
// rows.
QuantView first_rows(const QuantView& all, std::int64_t rows);
NormedRows first_rows(const NormedRows& all, std::int64_t rows);

// Which outputs of the boundary in front of it a layer reads.
struct NormedForms {
  bool bf16 = false, fp8 = false;
};

// What making a layer needs besides its weights.
struct LayerContext {
  Scratch& scratch;
  PlanContext where;
  NormedRows x;        // both forms of the normed rows, at the largest step
  TensorView partial;  // [max rows, hidden]: where mixers and mlps leave their addend
  int max_sequences = 1, max_blocks = 1;  // rows and columns of the largest block table
  int max_logits = 1;                     // rows
  int block_tokens = 64;
};

// Rows of a grouped product: sorted by expert.
struct Grouping {
  TensorView offsets;  // i32 [experts + 1]
  std::optional<TensorView>
      row_of;  // i32 [max rows]: the token of each row; absent: the row itself
};

// out = x · weightᵀ. Fp8 weights read the fp8 form of x, bf16 weights the bf16 form: nothing is
// converted on the way. Serves column-parallel projections, the router and the gates.
class Linear {
 public:
  // x and out as the largest step has them.
  static Result<Linear> make(const Matrix& matrix, const NormedRows& x, const TensorView& out,
                             const PlanContext& where, std::optional<Grouping> grouping = {});
  // Dense: as many rows in x as in out.
  Status run(const NormedRows& x, const TensorView& out, Stream& stream) const;

  // The product gate|up and its activation in one launch: into `activated` instead of `out`, both
  // as the largest step has them. Empty plans where the device has no such product.
  Result<RowPlans> plan_activated(const NormedRows& x, const TensorView& out,
                                  const QuantView& activated, const PlanContext& where) const;
  Status run_activated(const Plan& plan, const NormedRows& x, const TensorView& out,
                       const QuantView& activated, Stream& stream) const;

  // This product and another one of the same rows, of bf16, in one launch. Empty plans where the
  // device has no such launch, or this product is not of fp8.
  Result<RowPlans> plan_beside(const NormedRows& x, const TensorView& out, const Linear& other,
                               const TensorView& other_out, const PlanContext& where) const;
  Status run_beside(const Plan& plan, const NormedRows& x, const TensorView& out,
                    const Linear& other, const TensorView& other_out, Stream& stream) const;

  void add_to(NormedForms* forms) const;

 private:
  Matrix matrix_;
  std::optional<Grouping> grouping_;
  RowPlans plans_;  // by rows of out
};

// What ends a mixer or an mlp: an optional SiLU·mul, quantisation if the weight is fp8, and the
// row-parallel product. The activation is rounded and quantised once.
class OutProjection {
 public:
  static Result<OutProjection> make(std::string_view label, const Matrix& matrix,
                                    fp8_quant::Prologue prologue, const TensorView& in,
                                    const TensorView& out, LayerContext& context,
                                    std::optional<Grouping> grouping = {});
  Status run(const TensorView& in, const TensorView& out, Stream& stream) const;

  // The codes that the product reads, all of them, where it reads codes; whoever has filled their
  // first rows goes on with finish().
  const std::optional<QuantView>& codes() const { return activation_.fp8; }
  Status finish(const TensorView& out, Stream& stream) const;

 private:
  fp8_quant::Prologue prologue_ = fp8_quant::Prologue::kNone;
  const std::int32_t* row_limit_ = nullptr;  // device; grouped only
  NormedRows activation_;                    // scratch: what the product reads, if not `in` itself
  std::optional<RowPlans> activate_;
  Linear product_;
};

// Vocabulary-parallel lookup: rows of ids outside the slice are zero.
class Embedding {
 public:
  static Result<Embedding> make(const TensorView& table, std::int32_t vocab_begin,
                                LayerContext& context);
  Status run(const TensorView& ids, const PartialRows& out, Stream& stream) const;

 private:
  TensorView table_;
  std::int32_t vocab_begin_ = 0;
  RowPlans plans_;
};

// Vocabulary-parallel output head over bf16 rows. Every rank has `width` logits; those without a
// row of the table stay at −infinity.
class Head {
 public:
  static Result<Head> make(const TensorView& table, std::int32_t vocab_begin, std::int64_t width,
                           LayerContext& context);
  Result<LogitsShard> run(const NormedRows& x, const TensorView& logit_rows, Stream& stream) const;

 private:
  TensorView table_, logits_;  // logits_: f32 [max logits, width]
  std::int32_t vocab_begin_ = 0;
  RowPlans plans_;  // by rows of logits; none when the table is empty
};

// Attention: q, or q|gate, per head and k|v in one projection, head norms and rotary embedding on
// the way into the cache, attention with its sigmoid gate if it has one, output projection.
struct AttentionSpec {
  int q_heads = 0, kv_heads = 0, head_dim = 0;  // of this rank
  float eps = 1e-6f;                            // of the head norms
  float norm_offset = 1;                        // added to their weights
  bool gated = true;                            // each q head is followed by its gate
  Matrix qkv;  // [(gated ? 2 : 1) · q_heads · head_dim + 2 · kv_heads · head_dim, hidden]
  TensorView q_norm, k_norm;  // bf16 or f32 [head_dim], both of one type
  TensorView cos_sin;         // f32 [positions, rotary_dim]
  Matrix out;                 // [hidden, q_heads · head_dim]
};

// k and v, by blocks of tokens.
std::vector<CacheSpec> cache_specs(const AttentionSpec& spec, int block_tokens);

class Attention {
 public:
  static Result<Attention> make(const AttentionSpec& spec, LayerContext& context);
  // `caches`: its own, as cache_specs() lists them.
  Status run(const NormedRows& x, const StepView& step, CacheViews caches, const PartialRows& out,
             Stream& stream) const;
  NormedForms forms() const;

 private:
  AttentionSpec spec_;
  TensorView projected_, q_;  // scratch, as the next two
  NormedRows attended_;       // in the form that the output projection reads
  std::optional<TensorView> workspace_;
  Linear project_, finish_;
  RowPlans rope_, attend_prefill_, attend_decode_;
  std::optional<RowPlans> decode_whole_;  // rope and attention in one, where a variant does that
};

// Gated DeltaNet: q|k|v|z in one projection, b|a in another, the op, which quantises for a
// projection in fp8, output projection.
struct DeltaNetSpec {
  int k_heads = 0, v_heads = 0, head_dim = 128;  // of this rank
  float eps = 1e-6f;
  Matrix qkvz;                // [(2 · k_heads + 2 · v_heads) · head_dim, hidden]
  Matrix ba;                  // [2 · v_heads, hidden] bf16
  TensorView conv_weight;     // bf16 [conv_dim, 4]
  TensorView a_log, dt_bias;  // f32 [v_heads]
  TensorView norm;            // f32 [head_dim]
  Matrix out;                 // [hidden, v_heads · head_dim]
};

// The last inputs of the convolution and the state, by sequences.
std::vector<CacheSpec> cache_specs(const DeltaNetSpec& spec);

class DeltaNet {
 public:
  static Result<DeltaNet> make(const DeltaNetSpec& spec, LayerContext& context);
  Status run(const NormedRows& x, const StepView& step, CacheViews caches, const PartialRows& out,
             Stream& stream) const;
  NormedForms forms() const;

 private:
  DeltaNetSpec spec_;
  TensorView projected_, ba_, scratch_;  // scratch
  NormedRows mixed_;                     // scratch, in the form that the output projection reads
  Linear project_, project_ba_, finish_;
  RowPlans project_both_;  // in one launch; empty where they are made in two
  RowPlans mix_prefill_, mix_decode_;
};

// Either of the two, and the first of its caches among those of the model.
class Mixer {
 public:
  Mixer(Attention attention, std::size_t first_cache)
      : held_(std::move(attention)), first_cache_(first_cache) {}
  Mixer(DeltaNet delta_net, std::size_t first_cache)
      : held_(std::move(delta_net)), first_cache_(first_cache) {}
  // `caches`: all of the model.
  Status run(const NormedRows& x, const StepView& step, CacheViews caches, const PartialRows& out,
             Stream& stream) const;
  NormedForms forms() const;

 private:
  std::variant<Attention, DeltaNet> held_;
  std::size_t first_cache_;
};

// gate|up in one projection, SiLU·mul, down. The activation is made in the launch of the projection
// where fp8_gemm has that, and in one of its own else: the bits are the same.
struct DenseSpec {
  std::int64_t width = 0;  // intermediate features of this rank; 0: it has no share
  Matrix gate_up;          // [2 · width, hidden]: gate first
  Matrix down;             // [hidden, width]
};

class Dense {
 public:
  static Result<Dense> make(std::string_view label, const DenseSpec& spec, const TensorView& out,
                            LayerContext& context);
  Status run(const NormedRows& x, const TensorView& out, Stream& stream) const;
  NormedForms forms() const { return wants_; }

 private:
  std::int64_t width_ = 0;
  NormedForms wants_;   // the same on every rank, whether it has a share or not
  TensorView gate_up_;  // scratch
  Linear project_;
  RowPlans activate_;  // of the projection with its activation; empty where it is not to be had
  OutProjection finish_;
};

// Router, routed experts of this rank and the shared expert, summed locally into one addend.
struct ExpertsSpec {
  int experts = 0, top_k = 0;  // over all ranks
  int first_expert = 0, local_experts = 0;
  std::int64_t width = 0;  // intermediate features of each local expert
  Matrix router;           // [experts + 1, hidden] bf16; the last row is the shared expert's gate
  Matrix gate_up;          // [local experts, 2 · width, hidden]
  Matrix down;             // [local experts, hidden, width]
  DenseSpec shared;
};

class Experts {
 public:
  static Result<Experts> make(const ExpertsSpec& spec, LayerContext& context);
  Status run(const NormedRows& x, const PartialRows& out, Stream& stream) const;
  NormedForms forms() const;

 private:
  moe_route::Args route_args(std::int64_t tokens) const;
  moe_combine::Args combine_args(const PartialRows& out) const;
  // Few rows on some devices: what is between routing and the addend in one op, and for very few
  // the choice too. Same bits.
  Status plan_fused(LayerContext& context);
  moe_experts::Args fused_args(const QuantView& x, const PartialRows& out, bool chooses) const;

  ExpertsSpec spec_;
  // Scratch of the router; routed_by_ has a row's logits and behind them the shared expert's gate.
  TensorView routed_by_, logits_, shared_gate_, weights_, slot_, offsets_, token_of_;
  TensorView gate_up_, routed_, shared_rows_;  // scratch of the experts
  Linear router_, project_;
  OutProjection finish_;
  Dense shared_;
  RowPlans route_, combine_;
  RowPlans activate_;                              // by pairs
  std::int64_t fused_rows_ = 0, chosen_rows_ = 0;  // up to so many
  RowPlans fused_, chosen_;                        // chosen_: empty where it does not choose
  TensorView activation_;                          // scratch
};

// Either of the two.
class Mlp {
 public:
  explicit Mlp(Dense dense) : held_(std::move(dense)) {}
  explicit Mlp(Experts experts) : held_(std::move(experts)) {}
  Status run(const NormedRows& x, const PartialRows& out, Stream& stream) const;
  NormedForms forms() const;

 private:
  std::variant<Dense, Experts> held_;
};

}  // namespace tenon
