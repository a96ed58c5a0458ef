// The plain collectives against the plainest oracle: both all-reduces (peer kernels and generic),
// bit for bit, and both all-gathers, over targets, team sizes, types, sizes and special values.
#include "tenon/comm/collectives/collectives.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tenon/core/fp8.h"
#include "tests/support/chaos.h"
#include "tests/support/copy_back.h"
#include "tests/support/ranks.h"
#include "tests/support/sizes.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::run_ranks;

using Halves = std::vector<std::uint16_t>;

float widen(DType dtype, std::uint16_t bits) {
  return dtype == DType::kBF16 ? to_float(bf16{bits}) : to_float(f16{bits});
}
std::uint16_t narrow(DType dtype, float value) {
  return dtype == DType::kBF16 ? to_bf16(value).bits : to_f16(value).bits;
}
bool both_nan(DType dtype, std::uint16_t a, std::uint16_t b) {
  return is_nan(widen(dtype, a)) && is_nan(widen(dtype, b));
}

// Rank-distinct addends whose sum depends on the order, with every special value at some place:
// zeros of both signs, denormals, infinities, NaNs and the pattern that means "not arrived".
Halves addend(DType dtype, std::size_t count, int rank, std::uint64_t seed) {
  Halves values(count);
  test::Random random(seed * 131 + static_cast<std::uint64_t>(rank));
  for (std::size_t i = 0; i < count; ++i) {
    const float sign = random.next() % 2 == 0 ? 1.0f : -1.0f;
    const float magnitude = static_cast<float>(1 + random.next() % 1000) / 256.0f;
    const auto scale = static_cast<float>(std::uint64_t{1} << (random.next() % 12));
    values[i] = narrow(dtype, sign * magnitude * scale);
    switch ((i + static_cast<std::size_t>(rank) * 3) % 53) {
      case 5: values[i] = 0x0000; break;
      case 6: values[i] = 0x8000; break;
      case 7: values[i] = 0x0001; break;  // the smallest denormal
      case 8: values[i] = 0x8001; break;
      case 9: values[i] = narrow(dtype, __builtin_inff()); break;
      case 11: values[i] = 0x7fff; break;  // a NaN in either type
      case 12:
      case 13: values[i] = 0xffff; break;  // two in a word: "not arrived"
      default: break;
    }
    // (small + large) − large is 0 in rank order and `small` in a rotated one.
    const float small = 0x1p-10f * static_cast<float>(1 + i % 4);
    const float cancelling[] = {small, 0x1p15f, -0x1p15f};
    if (i % 7 == 3) values[i] = narrow(dtype, rank < 3 ? cancelling[rank] : 0.0f);
    if (i % 97 == 40) values[i] = 0x8000;  // on every rank: the sum is −0
  }
  return values;
}

// Steps 1 and 2 of the arithmetic of the boundary, literally.
Halves oracle(DType dtype, const std::vector<Halves>& addends) {
  Halves sum(addends[0].size());
  for (std::size_t i = 0; i < sum.size(); ++i) {
    float s = widen(dtype, addends[0][i]);
    for (std::size_t rank = 1; rank < addends.size(); ++rank) s += widen(dtype, addends[rank][i]);
    sum[i] = narrow(dtype, s);
  }
  return sum;
}

std::vector<Halves> all_addends(DType dtype, std::size_t count, int size, std::uint64_t seed) {
  std::vector<Halves> addends;
  for (int rank = 0; rank < size; ++rank) addends.push_back(addend(dtype, count, rank, seed));
  return addends;
}

void expect_same(DType dtype, const Halves& got, const Halves& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_TRUE(got[i] == want[i] || both_nan(dtype, got[i], want[i]))
        << "element " << i << " is " << got[i] << " instead of " << want[i];
}

TensorView halves_view(Halves& values, DType dtype, Device device) {
  return view(values.data(), dtype, device, {static_cast<std::int64_t>(values.size())});
}

TEST(Collectives, TheInputsOfTheseTestsDependOnTheOrder) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const int size : {3, 5, 8}) {
      auto addends = all_addends(dtype, 640, size, 1);
      const Halves in_order = oracle(dtype, addends);
      std::rotate(addends.begin(), addends.begin() + 1, addends.end());
      EXPECT_NE(oracle(dtype, addends), in_order) << size;
    }
}

