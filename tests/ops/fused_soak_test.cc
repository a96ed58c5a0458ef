// The centre piece for very many calls: random cases, strategies, mailboxes and delays, eager and
// in replayed graphs. Every byte that a call must write is compared on the device, and the host
// looks only now and then. SOAK_CALLS is how many calls GPUs do, SOAK_SEED what everything is drawn
// from, SOAK_RANKS the size of the only world (otherwise there are several), SOAK_TEAMS how many
// teams of that size run at once on the same devices, each with a communicator of its own, and
// SOAK_REPLAYED how many per cent of the steps are replayed graphs, which take less of the host.
#include "tests/ops/fused_soak_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>

#include "tenon/comm/plan_context.h"
#include "tenon/core/clock.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/reference/boundary.h"
#include "tenon/reference/inputs.h"
#include "tests/support/chaos.h"
#include "tests/support/device_image.h"
#include "tests/support/fused_run.h"
#include "tests/support/meeting_place.h"
#include "tests/support/ranks.h"
#include "tests/support/sizes.h"

#define TENON_TEST_SPACE fused_soak_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using test::Image;
using test::meet;
using test::MeetingPlace;
using test::RankOptions;
using test::run_ranks;

namespace fused = fused_allreduce_rmsnorm_quant;
using namespace fused_soak_test;
using Clock = std::chrono::steady_clock;

long number_from_env(const char* variable, long otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atol(text);
}

// How large a soak is on a target.
struct Extent {
  int max_rows, least_hidden;  // and twice and four times that
  std::uint32_t delay_us;      // the most, of most delays
  int num_graphs;
};
Extent extent_of(Target target) {
  if (!is_host(target)) return {599, 1024, 50, 8};
  return target == Target::kCpu ? Extent{33, 256, 20, 6} : Extent{5, 256, 5, 2};
}

// --- cases --------------------------------------------------------------------------------------

struct SoakCase {
  reference::BoundaryCase shape;
  bool spread_residual = false;
  int gap = 0;  // elements between rows
  reference::BoundaryInputs inputs;
  reference::BoundaryOutputs expected;
};

SoakCase nth_case(int i, int team, int rows, int least_hidden) {
  constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                      ScaleLayout::kUe8m0Packed};
  SoakCase made;
  reference::BoundaryCase& shape = made.shape;
  shape.team = team;
  shape.rows = rows;
  const int widths = rows > 100 ? 1 : rows > 32 ? 2 : 3;  // long ones are narrow
  shape.hidden = least_hidden << (i + i / 3) % widths;
  shape.dtype = i % 6 == 4 ? DType::kF16 : DType::kBF16;
  shape.weight_dtype = i % 4 == 2 ? DType::kF32 : shape.dtype;
  shape.offset = i % 5 == 1 ? 0.0f : 1.0f;
  shape.fresh_residual = i % 7 == 3;
  shape.want_bf16 = i % 3 != 1;
  shape.want_fp8 = i % 3 != 2;
  shape.fp8 = i % 8 == 1 ? DType::kE4M3Fnuz : DType::kE4M3;
  shape.group = 128 >> i / 2 % 3;
  shape.layout = kLayouts[i / 3 % 3];
  made.spread_residual = i % 5 == 2;
  made.gap = i % 4 == 3 ? 16 : 0;
  return made;
}

// From short to long. The first has both outputs.
std::vector<SoakCase> make_cases(const Extent& extent, int team) {
  std::vector<SoakCase> cases;
  for (int rows : {1, 1, 1,  1,  2,  2,  3,  3,  4,  4,   5,   6,   7,
                   8, 9, 16, 17, 24, 31, 33, 64, 65, 100, 129, 257, 599})
    if (rows <= extent.max_rows)
      cases.push_back(nth_case(static_cast<int>(cases.size()), team, rows, extent.least_hidden));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < cases.size(); ++i)
    threads.emplace_back([&each = cases[i], i] {
      each.inputs = reference::make_inputs(each.shape, i, true);
      each.expected = reference::boundary(each.shape, each.inputs);
    });
  for (std::thread& thread : threads) thread.join();
  return cases;
}

// --- what is drawn ------------------------------------------------------------------------------

