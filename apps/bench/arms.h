// The ways of running one boundary, and what one rank needs to run them: inputs, buffers, plans.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench/boundary.h"
#include "apps/bench/inputs.h"
#include "apps/bench/shapes.h"
#include "tenon/comm/communicator.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"

namespace tenon::apps {

inline constexpr int kGroup = 128;  // of the scales, which are fp32 and lie in rows

// What an arm launches.
enum class Chain {
  kVendor,      // the vendor library's all-reduce; residual + norm; quantise
  kSplit,       // the own all-reduce; residual + norm; quantise
  kTwoKernels,  // the own all-reduce; residual + norm + quantise
  kOneKernel,   // all of it
};

struct Arm {
  std::string name;
  Chain chain{};
  bool bf16 = false;    // 16-bit rows are an output, besides fp8
  std::string variant;  // of the one kernel; empty leaves the choice
};

// vendor, three-kernels, two-kernels-fp8, two-kernels, one-kernel-fp8, one-kernel; or those that
// --arms names; or, for a sweep over variants, every choice for either set of outputs.
Result<std::vector<Arm>> chosen_arms(const BoundaryBench& options);

// What the arms of a rank communicate through. Mailboxes serve all the shapes of a run.
struct Channels {
  Communicator* comm = nullptr;
  Communicator* vendor = nullptr;  // sums by the vendor's library; null where there is none
  Channel fused, sum;
};

// One rank's tensors and plans for one shape. As in a boundary, the one kernel is planned for the
// row bucket: up to the next power of two, or the next end of a choice. Calls go round `copies` of
// what a call reads and writes; a warm bench has one of each, but two residuals, as two boundaries
// of a layer alternate.
class Bench {
 public:
  // Allocates and copies. Plans are equal on all ranks, errors may not be.
  static Result<Bench> make(const BoundaryBench& options, Shape shape, bool cold,
                            const std::vector<Arm>& arms, const Channels& channels, Stream& stream);

  // Ok, or why an arm cannot run here. The same on all ranks.
  const Status& can_run(std::size_t arm) const { return able_[arm]; }
  // What a boundary with these outputs takes without a knob, of kBoundaryChoices (tuned.h): the
  // variant of its one kernel, or two kernels where no variant is taken.
  std::string_view default_choice(bool bf16) const;
  // The plan of an arm's deciding kernel.
  const Plan& plan(std::size_t arm) const;
  // Enqueues call number `call` of an arm.
  Status enqueue(std::size_t arm, int call);
  // Other addends. The first ones are Inputs::kCancelling.
  Status fill_addends(Inputs inputs);
  // Puts the residuals back to what they were at first.
  Status reset();
  // Evicts everything from the L2 cache. Does nothing for a warm bench.
  Status flush();
  // Runs an arm once, over poisoned outputs, and compares with the oracle, byte for byte. Where the
  // residual is sharded by owner, a rank looks at the rows that it owns. The first difference, or
  // nothing.
  Result<std::string> difference(std::size_t arm, const Oracle& oracle);

  int copies() const { return copies_; }
  // What an FP8 boundary costs at least, with 16-bit rows or without.
  Traffic traffic(bool bf16) const;

 private:
  enum Kind {
    kPartial,
    kResidual,
    kResidualIn,
    kWeight,
    kSum,
    kNormed,
    kCodes,
    kScales,
    kNumKinds
  };
  struct Ring {
    Buffer buffer;
    std::size_t stride = 0;
    int copies = 1;
  };
  struct Plans {
    Plan norm, quant, one;
  };

  std::size_t bytes_of(Kind kind) const;
  void* at(Kind kind, int call) const;
  TensorView rows_of(Kind kind, int call) const;
  NormedRows outputs(int call, bool bf16, bool fp8) const;
  fused_allreduce_rmsnorm_quant::Args fused_args(int call, bool bf16) const;
  // For plans, which look at no memory: the same with the rows of the row bucket.
  fused_allreduce_rmsnorm_quant::Args bucket_args(bool bf16) const;
  Status choose_copies(bool cold, int most);
  Status allocate(bool cold);
  Status fill(Kind kind, const std::vector<std::uint16_t>& values);
  Status fill_inputs();
  // What a boundary would plan for the row bucket.
  Result<Plan> plan_of_bucket(const PlanContext& where, bool bf16) const;
  Status plan_arm(const PlanContext& where, std::size_t arm);
  Status poison();
  Status fetch_rows(const std::vector<int>& rows, reference::BoundaryOutputs& found);

  Shape shape_{};
  DType dtype_{};
  bool spread_residual_ = false, cold_ = false;
  std::vector<Arm> arms_;
  Channels channels_;
  Stream* stream_ = nullptr;
  int copies_ = 1;
  std::array<Ring, kNumKinds> rings_;
  Buffer scratch_;  // as large as two caches
  std::vector<Plans> plans_;
  std::vector<Status> able_;
  int bucket_rows_ = 0;
};

}  // namespace tenon::apps