struct ReducePath {
  const char* name;
  bool peer;
};
constexpr ReducePath kPaths[] = {{"peer", true}, {"generic", false}};

// Every size of the list in turn on one channel: counters and extents survive the mix.
void reduce_sizes(int rank, Communicator& comm, DType dtype, ReducePath path,
                  std::size_t chunk_bytes, const std::vector<std::size_t>& counts) {
  auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(comm.size(), chunk_bytes),
                                   "test reduce");
  ASSERT_TRUE(channel) << channel.status().to_string();
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream);
  std::uint64_t seed = 7;
  for (const std::size_t count : counts) {
    SCOPED_TRACE(std::string(path.name) + " " + std::string(name(dtype)) + " × " +
                 std::to_string(count));
    const auto addends = all_addends(dtype, count, comm.size(), ++seed);
    Halves mine = addends[static_cast<std::size_t>(rank)];
    Halves out(count, 0x5555);
    const bool in_place = seed % 2 == 0;
    const PartialRows in{halves_view(mine, dtype, comm.device())};
    const TensorView to = halves_view(in_place ? mine : out, dtype, comm.device());
    const Status status = path.peer ? collectives::all_reduce(*channel, in, to, *stream)
                                    : comm.all_reduce(in, to, *stream);
    ASSERT_TRUE(status) << status.to_string();
    ASSERT_TRUE(comm.health()) << comm.health().to_string();
    expect_same(dtype, in_place ? mine : out, oracle(dtype, addends));
    if (testing::Test::HasFatalFailure()) return comm.abort("the test failed");
  }
}

TEST(Collectives, AllReduceHasTheBitsOfTheOracleInEveryWorld) {
  for (const Target target : test::host_targets())
    for (int size = 1; size <= kMaxRanks; ++size)
      for (const ReducePath path : kPaths)
        run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
          reduce_sizes(rank, comm, DType::kBF16, path, 512, {0, 1, 7, 8, 9, 256, 641, 3});
          reduce_sizes(rank, comm, DType::kF16, path, 512, {256, 2, 257});
        });
}

TEST(Collectives, AllReduceGoesThroughTheMailboxInChunksOfAnySize) {
  for (const Target target : test::host_targets())
    for (const std::size_t chunk_bytes : {std::size_t{16}, std::size_t{48}, std::size_t{4096}})
      run_ranks(3, {.target = target}, [&](int rank, Communicator& comm) {
        reduce_sizes(rank, comm, DType::kBF16, kPaths[0], chunk_bytes,
                     {8, 100, 24, 25, 1, 333, 8, 7, 2100});
      });
}

// Ranks that come at random times, and last chunks that leave most threads without work: they must
// clear what they took all the same before anybody fills it again.
TEST(Collectives, ShortTailsBetweenLongCallsLoseNothing) {
  for (const Target target : test::host_targets())
    run_ranks(3, {.target = target}, [&](int rank, Communicator& comm) {
      auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(3, 2048), "tails");
      ASSERT_TRUE(channel);
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      test::Delays delays(static_cast<std::uint64_t>(rank));
      for (std::uint64_t round = 0; round < 40; ++round) {
        const std::size_t count = 1024 * (1 + round % 4) + (round % 3 == 2 ? 700 : 1);
        const auto addends = all_addends(DType::kBF16, count, 3, round);
        Halves mine = addends[static_cast<std::size_t>(rank)];
        delays.maybe_wait();
        const TensorView rows = halves_view(mine, DType::kBF16, comm.device());
        ASSERT_TRUE(collectives::all_reduce(*channel, {rows}, rows, *stream));
        ASSERT_TRUE(comm.health()) << comm.health().to_string();
        expect_same(DType::kBF16, mine, oracle(DType::kBF16, addends));
      }
    });
}

TEST(Collectives, CallsLargerThanAllBlocksTogether) {
  for (const Target target : test::host_targets())
    run_ranks(2, {.target = target}, [&](int rank, Communicator& comm) {
      reduce_sizes(rank, comm, DType::kBF16, kPaths[0], 1 << 16, {40'000, 9, 20'001});
    });
}