// By number: odd ones are two_shot. A case that cannot take one of those from 2 on takes the first
// or the second.
constexpr const char* kVariants[] = {"one_shot", "two_shot", "one_shot_packed", "two_shot_packed",
                                     "one_shot_split"};
constexpr int kNumVariants = 5;
constexpr const char* kTensorNames[] = {"residual", "norm", "codes", "scales"};
constexpr int kNumChannels = 4, kLoneChannel = 3;  // the last carries calls of one case only
constexpr std::uint16_t kLoneCase = 4;

// Calls that follow each other with nothing in between, each of another case.
struct Batch {
  int channel = 0, num_picks = 0;
  std::uint16_t picks[kMaxPicks] = {};
  int variants[kMaxPicks] = {};
};

std::uint32_t below(test::Random& random, std::size_t end) {
  return static_cast<std::uint32_t>((random.next() >> 16) % end);
}

Batch draw(test::Random& random, std::size_t num_cases) {
  Batch batch;
  const bool lone = below(random, 8) == 0;
  batch.channel = lone ? kLoneChannel : static_cast<int>(below(random, kLoneChannel));
  const int wanted = lone ? 1 : 1 + static_cast<int>(below(random, kMaxPicks));
  while (batch.num_picks < wanted) {
    const std::uint32_t one = below(random, num_cases), other = below(random, num_cases);
    const auto pick = lone ? kLoneCase : static_cast<std::uint16_t>(std::min(one, other));
    if (std::find(batch.picks, batch.picks + batch.num_picks, pick) !=
        batch.picks + batch.num_picks)
      continue;
    batch.picks[batch.num_picks] = pick;
    batch.variants[batch.num_picks++] = static_cast<int>(below(random, kNumVariants));
  }
  return batch;
}

// --- one rank's memory --------------------------------------------------------------------------

// Where a case lies in the image of a rank.
struct Places {
  Image::Rows addend, weight, source, foreign, found[kNumTensors], expected[kNumTensors];
};

Places place(const SoakCase& each, int rank, Image& image) {
  const reference::BoundaryCase& shape = each.shape;
  const auto hidden = static_cast<std::size_t>(shape.hidden);
  const auto gap = static_cast<std::size_t>(each.gap);
  const auto put16 = [&](const std::vector<std::uint16_t>* rows) {
    return image.put(rows == nullptr ? nullptr : rows->data(), shape.rows, 2 * hidden, 2 * gap);
  };
  Places at;
  at.addend = put16(&each.inputs.addends[static_cast<std::size_t>(rank)]);
  if (shape.weight_dtype == DType::kF32) {
    at.weight = image.put(each.inputs.weight);
  } else {
    at.weight =
        image.put(std::vector<std::uint16_t>(each.inputs.weight.begin(), each.inputs.weight.end()));
  }
  if (!shape.fresh_residual) at.source = put16(&each.inputs.residual);
  std::vector<std::uint8_t> foreign(static_cast<std::size_t>(shape.rows) + 1);
  for (int row = 0; row < shape.rows; ++row) {
    const int owner = fused::residual_owner("two_shot", row, shape.rows, shape.team);
    foreign[static_cast<std::size_t>(row)] = owner >= 0 && owner != rank;
  }
  at.foreign = image.put(foreign);
  at.found[kResidual] = put16(nullptr);
  at.expected[kResidual] = put16(&each.expected.residual);
  if (shape.want_bf16) {
    at.found[kNorm] = put16(nullptr);
    at.expected[kNorm] = put16(&each.expected.norm);
  }
  if (shape.want_fp8) {
    at.found[kCodes] = image.put(nullptr, shape.rows, hidden, gap);
    at.expected[kCodes] = image.put(each.expected.codes.data(), shape.rows, hidden, gap);
    at.found[kScales] = image.put(nullptr, 1, each.expected.scales.size());
    at.expected[kScales] = image.put(each.expected.scales);
  }
  return at;
}

