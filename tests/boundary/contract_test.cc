// What a boundary promises its caller besides numbers: tensors that do not fit are refused before
// anything is launched, whatever the stage; a good call costs no allocation; a boundary that could
// not be made leaves nothing behind; and everything outlives what it was made of.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "tenon/boundary/boundary.h"
#include "tenon/core/fp8.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/operator_new.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

// Every allocation of this program.
namespace tenon {
namespace {

using test::run_ranks;

constexpr int kRows = 5, kHidden = 512, kGroup = 128, kGroups = kHidden / kGroup;

// The tensors of one call, all in one piece of memory with room between them.
struct Call {
  static constexpr std::size_t kPart = 1 << 15, kParts = 6;
  std::vector<std::byte> memory = std::vector<std::byte>(kPart * kParts + 64, std::byte{0x5a});
  PartialRows partial;
  TensorView residual, weight;
  NormedRows out;

  explicit Call(Device device, ScaleLayout layout = ScaleLayout::kMnMajor) {
    partial.addend = view(part(0), DType::kBF16, device, {kRows, kHidden});
    residual = view(part(1), DType::kBF16, device, {kRows, kHidden});
    weight = view(part(2), DType::kBF16, device, {kHidden});
    out.bf16 = view(part(3), DType::kBF16, device, {kRows, kHidden});
    const auto scales = scale_shape(layout, kRows, kHidden, kGroup);
    out.fp8 = QuantView{view(part(4), DType::kE4M3, device, {kRows, kHidden}),
                        view(part(5), scale_dtype(layout), device, {scales[0], scales[1]}), kGroup,
                        layout};
    for (const TensorView& each : {partial.addend, residual, weight})
      for (std::int64_t i = 0; i < each.size(); ++i)
        each.as<std::uint16_t>()[i] = to_bf16(0.25f * static_cast<float>(i % 7 - 3)).bits;
  }
  std::byte* part(std::size_t number) {
    auto* const begin = memory.data() + 64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
    return begin + number * kPart;
  }
  Status run(Boundary& boundary, Stream& stream) const {
    return boundary.run(partial, residual, weight, out, stream);
  }
};

Result<Boundary> make_boundary(Communicator& comm, int stage, bool sharded = false) {
  BoundaryChannel::Spec channel_spec;
  channel_spec.hidden = kHidden;
  channel_spec.max_rows = 8;
  channel_spec.sharded_residual = sharded;
  TENON_ASSIGN(auto channel, BoundaryChannel::make(channel_spec, comm));
  BoundarySpec spec;
  spec.site = "test";
  spec.hidden = kHidden;
  spec.max_rows = 8;
  spec.layout = ScaleLayout::kMnMajor;
  spec.force_stage = static_cast<StagePolicy>(stage);
  return Boundary::make(spec, std::move(channel));
}

void shift(TensorView& tensor, std::ptrdiff_t bytes) { tensor.data = tensor.as<char>() + bytes; }

// One way in which a call does not fit, and what the refusal must say.
struct Misfit {
  std::string what;
  std::function<void(Call& call)> change;
  std::string says;
};

// The changes that every tensor of rows knows. `pick` finds it in a call.
void add_row_misfits(std::vector<Misfit>& all, const std::string& what, const std::string& says,
                     const std::function<TensorView&(Call&)>& pick) {
  const auto add = [&](const std::string& change, const std::function<void(TensorView&)>& apply) {
    all.push_back({what + " " + change, [=](Call& call) { apply(pick(call)); }, says});
  };
  add("at an odd address", [](TensorView& t) { shift(t, 2); });
  add("at a multiple of 8 bytes", [](TensorView& t) { shift(t, 8); });
  add("without memory", [](TensorView& t) { t.data = nullptr; });
  add("on another device of the target", [](TensorView& t) { t.device.index = 3; });
  add("on another target", [](TensorView& t) { t.device.target = Target::kEmu32; });
  add("of another type", [](TensorView& t) { t.dtype = DType::kF32; });
  add("with gaps in its rows", [](TensorView& t) { t.stride[0] *= 2, t.stride[1] = 2; });
  add("with unaligned rows", [](TensorView& t) { t.stride[0] += 4; });
  add("with negative strides", [](TensorView& t) { t.stride[0] = -t.stride[0]; });
  add("of fewer rows", [](TensorView& t) { t.shape[0] -= 1; });
  add("of narrower rows", [](TensorView& t) { t.shape[1] -= kGroup; });
  add("of one dimension", [](TensorView& t) { t.num_dims = 1, t.shape[0] *= t.shape[1]; });
  add("of three dimensions", [](TensorView& t) { t.num_dims = 3, t.shape[2] = t.stride[2] = 1; });
}

std::vector<Misfit> misfits() {
  std::vector<Misfit> all;
  add_row_misfits(all, "addend", "", [](Call& c) -> TensorView& { return c.partial.addend; });
  add_row_misfits(all, "residual", "residual", [](Call& c) -> TensorView& { return c.residual; });
  add_row_misfits(all, "out.bf16", "out.bf16", [](Call& c) -> TensorView& { return *c.out.bf16; });
  add_row_misfits(all, "out.fp8", "out.fp8",
                  [](Call& c) -> TensorView& { return c.out.fp8->data; });
  const auto add = [&](std::string what, std::function<void(Call&)> change, std::string says) {
    all.push_back({std::move(what), std::move(change), std::move(says)});
  };
  add(
      "addend with gaps between rows", [](Call& c) { c.partial.addend.stride[0] += 8; }, "gaps");
  for (const auto& [rows, columns] :
       {std::pair{1, 1}, {kGroups, kRows}, {kGroups, 16}, {8, kGroups}, {kRows, kGroups}, {0, 8}})
    add(
        "scales of " + std::to_string(rows) + " × " + std::to_string(columns),
        [rows = rows, columns = columns](Call& c) {
          c.out.fp8->scale = view(c.part(5), DType::kF32, c.residual.device, {rows, columns});
        },
        "out.fp8.scale is f32 [");
  add(
      "scales as integers", [](Call& c) { c.out.fp8->scale.dtype = DType::kI32; },
      "out.fp8.scale is i32");
  add(
      "scales with gaps", [](Call& c) { c.out.fp8->scale.stride[0] = 16; }, "with gaps");
  add(
      "scales without memory", [](Call& c) { c.out.fp8->scale.data = nullptr; }, "out.fp8.scale");
  add(
      "scales at an odd address", [](Call& c) { shift(c.out.fp8->scale, 2); }, "out.fp8.scale");
  add(
      "scales on another device", [](Call& c) { c.out.fp8->scale.device.index = 1; },
      "out.fp8.scale");
  add(
      "another group", [](Call& c) { c.out.fp8->group = 64; }, "group");
  add(
      "another layout", [](Call& c) { c.out.fp8->layout = ScaleLayout::kRow; }, "layout");
  add(
      "no codes", [](Call& c) { c.out.fp8.reset(); }, "outputs");
  add(
      "no rows out", [](Call& c) { c.out.bf16.reset(); }, "outputs");
  add(
      "weight at an odd address", [](Call& c) { shift(c.weight, 2); }, "weight");
  add(
      "weight without memory", [](Call& c) { c.weight.data = nullptr; }, "weight");
  add(
      "weight on another device", [](Call& c) { c.weight.device.index = 1; }, "weight");
  add(
      "weight of two dimensions",
      [](Call& c) {
        c.weight = view(c.part(2), DType::kBF16, c.weight.device, {1, kHidden});
      },
      "weight");
  add(
      "weight with a stride", [](Call& c) { c.weight.stride[0] = 2; }, "weight");
  // What the op would take, or refuse in words of its own: the boundary was made for another type.
  const auto add_type = [&](const std::string& what, const std::string& says, DType dtype,
                            const std::function<TensorView&(Call&)>& pick) {
    add(
        what + " as " + std::string(name(dtype)), [=](Call& c) { pick(c).dtype = dtype; }, says);
  };
  add_type("residual", "the residual is f16 [5, 512] on cpu:0; it was made for bf16 rows",
           DType::kF16, [](Call& c) -> TensorView& { return c.residual; });
  add_type("weight", "the weight is f32 [512] on cpu:0; it was made for bf16 [512]", DType::kF32,
           [](Call& c) -> TensorView& { return c.weight; });
  add_type("rows out", "out.bf16 is f16 [5, 512] on cpu:0; it was made for bf16 rows", DType::kF16,
           [](Call& c) -> TensorView& { return *c.out.bf16; });
  add_type("codes", "out.fp8 is e4m3fnuz [5, 512] on cpu:0; it was made for e4m3fn rows",
           DType::kE4M3Fnuz, [](Call& c) -> TensorView& { return c.out.fp8->data; });
  add(
      "residual over the rows out", [](Call& c) { c.residual.data = c.out.bf16->data; }, "overlap");
  add(
      "residual over the end of the rows out",
      [](Call& c) { c.residual.data = c.out.bf16->as<char>() + (kRows * kHidden - 8) * 2; },
      "overlap");
  add(
      "rows out over the addend", [](Call& c) { c.out.bf16->data = c.partial.addend.data; },
      "overlap");
  add(
      "codes over the weight", [](Call& c) { c.out.fp8->data.data = c.weight.data; }, "overlap");
  add(
      "scales over the codes", [](Call& c) { c.out.fp8->scale.data = c.out.fp8->data.data; },
      "overlap");
  add(
      "residual rows over each other", [](Call& c) { c.residual.stride[0] = kHidden - 8; },
      "overlap");
  add(
      "columns of one matrix that meet",
      [](Call& c) {
        c.residual.stride[0] = c.out.bf16->stride[0] = 2 * kHidden;
        c.out.bf16->data = c.residual.as<char>() + (kHidden - 8) * 2;
      },
      "overlap");
  return all;
}

TEST(BoundaryContract, WhatDoesNotFitIsRefusedAndNothingIsTouched) {
  for (const int stage : {1, 2, 3})
    run_ranks(2, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto boundary = make_boundary(comm, stage);
      ASSERT_TRUE(stream && boundary) << boundary.status().to_string();
      for (const Misfit& misfit : misfits()) {
        SCOPED_TRACE("stage " + std::to_string(stage) + ": " + misfit.what);
        Call call(comm.device());
        misfit.change(call);
        const std::vector<std::byte> before = call.memory;
        const Status refused = call.run(*boundary, *stream);
        EXPECT_EQ(refused.code(), Code::kInvalidArgument);
        EXPECT_NE(refused.message().find(misfit.says), std::string_view::npos)
            << refused.to_string();
        EXPECT_EQ(refused.message().substr(0, 15), "boundary \"test\"") << refused.to_string();
        EXPECT_TRUE(call.memory == before) << "something was written";
      }
      Call good(comm.device());
      const Status ran = good.run(*boundary, *stream);
      EXPECT_TRUE(ran) << ran.to_string();
    });
}

TEST(BoundaryContract, ManyRowsAreNotTakenForFew) {
  run_ranks(2, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    auto boundary = make_boundary(comm, 1);
    ASSERT_TRUE(stream && boundary);
    for (const std::int64_t rows :
         {std::int64_t{1} << 32, (std::int64_t{1} << 32) + 5, std::int64_t{9}, std::int64_t{-1}}) {
      Call call(comm.device());
      for (TensorView* each :
           {&call.partial.addend, &call.residual, &*call.out.bf16, &call.out.fp8->data})
        each->shape[0] = rows;
      const Status refused = call.run(*boundary, *stream);
      EXPECT_EQ(refused.code(), Code::kInvalidArgument) << rows;
    }
  });
}