TEST(Collectives, GenericAllReduceIsLargerThanTheHostExchangeChunk) {
  run_ranks(2, [&](int rank, Communicator& comm) {
    reduce_sizes(rank, comm, DType::kBF16, kPaths[1], 512, {32768, 32769, 100'001, 5});
  });
}

TEST(Collectives, ReplayedGraphsMixWithDirectCalls) {
  for (const Target target : test::host_targets())
    for (const ReducePath path : kPaths)
      run_ranks(3, {.target = target}, [&](int rank, Communicator& comm) {
        auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(3, 64), "graph");
        ASSERT_TRUE(channel);
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(stream);
        Halves large(150), small(9), out_large(150), out_small(9);
        const auto reduce = [&](Halves& in, Halves& out) {
          const PartialRows rows{halves_view(in, DType::kBF16, comm.device())};
          const TensorView to = halves_view(out, DType::kBF16, comm.device());
          return path.peer ? collectives::all_reduce(*channel, rows, to, *stream)
                           : comm.all_reduce(rows, to, *stream);
        };
        ASSERT_TRUE(Graph::begin(*stream));
        ASSERT_TRUE(reduce(large, out_large));
        ASSERT_TRUE(reduce(small, out_small));
        auto graph = Graph::end(*stream);
        ASSERT_TRUE(graph);
        for (std::uint64_t round = 0; round < 12; ++round) {
          const auto large_addends = all_addends(DType::kBF16, 150, 3, round);
          const auto small_addends = all_addends(DType::kBF16, 9, 3, round + 100);
          large = large_addends[static_cast<std::size_t>(rank)];
          small = small_addends[static_cast<std::size_t>(rank)];
          if (round % 3 == 2) {
            ASSERT_TRUE(reduce(small, out_small));
          }
          ASSERT_TRUE(graph->replay(*stream));
          ASSERT_TRUE(stream->synchronize());
          expect_same(DType::kBF16, out_large, oracle(DType::kBF16, large_addends));
          expect_same(DType::kBF16, out_small, oracle(DType::kBF16, small_addends));
        }
      });
}

TEST(Collectives, RanksThatComeAtRandomTimesGetTheSameBits) {
  for (const Target target : test::host_targets())
    run_ranks(4, {.target = target}, [&](int rank, Communicator& comm) {
      auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(4, 64), "delays");
      ASSERT_TRUE(channel);
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      test::Delays delays(static_cast<std::uint64_t>(rank));
      for (std::uint64_t round = 0; round < 60; ++round) {
        const std::size_t count = 1 + round * 37 % 90;
        const auto addends = all_addends(DType::kBF16, count, 4, round);
        Halves mine = addends[static_cast<std::size_t>(rank)];
        delays.maybe_wait();
        const TensorView rows = halves_view(mine, DType::kBF16, comm.device());
        ASSERT_TRUE(collectives::all_reduce(*channel, {rows}, rows, *stream));
        expect_same(DType::kBF16, mine, oracle(DType::kBF16, addends));
      }
    });
}

// --- all_gather
// -----------------------------------------------------------------------------------

std::vector<std::uint8_t> blob(std::size_t bytes, int rank, std::uint64_t seed) {
  std::vector<std::uint8_t> values(bytes);
  test::Random random(seed * 17 + static_cast<std::uint64_t>(rank));
  for (std::size_t i = 0; i < bytes; ++i)
    values[i] = i % 5 == 0 ? 0xff : static_cast<std::uint8_t>(random.next());
  return values;
}

TEST(Collectives, AllGatherCarriesAnyBytes) {
  for (const Target target : test::host_targets())
    for (int size = 1; size <= kMaxRanks; ++size)
      run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
        auto channel =
            comm.make_channel(collectives::all_gather_mailbox_bytes(size, 100), "test gather");
        ASSERT_TRUE(channel) << channel.status().to_string();
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(stream);
        std::uint64_t seed = 0;
        for (const std::size_t bytes : {0u, 1u, 16u, 15u, 112u, 113u, 3u, 1000u, 17u}) {
          SCOPED_TRACE(bytes);
          auto mine = blob(bytes, rank, ++seed);
          std::vector<std::uint8_t> all(bytes * static_cast<std::size_t>(size), 0xaa), want;
          for (int peer = 0; peer < size; ++peer)
            for (const std::uint8_t value : blob(bytes, peer, seed)) want.push_back(value);
          const auto length = static_cast<std::int64_t>(bytes);
          const TensorView in = view(mine.data(), DType::kU8, comm.device(), {length});
          const TensorView out = view(all.data(), DType::kU8, comm.device(), {size, length});
          // The channel of this test, and the communicator's own.
          ASSERT_TRUE(collectives::all_gather(*channel, in, out, *stream));
          ASSERT_EQ(all, want);
          std::fill(all.begin(), all.end(), 0xbb);
          ASSERT_TRUE(comm.all_gather(in, out, *stream));
          ASSERT_EQ(all, want);
        }
      });
}