fused::Args args_of(const SoakCase& each, const Places& at, const Image& image, Device device) {
  const reference::BoundaryCase& shape = each.shape;
  const auto rows_at = [&](const Image::Rows& rows, DType dtype) {
    TensorView made = view(image.address(rows.at), dtype, device, {shape.rows, shape.hidden});
    made.stride[0] = rows.stride / static_cast<std::int64_t>(size_of(dtype));
    return made;
  };
  fused::Args args;
  args.partial.addend = rows_at(at.addend, shape.dtype);
  args.residual = rows_at(at.found[kResidual], shape.dtype);
  args.weight = view(image.address(at.weight.at), shape.weight_dtype, device, {shape.hidden});
  args.eps = shape.eps;
  args.offset = shape.offset;
  args.fresh_residual = shape.fresh_residual;
  args.spread_residual = each.spread_residual;
  if (shape.want_bf16) args.out.bf16 = rows_at(at.found[kNorm], shape.dtype);
  if (!shape.want_fp8) return args;
  const auto extents = scale_shape(shape.layout, shape.rows, shape.hidden, shape.group);
  QuantView fp8;
  fp8.data = rows_at(at.found[kCodes], shape.fp8);
  fp8.scale = view(image.address(at.found[kScales].at), scale_dtype(shape.layout), device,
                   {extents[0], extents[1]});
  fp8.group = shape.group;
  fp8.layout = shape.layout;
  args.out.fp8 = fp8;
  return args;
}

// A plan of the variant, where need be that of fewer rows: a limit is about speed.
Result<Plan> plan_for(const fused::Args& args, const PlanContext& where, std::string_view variant) {
  auto plan = fused::plan(args, where, variant);
  fused::Args fewer = args;
  for (std::int64_t rows = args.residual.shape[0] / 2; !plan && rows > 0; rows /= 2) {
    fewer.partial.addend = args.partial.addend.rows(0, rows);
    fewer.residual = args.residual.rows(0, rows);
    fewer.out = {.bf16 = fewer.residual, .fp8 = {}};  // no part of a launch shape
    plan = fused::plan(fewer, where, variant);
  }
  return plan;
}

// --- one rank -----------------------------------------------------------------------------------

class Soaker {
 public:
  Soaker(const std::vector<SoakCase>& cases, Communicator& comm, std::uint64_t seed)
      : cases_(cases),
        comm_(comm),
        target_(comm.device().target),
        extent_(extent_of(target_)),
        own_(seed * 64 + static_cast<std::uint64_t>(comm.rank()) + 1) {}

  // Everything that allocates. Collective.
  Status prepare() {
    TENON_ASSIGN(stream_, made(Stream::create(comm_.device())));
    for (auto& event : events_) {
      TENON_ASSIGN(event, made(Event::create(comm_.device())));
    }
    for (const SoakCase& each : cases_) places_.push_back(place(each, comm_.rank(), image_));
    State state{};
    state.seed = static_cast<std::uint32_t>(own_.next());
    state_at_ = image_.put(&state, 1, sizeof(state)).at;
    regions_at_ = image_.put(nullptr, 1, sizeof(Region) * kNumTensors * cases_.size()).at;
    TENON_TRY(image_.upload(comm_.device(), *stream_));
    TENON_TRY(upload_regions());
    TENON_TRY(make_plans());
    return make_mailboxes();
  }

  // Calls one after the other, with all that stands before and behind them.
  Status enqueue(const Batch& batch) {
    const BatchArgs args = batch_args(batch);
    const LaunchShape shape = shape_of(batch.num_picks * kNumTensors * args.slices);
    const fused_soak_test::Kernels& kernels = fused_soak_test::kernels(target_);
    TENON_TRY(launch(*stream_, shape, kernels.prepare, args));
    for (int n = 0; n < batch.num_picks; ++n) {
      if (below(own_, 16) == 0) TENON_TRY(delay(extent_.delay_us));
      const std::size_t i = batch.picks[n];
      TENON_TRY(fused::run(plans_[i][batch.variants[n]], args_[i], mailboxes_[batch.channel].view(),
                           *stream_));
    }
    if (spoiled_ != nullptr)
      TENON_TRY(launch(*stream_, shape_of(1), kernels.spoil, {std::exchange(spoiled_, nullptr)}));
    num_enqueued_ += batch.num_picks + 2;
    return launch(*stream_, shape, kernels.check, args);
  }

