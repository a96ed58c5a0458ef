// Series of calls by ranks as threads over one mailbox of a weak memory, each call compared with
// the oracle: what shows whether a rule of comm/device/exchange.cuh is broken. For tests that
// compile the kernels themselves, for weak_device.h or weak_wave_device.h.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tests/support/weak_memory.h"

namespace tenon::test {

// How a test launches what it has compiled.
struct WeakKernels {
  Target target = Target::kCpu;  // whose streams and buffers
  std::function<Status(std::string_view variant, int blocks,
                       const fused_allreduce_rmsnorm_quant::Args& args, const ChannelView& team,
                       Stream& stream)>
      fused;
  // Runs where a series names "all_reduce".
  std::function<Status(const ChannelView& team, const TensorView& in, const TensorView& out,
                       Stream& stream)>
      all_reduce;
};

struct WeakSeries {
  std::uint64_t deadline_ns = 1'000'000'000;  // short: what broken rules lose is waited for
  int team = 3, calls = 40;
  std::vector<std::string_view> variants = {"one_shot"};  // of a call: drawn
  Weakness weakness = Weakness::kShuffled;
  int min_rows = 1, max_rows = 19, hidden = 64, mailbox_rows = 8;  // hidden: or twice that
  int min_blocks = 1, max_blocks = 1;                              // of a kernel: drawn
  bool plain = true;                                               // no NaN among the inputs
  std::uint32_t lingers = 0;  // ranks rest after one of so many clears; 0: never
  std::uint32_t lags = 0;     // one of the first so many looks of some calls is late; 0: none
  std::uint32_t seed = 1;
};

// What the first rank that found something says, or nothing.
std::string run_series(const WeakSeries& series, const WeakKernels& kernels);
// The same with seeds 1, 2, …: the first that shows something.
std::string first_finding(WeakSeries series, int seeds, const WeakKernels& kernels);

}  // namespace tenon::test