// Blocks of many threads, which a thread that looked too early would leave behind: what every call
// brings is new.
TEST(Collectives, NoFlagComesBeforeItsBytes) {
  constexpr std::size_t kSlot = std::size_t{1} << 20, kBytes = kSlot + 5000;
  for (const Target target : test::host_targets())
    run_ranks(2, {.target = target}, [&](int rank, Communicator& comm) {
      auto channel = comm.make_channel(collectives::all_gather_mailbox_bytes(2, kSlot), "large");
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(channel && stream);
      std::vector<std::uint8_t> mine(kBytes), all(2 * kBytes);
      for (int call = 0; call < 20; ++call) {
        std::fill(mine.begin(), mine.end(), static_cast<std::uint8_t>(2 * call + rank));
        ASSERT_TRUE(collectives::all_gather(
            *channel, view(mine.data(), DType::kU8, comm.device(), {kBytes}),
            view(all.data(), DType::kU8, comm.device(), {2, kBytes}), *stream));
        ASSERT_TRUE(stream->synchronize());
        std::vector<std::uint8_t> want(kBytes, static_cast<std::uint8_t>(2 * call));
        want.resize(2 * kBytes, static_cast<std::uint8_t>(2 * call + 1));
        ASSERT_TRUE(all == want) << "call " << call;
      }
    });
}

// Rows of bytes: what rank `rank` brings to a call.
struct Rows {
  std::int64_t rows, bytes;
  std::vector<std::uint8_t> of(int rank, std::uint64_t seed) const {
    return blob(static_cast<std::size_t>(rows * bytes), rank, seed);
  }
  // Those rows of `all` that are dealt to `rank`.
  std::vector<std::uint8_t> dealt(const std::vector<std::uint8_t>& all, int size, int rank) const {
    const RowRange own = dealt_rows(rows, size, rank);
    const auto begin = all.begin() + own.first * bytes;
    return {begin, begin + own.count * bytes};
  }
  TensorView view_of(std::vector<std::uint8_t>& values, Device device) const {
    return view(values.data(), DType::kU8, device, {rows, bytes});
  }
};

// One step and many, fewer rows than ranks, rows at any byte, steps in which some rank gets
// nothing.
const Rows kDeals[] = {{1, 1}, {2, 16}, {7, 48}, {8, 5}, {13, 112}, {0, 9}, {3, 1000}, {64, 16}};

void expect_deals(int rank, Communicator& comm, const Channel& channel, Stream& stream) {
  const int size = comm.size();
  std::uint64_t seed = 40;
  for (const Rows& rows : kDeals) {
    SCOPED_TRACE(std::to_string(rows.rows) + " rows of " + std::to_string(rows.bytes));
    auto mine = rows.of(rank, ++seed);
    std::vector<std::uint8_t> want;
    for (int peer = 0; peer < size; ++peer)
      for (const std::uint8_t each : rows.dealt(rows.of(peer, seed), size, rank))
        want.push_back(each);
    std::vector<std::uint8_t> got(want.size(), 0xaa);
    const TensorView in = rows.view_of(mine, comm.device());
    const TensorView out = view(got.data(), DType::kU8, comm.device(),
                                {size, dealt_rows(rows.rows, size, rank).count, rows.bytes});
    ASSERT_TRUE(collectives::deal_rows(channel, in, out, stream));
    ASSERT_TRUE(stream.synchronize());
    ASSERT_EQ(got, want);

    // Everybody's own rows of what rank 0 would bring, and noise in place of the others'.
    const auto all = rows.of(0, ++seed);
    auto collected = rows.of(rank, ++seed);
    const RowRange own = dealt_rows(rows.rows, size, rank);
    for (std::int64_t i = own.first * rows.bytes; i < (own.first + own.count) * rows.bytes; ++i)
      collected[static_cast<std::size_t>(i)] = all[static_cast<std::size_t>(i)];
    ASSERT_TRUE(collectives::collect_rows(channel, rows.view_of(collected, comm.device()), stream));
    ASSERT_TRUE(stream.synchronize());
    ASSERT_EQ(collected, all);
  }
}