// The columns of one matrix share no byte, though the ranges of their addresses overlap.
TEST(BoundaryContract, ColumnsOfOneMatrixMayBeWritten) {
  for (const int stage : {1, 2, 3})
    run_ranks(2, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto boundary = make_boundary(comm, stage);
      ASSERT_TRUE(stream && boundary);
      Call apart(comm.device()), beside(comm.device());
      beside.residual.stride[0] = beside.out.bf16->stride[0] = 2 * kHidden;
      beside.out.bf16->data = beside.residual.as<char>() + kHidden * 2;
      for (int row = 0; row < kRows; ++row)
        std::memcpy(beside.residual.rows(row, 1).data, apart.residual.rows(row, 1).data,
                    kHidden * 2);
      for (Call* each : {&apart, &beside}) {
        const Status ran = each->run(*boundary, *stream);
        ASSERT_TRUE(ran) << ran.to_string();
      }
      for (int row = 0; row < kRows; ++row)
        EXPECT_EQ(std::memcmp(beside.out.bf16->rows(row, 1).data, apart.out.bf16->rows(row, 1).data,
                              kHidden * 2),
                  0);
    });
}

TEST(BoundaryContract, AStreamOfAnotherDeviceIsRefused) {
  for (const Target other : test::host_targets()) {
    if (other == Target::kCpu) continue;
    for (const int stage : {1, 2, 3})
      run_ranks(2, [&](int, Communicator& comm) {
        auto stream = Stream::create(Device{other, 0});
        auto boundary = make_boundary(comm, stage);
        ASSERT_TRUE(stream && boundary);
        for (const Device of_tensors : {comm.device(), stream->device()}) {
          Call call(of_tensors);
          const std::vector<std::byte> before = call.memory;
          const Status refused = call.run(*boundary, *stream);
          EXPECT_EQ(refused.code(), Code::kInvalidArgument);
          EXPECT_NE(refused.message().find("the stream is on " + std::string(name(other)) +
                                           ":0; its communicator is on cpu:0"),
                    std::string_view::npos)
              << refused.to_string();
          EXPECT_TRUE(call.memory == before) << "something was written";
        }
      });
  }
}

