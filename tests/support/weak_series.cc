#include "tests/support/weak_series.h"
#include "tenon/reference/compare.h"
#include "tenon/reference/inputs.h"

#include <atomic>
#include <thread>

#include "tenon/core/fp8.h"
#include "tests/support/fused_run.h"
#include "tests/support/hand_made_team.h"

namespace tenon::test {
namespace {

constexpr std::string_view kAllReduce = "all_reduce";

float float_of(std::uint16_t bits) { return to_float(bf16{bits}); }

struct Prepared {
  FusedCase call;
  reference::BoundaryInputs inputs;
  reference::BoundaryOutputs expected;
  std::vector<std::uint16_t> sum;  // what all_reduce makes of the addends
};

// Calls of every kind of result, with the most rows and the fewest among them.
std::vector<Prepared> prepare(const WeakSeries& series) {
  std::vector<Prepared> calls(10);
  std::mt19937 random(series.seed);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    Prepared& each = calls[i];
    reference::BoundaryCase& shape = each.call.shape;
    const auto choices = static_cast<std::uint32_t>(series.max_rows - series.min_rows + 1);
    shape.team = series.team;
    shape.rows = series.min_rows + static_cast<int>(random() % choices);
    if (i == 0) shape.rows = series.min_rows;
    if (i == 1) shape.rows = series.max_rows;
    shape.hidden = i % 3 == 1 ? 2 * series.hidden : series.hidden;
    shape.group = shape.hidden % 128 == 0 && i % 4 != 3 ? 128 : 32;
    shape.want_bf16 = i % 3 != 0;
    shape.want_fp8 = !shape.want_bf16 || i % 5 != 4;
    shape.weight_dtype = i % 4 == 2 ? DType::kF32 : DType::kBF16;
    each.call.spread_residual = i % 5 == 2;
    each.inputs = reference::make_inputs(shape, i, series.plain);
    each.expected = reference::boundary(shape, each.inputs);
    each.sum.resize(each.inputs.addends[0].size());
    for (std::size_t k = 0; k < each.sum.size(); ++k) {
      float sum = float_of(each.inputs.addends[0][k]);
      for (std::size_t rank = 1; rank < each.inputs.addends.size(); ++rank)
        sum = sum + float_of(each.inputs.addends[rank][k]);
      each.sum[k] = to_bf16(sum).bits;
    }
  }
  return calls;
}

// One rank's part of a series.
struct Rank {
  const WeakSeries& series;
  const WeakKernels& kernels;
  const std::vector<Prepared>& prepared;
  const HandMadeTeam& team;
  int rank;

  std::string all_reduce(const Prepared& call, const BoundaryTensors& tensors,
                         Stream& stream) const {
    const reference::BoundaryCase& shape = call.call.shape;
    std::vector<std::uint16_t> out(call.sum.size());
    const Status ran = kernels.all_reduce(
        team.view(rank), tensors.addend,
        view(out.data(), DType::kBF16, Device{kernels.target, 0}, {shape.rows, shape.hidden}),
        stream);
    if (!ran) return ran.to_string();
    if (team.fault(rank).claimed != 0) return lost();
    return reference::difference16("sum", shape, call.sum, out);
  }

  std::string fused(std::string_view variant, int blocks, const Prepared& call,
                    const BoundaryTensors& tensors, Stream& stream) const {
    const Status ran =
        kernels.fused(variant, blocks, fused_args(call.call, tensors), team.view(rank), stream);
    if (!ran) return ran.to_string();
    if (team.fault(rank).claimed != 0) return lost();
    return compare_fused(call.call, tensors, call.expected, variant, rank, stream);
  }

  std::string lost() const {
    const FaultRecord& fault = team.fault(rank);
    return "a wait for rank " + std::to_string(fault.awaited_rank) + " failed, row " +
           std::to_string(fault.row);
  }

  std::string run(WeakMemory& memory, const std::atomic<bool>& stop) const {
    const Device device{kernels.target, 0};
    auto stream = Stream::create(device);
    TENON_CHECK(static_cast<bool>(stream));
    std::vector<BoundaryTensors> tensors;
    tensors.reserve(prepared.size());
    for (const Prepared& each : prepared)
      tensors.emplace_back(each.call.shape, each.inputs, rank, device, *stream);
    std::mt19937 shared(series.seed * 977), own(series.seed + 100u * static_cast<unsigned>(rank));
    for (int n = 0; n < series.calls && !stop; ++n) {
      const std::size_t i = shared() % prepared.size();
      const std::string_view variant = series.variants[shared() % series.variants.size()];
      const auto choices = static_cast<std::uint32_t>(series.max_blocks - series.min_blocks + 1);
      const int blocks = series.min_blocks + static_cast<int>(shared() % choices);
      tensors[i].reset(*stream);
      if (series.lags != 0 && own() % 4 == 0)
        memory.lag_once(std::chrono::microseconds(500 + own() % 3000), series.lags);
      const std::string wrong = variant == kAllReduce
                                    ? all_reduce(prepared[i], tensors[i], *stream)
                                    : fused(variant, blocks, prepared[i], tensors[i], *stream);
      if (!wrong.empty())
        return "call " + std::to_string(n) + ", " + std::string(variant) + " of " +
               std::to_string(prepared[i].call.shape.rows) + " rows: " + wrong;
    }
    return {};
  }
};

}  // namespace

std::string run_series(const WeakSeries& series, const WeakKernels& kernels) {
  const std::vector<Prepared> prepared = prepare(series);
  const HandMadeTeam team(series.team,
                          fused_allreduce_rmsnorm_quant::mailbox_bytes(
                              {series.mailbox_rows, 2 * series.hidden, series.team}),
                          series.deadline_ns, series.max_blocks);
  std::atomic<bool> stop = false;
  std::vector<std::string> found(static_cast<std::size_t>(series.team));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < series.team; ++rank)
    threads.emplace_back([&, rank] {
      WeakMemory memory(series.weakness, series.seed * 8 + static_cast<std::uint32_t>(rank));
      memory.linger(series.lingers);
      weak_memory = &memory;
      std::string& mine = found[static_cast<std::size_t>(rank)];
      mine = Rank{series, kernels, prepared, team, rank}.run(memory, stop);
      memory.show_all();
      weak_memory = nullptr;
      if (mine.empty()) return;
      if (stop.exchange(true)) return mine.clear();   // follows from what the first one did
      for (int peer = 0; peer < series.team; ++peer)  // nobody need wait for the deadline
        std::atomic_ref(*team.view(rank).abort_word[peer]).store(1u + static_cast<unsigned>(rank));
    });
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < series.team; ++rank) {
    const std::string& its = found[static_cast<std::size_t>(rank)];
    if (!its.empty()) return "rank " + std::to_string(rank) + ", " + its;
  }
  for (int rank = 0; rank < series.team; ++rank)
    if (!team.is_empty(rank)) return "rank " + std::to_string(rank) + " has words left";
  return {};
}

std::string first_finding(WeakSeries series, int seeds, const WeakKernels& kernels) {
  std::string found;
  for (int seed = 1; seed <= seeds && found.empty(); ++seed) {
    series.seed = static_cast<std::uint32_t>(seed);
    found = run_series(series, kernels);
  }
  return found;
}

}  // namespace tenon::test