TEST(Collectives, RowsAreDealtAndCollected) {
  for (const Target target : test::host_targets())
    for (int size = 1; size <= kMaxRanks; ++size)
      run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
        auto channel =
            comm.make_channel(collectives::all_gather_mailbox_bytes(size, 100), "test deal");
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(channel && stream);
        expect_deals(rank, comm, *channel, *stream);
        std::int64_t rows = 0;  // over the communicator's own channel
        for (std::vector<std::uint8_t> one(static_cast<std::size_t>(size)); rows < 2; ++rows) {
          for (int peer = 0; peer < size; ++peer)
            one[static_cast<std::size_t>(peer)] =
                static_cast<std::uint8_t>(peer == rank ? 7 + peer : 0);
          ASSERT_TRUE(
              comm.collect_rows(view(one.data(), DType::kU8, comm.device(), {size, 1}), *stream));
          for (int peer = 0; peer < size; ++peer)
            ASSERT_EQ(one[static_cast<std::size_t>(peer)], 7 + peer);
        }
      });
}

TEST(Collectives, EveryRowIsDealtOnce) {
  for (int size = 1; size <= kMaxRanks; ++size)
    for (std::int64_t rows = 0; rows < 70; ++rows) {
      std::int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const RowRange own = dealt_rows(rows, size, rank);
        EXPECT_EQ(own.first, next);
        EXPECT_GE(own.count, rows / size);
        EXPECT_LE(own.count, most_dealt_rows(rows, size));
        next += own.count;
      }
      EXPECT_EQ(next, rows);
    }
}

TEST(Collectives, RowsThatDoNotFitAreNotDealt) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto channel = comm.make_channel(collectives::all_gather_mailbox_bytes(2, 64), "deal");
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(channel && stream);
    std::vector<std::uint8_t> three(12), out(16);
    const TensorView in = view(three.data(), DType::kU8, comm.device(), {3, 4});
    const std::int64_t own = 2 - rank;
    const TensorView wrong = view(out.data(), DType::kU8, comm.device(), {2, 3 - own, 4});
    const Status refused = collectives::deal_rows(*channel, in, wrong, *stream);
    EXPECT_EQ(refused.code(), Code::kInvalidArgument);
    EXPECT_NE(refused.message().find("gets " + std::to_string(own) + " rows of u8 [3, 4]"),
              std::string_view::npos)
        << refused.to_string();
    TensorView across = in;
    across.shape[0] = 2;
    const TensorView there = view(three.data() + 4, DType::kU8, comm.device(), {2, 1, 4});
    EXPECT_EQ(collectives::deal_rows(*channel, across, there, *stream).code(),
              Code::kInvalidArgument);
    const TensorView scalar = view(three.data(), DType::kU8, comm.device(), {});
    EXPECT_EQ(collectives::collect_rows(*channel, scalar, *stream).code(), Code::kInvalidArgument);
  });
}