  // Batches as one graph; its number is how many there were before.
  Status capture(const std::vector<Batch>& batches) {
    TENON_TRY(Graph::begin(*stream_));
    for (const Batch& each : batches) TENON_TRY(enqueue(each));
    TENON_ASSIGN(Graph graph, Graph::end(*stream_));
    graphs_.push_back(std::move(graph));
    return Status::ok();
  }
  Status replay(std::size_t graph) {
    num_enqueued_ += 24;
    return graphs_[graph].replay(*stream_);
  }

  // A kernel that lasts up to so long.
  Status delay(std::uint32_t most_us) {
    ++num_enqueued_;
    return launch(*stream_, shape_of(1), fused_soak_test::kernels(target_).delay,
                  {state(), most_us * 1000});
  }

  // Now and then the host is late, and always it stops before the stream's queue is full: a rank
  // that waits there might keep the others of its device from launching.
  Status keep_pace() {
    const std::uint32_t nap = below(own_, 4096);  // one in many outlasts what is enqueued
    if (nap < 8)
      std::this_thread::sleep_for(std::chrono::microseconds(below(own_, nap == 0 ? 4000 : 500)));
    if (num_enqueued_ < 150) return Status::ok();
    num_enqueued_ = 0;
    Event& event = *events_[turn_++ % 2];
    for (;;) {
      TENON_ASSIGN(const bool happened, event.has_happened());
      if (happened) break;
      std::this_thread::sleep_for(std::chrono::microseconds(10));
    }
    return event.record(*stream_);
  }

  // Waits for all that was enqueued, and tells what the checks have found.
  Result<Report> look() {
    Report report{};
    TENON_TRY(stream_->synchronize());
    TENON_TRY(stream_->copy(&report, &state()->report, sizeof(report)));
    TENON_TRY(stream_->synchronize());
    return report;
  }
  Status clear_report() {
    TENON_TRY(stream_->fill(&state()->report, 0, sizeof(Report)));
    return stream_->synchronize();
  }

  // The next batch finds this byte changed after its calls.
  void spoil(std::size_t index, Tensor tensor, std::size_t offset) {
    spoiled_ = image_.address(places_[index].found[tensor].at + offset);
  }

 private:
  template <class T>
  static Result<std::optional<T>> made(Result<T> result) {
    if (!result) return result.status();
    return std::optional<T>(*std::move(result));
  }

  State* state() const { return reinterpret_cast<State*>(image_.address(state_at_)); }

  Status upload_regions() {
    std::vector<Region> regions;
    for (const Places& at : places_)
      for (int tensor = 0; tensor < kNumTensors; ++tensor) {
        Region region{};
        region.found = image_.address(at.found[tensor].at);
        region.expected = image_.address(at.expected[tensor].at);
        region.vectors = at.expected[tensor].vectors;
        region.stride = at.expected[tensor].stride;
        if (tensor == kResidual) {
          if (at.source.vectors != 0) region.source = image_.address(at.source.at);
          region.is_foreign = reinterpret_cast<const std::uint8_t*>(image_.address(at.foreign.at));
        }
        regions.push_back(region);
      }
    TENON_TRY(stream_->copy(image_.address(regions_at_), regions.data(),
                            sizeof(Region) * regions.size()));
    TENON_TRY(stream_->synchronize());
    image_.forget_host();
    return Status::ok();
  }

  Status make_plans() {
    TENON_ASSIGN(const PlanContext where, plan_context(comm_));
    plans_.resize(cases_.size());
    for (std::size_t i = 0; i < cases_.size(); ++i) {
      args_.push_back(args_of(cases_[i], places_[i], image_, comm_.device()));
      const auto able = test::variants_of(cases_[i].shape, target_, comm_.max_blocks());
      for (int n = 0; n < kNumVariants; ++n) {
        const bool can = std::find(able.begin(), able.end(), kVariants[n]) != able.end();
        TENON_ASSIGN(plans_[i][n], plan_for(args_[i], where, kVariants[can ? n : n % 2]));
      }
    }
    return Status::ok();
  }