TEST(BoundaryContract, ATransportWithoutPeerPointersHasTheGenericStageAlone) {
  run_ranks(2, {.transport = "ccl"}, [](int, Communicator& comm) {
    auto boundary = make_boundary(comm, 0);
    ASSERT_TRUE(boundary) << boundary.status().to_string();
    EXPECT_EQ(boundary->stage(kRows), Stage::kGeneric);
    EXPECT_NE(boundary->why(kRows).find("transport ccl has no peer pointers"),
              std::string_view::npos)
        << boundary->why(kRows);
    for (const int stage : {1, 2}) {
      const auto refused = make_boundary(comm, stage);
      EXPECT_FALSE(refused);
      EXPECT_NE(refused.status().message().find("transport ccl has no peer pointers"),
                std::string_view::npos)
          << refused.status().to_string();
    }
  });
}

TEST(BoundaryContract, CheckingAllocatesNothing) {
  const Call call{Device{}};
  fused_allreduce_rmsnorm_quant::Args args;
  args.partial = call.partial;
  args.residual = call.residual;
  args.weight = call.weight;
  args.out = call.out;
  const long before = test::num_allocations;
  for (int i = 0; i < 10; ++i)
    if (!fused_allreduce_rmsnorm_quant::check(args)) std::abort();
  EXPECT_EQ(test::num_allocations - before, 0);
}