// On GPUs, which ranks may share: many steps, in which slots are used again, and calls of other
// sizes in between; the last rows go through the communicator's own channel.
TEST(Collectives, OnDevicesBytesOfAnySizeArrive) {
  const std::vector<Target> targets = test::device_targets();
  if (targets.empty()) GTEST_SKIP() << test::kNoDevice;
  const auto calls = test::sizes<Rows>({{64, 12'416}, {1, 16}, {13, 50'003}, {5, 4}, {64, 12'416}},
                                       {{7, 2'416}, {1, 16}, {3, 5'003}, {5, 4}, {7, 2'416}});
  for (const Target target : targets)
    for (const int size : test::sizes({2, 3, 8}, {2, 3}))
      run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
        const Device device = comm.device();
        auto small = comm.make_channel(
            collectives::all_gather_mailbox_bytes(size, test::size(100'000, 4'000)), "small");
        auto stream = Stream::create(device);
        const std::size_t most = calls[0].of(0, 0).size();
        auto in = Buffer::allocate(device, most);
        auto out = Buffer::allocate(device, most * static_cast<std::size_t>(size));
        ASSERT_TRUE(small && stream && in && out);
        test::meet(comm);
        const auto get = [&](const Buffer& from, std::size_t bytes) {
          std::vector<std::uint8_t> values(bytes);
          EXPECT_TRUE(test::copy_back(*stream, values.data(), from.data(), bytes));
          return values;
        };
        for (const Rows& rows : calls) {
          SCOPED_TRACE(std::to_string(rows.rows) + " rows of " + std::to_string(rows.bytes));
          const bool last = &rows == &calls.back();
          std::vector<std::vector<std::uint8_t>> of_ranks;
          for (int peer = 0; peer < size; ++peer) of_ranks.push_back(rows.of(peer, 9));
          std::vector<std::uint8_t> gathered, dealt, collected;
          for (int peer = 0; peer < size; ++peer) {
            const auto& theirs = of_ranks[static_cast<std::size_t>(peer)];
            const auto for_me = rows.dealt(theirs, size, rank);
            const auto for_them = rows.dealt(theirs, size, peer);
            gathered.insert(gathered.end(), theirs.begin(), theirs.end());
            dealt.insert(dealt.end(), for_me.begin(), for_me.end());
            collected.insert(collected.end(), for_them.begin(), for_them.end());
          }
          const auto& mine = of_ranks[static_cast<std::size_t>(rank)];
          ASSERT_TRUE(stream->copy(in->data(), mine.data(), mine.size()));
          const TensorView from = view(in->data(), DType::kU8, device, {rows.rows, rows.bytes});
          const TensorView all =
              view(out->data(), DType::kU8, device, {size, rows.rows, rows.bytes});
          const std::int64_t own = dealt_rows(rows.rows, size, rank).count;
          const TensorView part = view(out->data(), DType::kU8, device, {size, own, rows.bytes});
          ASSERT_TRUE(last ? comm.all_gather(from, all, *stream)
                           : collectives::all_gather(*small, from, all, *stream));
          ASSERT_TRUE(get(*out, gathered.size()) == gathered);
          ASSERT_TRUE(last ? comm.deal_rows(from, part, *stream)
                           : collectives::deal_rows(*small, from, part, *stream));
          ASSERT_TRUE(get(*out, dealt.size()) == dealt);
          ASSERT_TRUE(last ? comm.collect_rows(from, *stream)
                           : collectives::collect_rows(*small, from, *stream));
          ASSERT_TRUE(get(*in, collected.size()) == collected);
        }
        test::meet(comm);
      });
}

TEST(Collectives, WrongShapesAndTypesAreRefusedWithASentence) {
  auto comm = Communicator::create({}, Device{});
  ASSERT_TRUE(comm);
  auto stream = Stream::create(Device{});
  ASSERT_TRUE(stream);
  std::vector<float> floats(8);
  Halves halves(8), fewer(7);
  const TensorView f32 = view(floats.data(), DType::kF32, Device{}, {8});
  const TensorView rows = halves_view(halves, DType::kBF16, Device{});
  const TensorView short_rows = halves_view(fewer, DType::kBF16, Device{});
  const Status wrong_type = (*comm)->all_reduce({f32}, f32, *stream);
  EXPECT_EQ(wrong_type.code(), Code::kInvalidArgument);
  EXPECT_NE(wrong_type.message().find("f32 [8]"), std::string_view::npos) << wrong_type.message();
  EXPECT_EQ((*comm)->all_reduce({rows}, short_rows, *stream).code(), Code::kInvalidArgument);
  EXPECT_EQ((*comm)->all_gather(rows, short_rows, *stream).code(), Code::kInvalidArgument);
}

TEST(Collectives, AMailboxTooSmallForOneVectorIsRefused) {
  run_ranks(2, [](int, Communicator& comm) {
    auto channel = comm.make_channel(40, "tiny");
    ASSERT_TRUE(channel);
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    Halves mine(8);
    const TensorView rows = halves_view(mine, DType::kBF16, comm.device());
    const Status status = collectives::all_reduce(*channel, {rows}, rows, *stream);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("40 bytes"), std::string_view::npos) << status.message();
  });
}

// Whichever way the sum goes: through the host, over peer memory, or alone.
TEST(Collectives, WhatTheStreamCannotReachIsRefused) {
  for (const int size : {1, 2})
    run_ranks(size, [](int, Communicator& comm) {
      auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(2, 64), "reduce");
      auto gathers = comm.make_channel(collectives::all_gather_mailbox_bytes(2, 64), "gather");
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(channel && gathers && stream);
      Halves mine(8, 1), sum(8, 2), all(16, 3);
      const TensorView in = halves_view(mine, DType::kBF16, comm.device());
      const TensorView out = halves_view(sum, DType::kBF16, comm.device());
      TensorView every = halves_view(all, DType::kBF16, comm.device());
      every.shape[0] = 8 * comm.size();
      const auto expect_refused = [&](const TensorView& from, const TensorView& to,
                                      const TensorView& of_all, Stream& on, std::string_view text) {
        for (const Status& status :
             {comm.all_reduce({from}, to, on), collectives::all_reduce(*channel, {from}, to, on),
              comm.all_gather(from, of_all, on),
              collectives::all_gather(*gathers, from, of_all, on)}) {
          EXPECT_EQ(status.code(), Code::kInvalidArgument);
          EXPECT_NE(status.message().find(text), std::string_view::npos) << status.to_string();
        }
      };
      TensorView elsewhere = in, nowhere = in, out_there = out, all_there = every;
      elsewhere.device.index = out_there.device.index = all_there.device.index = 3;
      nowhere.data = nullptr;
      expect_refused(elsewhere, out, every, *stream, "the device of the communicator");
      expect_refused(in, out_there, all_there, *stream, "the device of the communicator");
      expect_refused(nowhere, out, every, *stream, "pointer is null");
      for (const Target other : test::host_targets()) {
        if (other == comm.device().target) continue;
        auto of_other = Stream::create(Device{other, 0});
        ASSERT_TRUE(of_other);
        expect_refused(in, out, every, *of_other, "the stream is on " + std::string(name(other)));
      }
      EXPECT_EQ(mine, Halves(8, 1));
      EXPECT_EQ(sum, Halves(8, 2));
      EXPECT_EQ(all, Halves(16, 3));
      ASSERT_TRUE(comm.all_reduce({in}, out, *stream));
    });
}

TEST(Collectives, OutMayBeTheAddendButNotLieAcrossIt) {
  run_ranks(2, [](int, Communicator& comm) {
    auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(2, 64), "reduce");
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(channel && stream);
    Halves values(32);
    const TensorView in = halves_view(values, DType::kBF16, comm.device()).rows(0, 16);
    const TensorView across = halves_view(values, DType::kBF16, comm.device()).rows(8, 16);
    const TensorView behind = halves_view(values, DType::kBF16, comm.device()).rows(16, 16);
    for (const TensorView& out : {in, behind}) {
      EXPECT_TRUE(comm.all_reduce({in}, out, *stream));
      EXPECT_TRUE(collectives::all_reduce(*channel, {in}, out, *stream));
    }
    EXPECT_EQ(comm.all_reduce({in}, across, *stream).code(), Code::kInvalidArgument);
    EXPECT_EQ(comm.all_reduce({across}, in, *stream).code(), Code::kInvalidArgument);
    const Status refused = collectives::all_reduce(*channel, {in}, across, *stream);
    EXPECT_EQ(refused.code(), Code::kInvalidArgument);
    EXPECT_NE(refused.message().find("they overlap"), std::string_view::npos)
        << refused.to_string();
  });
}

// A flag that nobody has written is no step, whatever the number of steps: here rank 0 looks first.
TEST(AllGather, AFlagThatWasNeverWrittenIsNoStep) {
  run_ranks(2, [&](int rank, Communicator& comm) {
    auto channel = comm.make_channel(collectives::all_gather_mailbox_bytes(2, 64), "gather");
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(channel && stream);
    channel->view().state[0] = 0xfffffffe;  // steps so far
    std::vector<std::uint32_t> mine(4, 7u + static_cast<std::uint32_t>(rank)), all(8);
    const TensorView in = view(mine.data(), DType::kI32, comm.device(), {4});
    const TensorView out = view(all.data(), DType::kI32, comm.device(), {2, 4});
    for (int call = 0; call < 4; ++call) {  // past the last number
      if (rank == 1 && call == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
      ASSERT_TRUE(collectives::all_gather(*channel, in, out, *stream));
      ASSERT_TRUE(stream->synchronize());
      for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(all[i], 7 + i / 4) << "call " << call;
    }
  });
}

}  // namespace
}  // namespace tenon