  // One for everything at once, two in which long calls take several rounds, and a lone one.
  Status make_mailboxes() {
    const int widest = 4 * extent_.least_hidden, team = comm_.size();
    std::size_t all = 0;
    for (const SoakCase& each : cases_)
      all = std::max(all, fused::mailbox_bytes({each.shape.rows, each.shape.hidden, team}));
    const std::size_t bytes[kNumChannels] = {all, fused::mailbox_bytes({4, widest, team}),
                                             fused::mailbox_bytes({20, widest, team}),
                                             fused::mailbox_bytes({1, widest, team})};
    for (int n = 0; n < kNumChannels; ++n) {
      TENON_ASSIGN(mailboxes_[n], comm_.make_channel(bytes[n], "soak " + std::to_string(n)));
    }
    return Status::ok();
  }

  LaunchShape shape_of(int blocks) const {
    LaunchShape shape;
    shape.blocks = blocks;
    shape.threads = is_host(target_) ? test::wave_of(target_) : 256;
    return shape;
  }

  BatchArgs batch_args(const Batch& batch) const {
    BatchArgs args{};
    args.regions = reinterpret_cast<const Region*>(image_.address(regions_at_));
    args.state = state();
    args.delay_ns = extent_.delay_us * 1000;
    args.num_picks = batch.num_picks;
    int most_vectors = 0;
    for (int n = 0; n < batch.num_picks; ++n) {
      const std::size_t i = batch.picks[n];
      args.picks[n] = batch.picks[n];
      args.sharded[n] = batch.variants[n] % 2 == 1 && !cases_[i].spread_residual;
      most_vectors = std::max(most_vectors, places_[i].expected[kResidual].vectors);
    }
    args.slices = is_host(target_) ? 1 : std::min(1 + most_vectors / 1024, 32);
    return args;
  }

  const std::vector<SoakCase>& cases_;
  Communicator& comm_;
  const Target target_;
  const Extent extent_;
  test::Random own_;
  std::optional<Stream> stream_;
  std::optional<Event> events_[2];
  Image image_{kPoison};
  std::vector<Places> places_;
  std::size_t state_at_ = 0, regions_at_ = 0;
  std::vector<fused::Args> args_;
  std::vector<std::array<Plan, kNumVariants>> plans_;
  Channel mailboxes_[kNumChannels];
  std::vector<Graph> graphs_;
  int num_enqueued_ = 0, turn_ = 0;  // kernels since the last event
  std::byte* spoiled_ = nullptr;
};

// --- the soak -----------------------------------------------------------------------------------

std::string describe(const Report& report, const std::vector<SoakCase>& cases) {
  char text[160];
  std::snprintf(text, sizeof text,
                "%u bytes differ; the first in call %u, case %u, %s, byte %u: ", report.mismatches,
                report.call, report.index, kTensorNames[report.tensor], report.offset);
  return text + std::to_string(report.found) + " instead of " + std::to_string(report.expected) +
         "; " + reference::describe(cases[report.index].shape);
}

// What all ranks of one soak count together.
struct Totals {
  std::atomic<long> calls = 0, replayed = 0;  // of rank 0
  std::atomic<long> mismatches = 0;           // of all
};

class Soak {
 public:
  Soak(const std::vector<SoakCase>& cases, Communicator& comm, std::uint64_t seed, Totals& totals,
       MeetingPlace& everybody)
      : cases_(cases),
        comm_(comm),
        totals_(totals),
        everybody_(everybody),
        shared_(seed),
        soaker_(cases, comm, seed) {}

  Status run(long wanted) {
    TENON_TRY(soaker_.prepare());
    TENON_TRY(capture_graphs());
    everybody_.wait();
    for (long next_look = 2000; calls_ < wanted;) {
      TENON_TRY(step());
      TENON_TRY(soaker_.keep_pace());
      if (calls_ < next_look) continue;
      TENON_TRY(look());
      next_look = calls_ + 2000;
    }
    return look();
  }

 private:
  // Each graph runs once while nobody waits: its first launch may allocate.
  Status capture_graphs() {
    const int wanted = extent_of(comm_.device().target).num_graphs;
    for (int n = 0; n < wanted; ++n) {
      std::vector<Batch> batches;
      int calls = 0;
      for (int left = 2 + n % 3; left > 0; --left) {
        batches.push_back(draw(shared_, cases_.size()));
        calls += batches.back().num_picks;
      }
      TENON_TRY(soaker_.capture(batches));
      graph_calls_.push_back(calls);
    }
    return everybody_.in_turn([&]() -> Status {
      for (int n = 0; n < wanted; ++n) {
        TENON_TRY(comm_.agree(Status::ok(), "soak"));
        TENON_TRY(replay(static_cast<std::size_t>(n)));
        TENON_TRY(look());
      }
      return Status::ok();
    });
  }