TEST(BoundaryContract, AGoodCallOfOneRankAllocatesNothing) {
  for (const int stage : {1, 2, 3})
    run_ranks(1, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto boundary = make_boundary(comm, stage);
      ASSERT_TRUE(stream && boundary) << boundary.status().to_string();
      const Call call(comm.device());
      ASSERT_TRUE(call.run(*boundary, *stream));
      const long before = test::num_allocations;
      for (int i = 0; i < 10; ++i)
        if (!call.run(*boundary, *stream)) std::abort();
      EXPECT_EQ(test::num_allocations - before, 0) << "stage " << stage;
    });
}

TEST(BoundaryContract, AGoodCallOfTwoRanksAllocatesNothing) {
  for (const int stage : {1, 2}) {
    std::barrier all(2);
    std::atomic<long> before = 0;
    run_ranks(2, [&](int rank, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto boundary = make_boundary(comm, stage);
      if (!stream || !boundary) std::abort();
      const Call call(comm.device());
      if (!call.run(*boundary, *stream)) std::abort();
      all.arrive_and_wait();
      if (rank == 0) before = test::num_allocations.load();
      all.arrive_and_wait();
      for (int i = 0; i < 10; ++i)
        if (!call.run(*boundary, *stream)) std::abort();
      all.arrive_and_wait();
      if (rank == 0) {
        EXPECT_EQ(test::num_allocations - before, 0) << "stage " << stage;
      }
      all.arrive_and_wait();
    });
  }
}

