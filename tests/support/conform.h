// What every transport must do, seen from one rank, on any target.
#pragma once

#include <gtest/gtest.h>

#include "tenon/comm/collectives/collectives.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/fp8.h"
#include "tests/support/chaos.h"
#include "tests/support/device_array.h"
#include "tests/support/ranks.h"

namespace tenon::test {

// One round of every collective. Sums are of small whole numbers: exact, and different for every
// element and round.
class Conformance {
 public:
  Conformance(Communicator& comm, Stream& stream, const Channel& channel)
      : comm_(comm),
        channel_(channel),
        stream_(stream),
        delays_(static_cast<std::uint64_t>(comm.rank())),
        mine_(stream, kMost),
        peer_sum_(stream, kMost),
        host_sum_(stream, kMost),
        byte_(stream, 1),
        bytes_(stream, kMaxRanks) {}

  void round(int number) {
    sums(number);
    gathers(number);
    agrees(number);
  }

 private:
  static constexpr int kMost = 300;

  void sums(int number) {
    const int size = comm_.size(), count = 1 + number * 61 % kMost;
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i)
      values[static_cast<std::size_t>(i)] =
          to_bf16(static_cast<float>((i + number) % 11 + comm_.rank())).bits;
    mine_.put(values);
    const auto rows = [&](auto& array) { return array.first(count, DType::kBF16); };
    delays_.maybe_wait();
    const bool peers = comm_.can().peer_pointers;
    if (peers) {
      ASSERT_TRUE(collectives::all_reduce(channel_, {rows(mine_)}, rows(peer_sum_), stream_));
    }
    delays_.maybe_wait();
    ASSERT_TRUE(comm_.all_reduce({rows(mine_)}, rows(host_sum_), stream_));
    const auto host_sum = host_sum_.get(values.size());
    const auto peer_sum = peers ? peer_sum_.get(values.size()) : host_sum;
    for (int i = 0; i < count; ++i) {
      const float want = static_cast<float>(size * ((i + number) % 11)) +
                         static_cast<float>(size * (size - 1) / 2);
      ASSERT_EQ(to_float(bf16{host_sum[static_cast<std::size_t>(i)]}), want);
      ASSERT_EQ(to_float(bf16{peer_sum[static_cast<std::size_t>(i)]}), want);
    }
  }

  void gathers(int number) {
    const int size = comm_.size();
    byte_.put({static_cast<std::uint8_t>(comm_.rank() * 16 + number % 16)});
    ASSERT_TRUE(
        comm_.all_gather(byte_.first(1, DType::kU8), bytes_.first(size, DType::kU8), stream_));
    const auto all = bytes_.get(static_cast<std::size_t>(size));
    for (int peer = 0; peer < size; ++peer)
      ASSERT_EQ(all[static_cast<std::size_t>(peer)], peer * 16 + number % 16);
  }

  void agrees(int number) {
    std::int32_t value = number - comm_.rank();
    ASSERT_TRUE(comm_.agree_min({&value, 1}));
    ASSERT_EQ(value, number - comm_.size() + 1);
    std::vector<std::byte> bytes(70'000, static_cast<std::byte>(comm_.rank() == 0 ? number : 0xee));
    ASSERT_TRUE(comm_.broadcast(bytes));
    ASSERT_EQ(bytes.front(), static_cast<std::byte>(number));
    ASSERT_EQ(bytes.back(), static_cast<std::byte>(number));
  }

  Communicator& comm_;
  const Channel& channel_;
  Stream& stream_;
  Delays delays_;
  DeviceArray<std::uint16_t> mine_, peer_sum_, host_sum_;
  DeviceArray<std::uint8_t> byte_, bytes_;
};

inline void conform(Communicator& comm, int num_rounds = 20) {
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream) << stream.status().to_string();
  auto channel =
      comm.make_channel(collectives::all_reduce_mailbox_bytes(comm.size(), 128), "conformance");
  ASSERT_TRUE(channel) << channel.status().to_string();
  Conformance conformance(comm, *stream, *channel);
  meet(comm);
  for (int number = 0; number < num_rounds && !testing::Test::HasFatalFailure(); ++number)
    conformance.round(number);
  const Status health = comm.health();
  EXPECT_TRUE(health) << health.to_string();
  meet(comm);
}

}  // namespace tenon::test