  Status replay(std::size_t n) {
    calls_ += graph_calls_[n];
    replayed_ += graph_calls_[n];
    return soaker_.replay(n);
  }

  // Drawn alike by every rank: who is late, and what comes next.
  Status step() {
    const std::uint32_t late = below(shared_, 64 * static_cast<std::size_t>(comm_.size()));
    if (static_cast<int>(late) == comm_.rank())
      TENON_TRY(soaker_.delay(4 * extent_of(comm_.device().target).delay_us));
    if (below(shared_, 100) < replayed_per_cent_)
      return replay(below(shared_, graph_calls_.size()));
    const Batch batch = draw(shared_, cases_.size());
    calls_ += batch.num_picks;
    return soaker_.enqueue(batch);
  }

  // The ranks go on together, or end together.
  Status look() {
    const auto report = soaker_.look();
    Status mine = report ? comm_.health() : report.status();
    if (report && report->mismatches != 0) {
      totals_.mismatches += report->mismatches;
      mine = Status::error(Code::kInternal, describe(*report, cases_));
    }
    if (comm_.rank() == 0) {
      totals_.calls += calls_ - std::exchange(told_calls_, calls_);
      totals_.replayed += replayed_ - std::exchange(told_replayed_, replayed_);
    }
    return comm_.agree(mine, "soak");
  }

  const std::vector<SoakCase>& cases_;
  Communicator& comm_;
  Totals& totals_;
  MeetingPlace& everybody_;
  test::Random shared_;
  Soaker soaker_;
  std::vector<int> graph_calls_;
  const std::uint32_t replayed_per_cent_ =
      static_cast<std::uint32_t>(number_from_env("SOAK_REPLAYED", 33));
  long calls_ = 0, replayed_ = 0, told_calls_ = 0, told_replayed_ = 0;
};

void soak(Target target, int team, long calls, int num_teams = 1) {
  const auto seed = static_cast<std::uint64_t>(number_from_env("SOAK_SEED", 1));
  const std::vector<SoakCase> cases = make_cases(extent_of(target), team);
  RankOptions options;
  options.target = target;
  options.concurrent_channels = num_teams;
  Totals totals;
  std::barrier<> all(std::ptrdiff_t{team} * num_teams);
  const auto begin = Clock::now();
  std::vector<std::thread> teams;
  for (int n = 0; n < num_teams; ++n)
    teams.emplace_back([&, n] {
      std::atomic<int> met = 0;
      run_ranks(team, options, [&](int, Communicator& comm) {
        ++met;
        set_cpu_threads(1);
        MeetingPlace everybody(all, n, num_teams);
        Soak soak(cases, comm, seed + static_cast<std::uint64_t>(n) * 1'000'003, totals, everybody);
        const Status ran = soak.run((calls + num_teams - 1) / num_teams);
        EXPECT_TRUE(ran) << ran.to_string();
        std::ignore = comm.agree(Status::ok(), "end of the soak");
        everybody.wait();  // nobody frees before
      });
      for (int rank = met; rank < team; ++rank) all.arrive_and_drop();  // has no communicator
    });
  for (std::thread& each : teams) each.join();
  const double seconds = seconds_since(begin);
  std::printf(
      "soak: %s, %d teams of %d ranks, %ld calls (%ld replayed), %ld mismatches, %.1f s, seed "
      "%llu\n",
      std::string(name(target)).c_str(), num_teams, team, totals.calls.load(),
      totals.replayed.load(), totals.mismatches.load(), seconds,
      static_cast<unsigned long long>(seed));
  EXPECT_GE(totals.calls, calls);
  EXPECT_EQ(totals.mismatches, 0);
}

// Each world's part of so many calls: half of them with two ranks.
void soak_worlds(Target target, long calls) {
  soak(target, 2, calls - calls * 3 / 10 - calls / 5);
  soak(target, 4, calls * 3 / 10);
  soak(target, 8, calls / 5);
}