// --- what remains, and what must not ------------------------------------------------------------

TEST(BoundaryContract, ABoundaryThatCouldNotBeMadeLeavesNothingBehind) {
  run_ranks(2, [](int, Communicator& comm) {
    BoundaryChannel::Spec channel_spec;
    channel_spec.hidden = 256;
    channel_spec.max_rows = 10'000;  // more than a norm takes
    auto channel = BoundaryChannel::make(channel_spec, comm);
    ASSERT_TRUE(channel);
    BoundarySpec spec;
    spec.site = "too long";
    spec.hidden = 256;
    spec.max_rows = 10'000;
    spec.force_stage = StagePolicy::kTwoKernels;
    const auto refused = Boundary::make(spec, *channel);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.status().message().find("rows is 10000"), std::string_view::npos)
        << refused.status().to_string();
    spec.site = "short";
    spec.max_rows = 64;
    spec.force_stage = StagePolicy::kOneKernel;
    const auto made = Boundary::make(spec, *channel);
    ASSERT_TRUE(made) << made.status().to_string();
    EXPECT_EQ(made->stage(64), Stage::kOneKernel);
  });
}

TEST(BoundaryContract, WorksWhenItsCommunicatorIsGone) {
  for (const char* transport : {"threads", "shm", "ccl"})
    for (const int stage : {1, 2, 3}) {
      if (std::string(transport) == "ccl" && stage != 3) continue;
      SCOPED_TRACE(std::string(transport) + ", stage " + std::to_string(stage));
      auto handles = local_bootstrap(2);
      std::atomic<int> left{0};
      std::array<std::vector<std::byte>, 2> results;
      std::vector<std::thread> threads;
      for (std::size_t rank = 0; rank < 2; ++rank)
        threads.emplace_back([&, rank, handle = std::move(handles[rank])]() mutable {
          CommOptions options;
          options.transport = transport;
          options.bootstrap = std::move(handle);
          options.deadline = std::chrono::milliseconds(10'000);
          auto comm = Communicator::create(options, Device{});
          ASSERT_TRUE(comm) << comm.status().to_string();
          options.bootstrap.reset();
          auto stream = Stream::create(Device{});
          auto boundary = make_boundary(**comm, stage);
          ASSERT_TRUE(stream && boundary) << boundary.status().to_string();
          comm->reset();
          // Whoever gets the memory of the communicator next must not disturb.
          std::vector<std::unique_ptr<std::array<char, 80>>> others;
          for (int i = 0; i < 64; ++i) {
            others.push_back(std::make_unique<std::array<char, 80>>());
            others.back()->fill('x');
          }
          for (++left; left < 2;) std::this_thread::yield();
          Call call(Device{});
          const Status ran = call.run(*boundary, *stream);
          EXPECT_TRUE(ran) << ran.to_string();
          results[rank] = std::vector<std::byte>(call.part(1), call.part(6));
        });
      handles.clear();
      for (std::thread& thread : threads) thread.join();
      EXPECT_EQ(results[0], results[1]);
      EXPECT_FALSE(results[0].empty());
    }
}

}  // namespace
}  // namespace tenon
