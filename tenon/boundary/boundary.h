// The boundary: the one object between a row-parallel product and the next column-parallel one. It
// sums PartialRows over the ranks, adds the residual, normalises and quantises, in one kernel where
// it can, in two or in the generic chain where it must, with the same bits in every case.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tenon/comm/agreement.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon {

enum class Stage : std::uint8_t {
  kOneKernel = 1,   // fused_allreduce_rmsnorm_quant
  kTwoKernels = 2,  // peer all-reduce, then rmsnorm + quant
  kGeneric = 3,     // the transport's all-reduce, then rmsnorm + quant
};
std::string_view name(Stage stage);

// Which stage boundaries take.
enum class StagePolicy : std::uint8_t {
  kFree = 0,  // the most fused one that is possible
  kOneKernel = 1,
  kTwoKernels = 2,  // this one and no other
  kGeneric = 3,
  kMixed = 4,  // of a model: its boundaries take the three in turn. No boundary by itself takes it
};
// What boundary number `site` of a model takes.
StagePolicy policy_of_site(StagePolicy of_model, std::size_t site);

// Stage 1's variants on a target, in order of preference: what force_variant may name. Empty where
// the target is not in this build.
std::span<const Variant> boundary_variants(Target target);

struct BoundarySpec {
  std::string site;  // "embedding", "mixer", "mlp", "final": for tables and messages
  int hidden = 0, max_rows = 0;
  DType dtype = DType::kBF16;         // bf16 or f16
  DType weight_dtype = DType::kBF16;  // that of rows, or f32
  float eps = 1e-6f;
  float offset = 1.0f;
  bool fresh_residual = false;
  bool want_bf16 = true, want_fp8 = true;
  DType fp8 = DType::kE4M3;  // e4m3fn or e4m3fnuz
  int group = 128;
  ScaleLayout layout = ScaleLayout::kRow;
  StagePolicy force_stage = StagePolicy::kFree;  // From --force-stage
  int max_stage = 1;                             // the most fused stage allowed. From --max-stage
  std::string force_variant;  // of stage 1: "one_shot", "two_shot"; empty leaves the choice
};

// Calls visit(name, field) for every field: all ranks must have all of them alike. It does not
// compile while a field of BoundarySpec is missing here.
template <class Spec, class Visit>
requires std::same_as<std::remove_const_t<Spec>, BoundarySpec>
void visit_equal_fields(Spec& spec, Visit&& visit) {
  auto& [site, hidden, max_rows, dtype, weight_dtype, eps, offset, fresh_residual, want_bf16,
         want_fp8, fp8, group, layout, force_stage, max_stage, force_variant] = spec;
  visit("site", site);
  visit("hidden", hidden);
  visit("max_rows", max_rows);
  visit("dtype", dtype);
  visit("weight_dtype", weight_dtype);
  visit("eps", eps);
  visit("offset", offset);
  visit("fresh_residual", fresh_residual);
  visit("want_bf16", want_bf16);
  visit("want_fp8", want_fp8);
  visit("fp8", fp8);
  visit("group", group);
  visit("layout", layout);
  visit("force_stage", force_stage);
  visit("max_stage", max_stage);
  visit("force_variant", force_variant);
}

// One row bucket of one boundary, for tables: how it would run, or did.
struct BoundaryUse {
  std::string site;
  int max_rows = 0;  // bucket: rows up to this
  Stage stage{};
  std::string variant;            // of the deciding kernel
  std::string reason;             // why not a more fused stage; empty when fully fused
  std::uint64_t count = 0;        // calls of run() so far; a replayed graph makes none
  int blocks = 0, threads = 0;    // of the deciding kernel: the fused one, or the norm
  std::size_t mailbox_bytes = 0;  // of the mailbox that this bucket's stage uses
};

// What the boundaries of one model share: the mailboxes they use in turn, the scratch rows of
// stages 2 and 3, and the row buckets. One per stream that communicates. Creation is collective:
// ranks that bring different specs all get the same error. Keeps its communicator alive.
class BoundaryChannel {
 public:
  struct Spec {
    int hidden = 0, max_rows = 0;
    DType dtype = DType::kBF16;
    std::string label = "boundary";  // in fault messages
    // The residual of a row is kept current on its owner only, where a bucket runs two_shot. Needs
    // the same stage and variant at every boundary of a bucket; make() refuses one that differs.
    // Off, two_shot spreads the residual too and stages may differ from site to site.
    bool sharded_residual = true;
  };
  // As for BoundarySpec.
  template <class AnySpec, class Visit>
  requires std::same_as<std::remove_const_t<AnySpec>, Spec>
  friend void visit_equal_fields(AnySpec& spec, Visit&& visit) {
    auto& [hidden, max_rows, dtype, label, sharded_residual] = spec;
    visit("hidden", hidden);
    visit("max_rows", max_rows);
    visit("dtype", dtype);
    visit("label", label);
    visit("sharded_residual", sharded_residual);
  }
  static Result<std::shared_ptr<BoundaryChannel>> make(const Spec& spec, Communicator& comm);
  // The memory that make() would take on this rank's device. Not collective.
  static Result<std::int64_t> count_bytes(const Spec& spec, const Communicator& comm);
  std::int64_t bytes() const;  // of the device's memory that it holds
  ~BoundaryChannel();
  BoundaryChannel(const BoundaryChannel&) = delete;
  BoundaryChannel& operator=(const BoundaryChannel&) = delete;

 private:
  friend class Boundary;
  struct State;
  explicit BoundaryChannel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class Boundary {
 public:
  // Collective: the ranks agree on the whole spec and then, bucket by bucket, on stage, variant and
  // launch shape. A difference is the same error on all of them, and the communicator works on.
  static Result<Boundary> make(const BoundarySpec& spec, std::shared_ptr<BoundaryChannel> channel);
  Boundary(Boundary&&) noexcept;
  Boundary& operator=(Boundary&&) noexcept;
  ~Boundary();

  // partial [rows, hidden], contiguous; residual [rows, hidden], read and overwritten; weight
  // [hidden]; out holds what the spec forms. Tensors that do not fit are refused before anything is
  // launched: shape, type, last stride 1, rows that start at multiples of 16 bytes, the device of
  // the communicator, scales of exactly the layout's padded shape, and what is written must overlap
  // nothing else. So is a stream of another device. Looking takes a tenth of a microsecond,
  // allocates nothing and is what run() of the ops does. Collective: every rank with the same rows.
  // Rows 0 does nothing. Launches only; a fault shows up in Communicator::health(). With a sharded
  // residual, two_shot leaves the residual of a row current on its owner only; every boundary of
  // the same rows keeps the same owners, so nobody ever reads a stale row.
  //
  // On CUDA a kernel of ours lets the next one of its stream start at once. A kernel of yours that
  // is launched so (programmatic stream serialization) behind one of ours must call
  // cudaGridDependencySynchronize in every thread before it reads or writes anything that kernels
  // in front of it use. Between two of ours it must call it in any case, because ours behind it
  // waits for yours alone; in front of ours it need do no more. TENON_EARLY=0 turns early launch
  // off.
  Status run(const PartialRows& partial, const TensorView& residual, const TensorView& weight,
             const NormedRows& out, Stream& stream);

  const BoundarySpec& spec() const;
  Stage stage(int rows) const;
  std::string_view variant(int rows) const;
  std::string_view why(int rows) const;
  std::vector<BoundaryUse> uses() const;  // one per bucket

 private:
  struct State;
  explicit Boundary(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tenon