TEST(FusedSoak, Gpus) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const long calls = number_from_env("SOAK_CALLS", test::size(10'000, 200));
  const int ranks = static_cast<int>(number_from_env("SOAK_RANKS", 0));
  const int teams = static_cast<int>(number_from_env("SOAK_TEAMS", 1));
  for (Target target : test::device_targets()) {
    if (ranks > 0) {
      soak(target, ranks, calls, teams);
    } else {
      soak_worlds(target, calls);
    }
  }
}

// Teams that share their devices, and one of threads of the cpu: a call of one waits for no other.
TEST(FusedSoak, TeamsAtOnce) {
  for (Target target : test::usable_targets()) {
    if (is_host(target) && target != Target::kCpu) continue;
    soak(target, 2, test::size(1'000, 100), 2);
    soak(target, 4, test::size(500, 100), 2);
  }
}

TEST(FusedSoak, Cpu) {
  for (Target target : test::host_targets())
    if (target == Target::kCpu)
      soak_worlds(target, std::getenv("TEST_FULL") != nullptr ? 200'000 : test::size(10'000, 200));
}

TEST(FusedSoak, EmulatedWaves) {
  for (Target target : test::host_targets())
    if (target != Target::kCpu)
      for (int team : {2, 3}) soak(target, team, 200);
}

// One byte that is wrong, of each tensor or behind it, is found, counted once and named.
void notice(Soaker& soaker, Communicator& comm, const SoakCase& first) {
  struct Spoil {
    Tensor tensor;
    std::size_t offset;
    int mismatches;  // with two_shot
  };
  const auto hidden = static_cast<std::size_t>(first.shape.hidden);
  const auto row = 2 * (hidden + static_cast<std::size_t>(first.gap));
  Batch batch;  // of case 0, in the middle of others
  batch.num_picks = 3;
  batch.picks[0] = 1;
  batch.picks[2] = 2;
  std::uint32_t calls = 0;
  for (const Spoil& each :
       {Spoil{kResidual, 0, 0}, Spoil{kResidual, row + 7, 1}, Spoil{kNorm, 2 * hidden - 1, 1},
        Spoil{kCodes, 5, 1}, Spoil{kScales, first.expected.scales.size() - 1, 1},
        Spoil{kScales, first.expected.scales.size() + 15, 1}})
    for (int variant : {0, 1}) {
      batch.variants[1] = variant;
      if (comm.rank() == 1) soaker.spoil(0, each.tensor, each.offset);
      ASSERT_TRUE(soaker.enqueue(batch));
      calls += 3;
      const auto report = soaker.look();
      ASSERT_TRUE(report);
      const bool found = comm.rank() == 1 && (variant == 0 || each.mismatches != 0);
      EXPECT_EQ(report->mismatches, found ? 1u : 0u) << each.tensor << " " << each.offset;
      if (found) {
        EXPECT_EQ(report->call, calls - 2);
        EXPECT_EQ(report->index, 0u);
        EXPECT_EQ(report->tensor, static_cast<std::uint32_t>(each.tensor));
        EXPECT_EQ(report->offset, each.offset);
        EXPECT_EQ(report->found, report->expected ^ 1u);
      }
      meet(comm);
      ASSERT_TRUE(soaker.clear_report());
      meet(comm);
    }
}

TEST(FusedSoak, TheCheckNoticesOneByte) {
  for (Target target : test::usable_targets()) {
    std::vector<SoakCase> cases;
    for (int i : {0, 1, 2}) {
      cases.push_back(nth_case(i, 2, 3, 256));
      SoakCase& each = cases.back();
      each.inputs = reference::make_inputs(each.shape, static_cast<std::uint64_t>(i), true);
      each.expected = reference::boundary(each.shape, each.inputs);
    }
    RankOptions options;
    options.target = target;
    run_ranks(2, options, [&](int, Communicator& comm) {
      Soaker soaker(cases, comm, 1);
      ASSERT_TRUE(soaker.prepare());
      meet(comm);
      notice(soaker, comm, cases[0]);
      meet(comm);
    });
  }
}

}  // namespace
}  // namespace tenon
