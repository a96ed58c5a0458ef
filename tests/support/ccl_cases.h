// What collectives over transport ccl must give, on any target: for the fake library on host
// targets and for the real one on devices.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tenon/core/fp8.h"
#include "tests/support/chaos.h"
#include "tests/support/copy_back.h"
#include "tests/support/ranks.h"

namespace tenon::test {

using Halves = std::vector<std::uint16_t>;

inline float widen(DType dtype, std::uint16_t bits) {
  return dtype == DType::kBF16 ? to_float(bf16{bits}) : to_float(f16{bits});
}
inline std::uint16_t narrow(DType dtype, float value) {
  return dtype == DType::kBF16 ? to_bf16(value).bits : to_f16(value).bits;
}

// Finite values of mixed sizes, whose sums depend on the order from three ranks on.
inline Halves ccl_addend(DType dtype, std::size_t count, int rank, std::uint64_t seed) {
  Random random(seed * 31 + static_cast<std::uint64_t>(rank));
  Halves values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto word = static_cast<std::int64_t>(random.next() % 4001) - 2000;
    const float scale = i % 3 == 0 ? 1.0f : i % 3 == 1 ? 0x1p-6f : 0x1p-12f;
    values[i] = narrow(dtype, static_cast<float>(word) * scale);
    const float cancelling[] = {0x1p-10f * static_cast<float>(1 + i % 4), 0x1p15f, -0x1p15f};
    if (i % 7 == 3) values[i] = narrow(dtype, rank < 3 ? cancelling[rank] : 0.0f);
    if (i % 97 == 40) values[i] = 0x8000;  // on every rank: the sum is −0
  }
  return values;
}

// Steps 1 and 2 of the arithmetic of the boundary, literally; or in the reverse order.
inline Halves ccl_sum(DType dtype, std::size_t count, int size, std::uint64_t seed,
                      bool backwards = false) {
  std::vector<Halves> addends;
  for (int rank = 0; rank < size; ++rank)
    addends.push_back(ccl_addend(dtype, count, backwards ? size - 1 - rank : rank, seed));
  Halves sum(count);
  for (std::size_t i = 0; i < count; ++i) {
    float s = widen(dtype, addends[0][i]);
    for (std::size_t next = 1; next < addends.size(); ++next) s += widen(dtype, addends[next][i]);
    sum[i] = narrow(dtype, s);
  }
  return sum;
}

// One rank's addend and sum in memory of its device. `shift` elements lie in front of each.
struct CclRows {
  DType dtype;
  std::size_t count, shift;
  Buffer in, out;

  static Result<CclRows> make(Communicator& comm, DType dtype, std::size_t count,
                              std::size_t shift = 0) {
    CclRows rows{dtype, count, shift, {}, {}};
    const std::size_t bytes = (count + shift) * 2 + 16;
    TENON_ASSIGN(rows.in, Buffer::allocate(comm.device(), bytes));
    TENON_ASSIGN(rows.out, Buffer::allocate(comm.device(), bytes));
    return rows;
  }
  TensorView view_of(const Buffer& buffer) const {
    return view(buffer.as<std::uint16_t>() + shift, dtype, buffer.device(),
                {static_cast<std::int64_t>(count)});
  }
  Status set(const Halves& values, Stream& stream) const {
    TENON_TRY(stream.copy(view_of(in).data, values.data(), values.size() * 2));
    TENON_TRY(stream.fill(view_of(out).data, 0x55, values.size() * 2));
    return stream.synchronize();
  }
  Halves get(const Buffer& from, Stream& stream) const {
    Halves values(count);
    const Status done = copy_back(stream, values.data(), view_of(from).data, count * 2);
    EXPECT_TRUE(done) << done.to_string();
    return values;
  }
};

// The first element that differs, or nothing.
inline std::string first_difference(const Halves& got, const Halves& want) {
  if (got.size() != want.size()) return "another number of elements";
  for (std::size_t i = 0; i < got.size(); ++i)
    if (got[i] != want[i])
      return "element " + std::to_string(i) + " is " + std::to_string(got[i]) + " instead of " +
             std::to_string(want[i]);
  return "";
}

// Every size in turn, in place and not, aligned and not.
inline void ccl_reduces(int rank, Communicator& comm, const std::vector<std::size_t>& counts) {
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream);
  std::uint64_t seed = 1;
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const std::size_t count : counts) {
      SCOPED_TRACE(std::string(name(dtype)) + " × " + std::to_string(count));
      ++seed;
      auto rows = CclRows::make(comm, dtype, count, seed % 3 == 0 ? 1 : 0);
      ASSERT_TRUE(rows);
      ASSERT_TRUE(rows->set(ccl_addend(dtype, count, rank, seed), *stream));
      meet(comm);  // allocating may wait for devices that are peers, hence for their kernels
      const Buffer& to = seed % 2 == 0 ? rows->in : rows->out;
      const Status status = comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(to), *stream);
      ASSERT_TRUE(status) << status.to_string();
      ASSERT_EQ(first_difference(rows->get(to, *stream), ccl_sum(dtype, count, comm.size(), seed)),
                "");
      ASSERT_TRUE(comm.health()) << comm.health().to_string();
    }
}

inline void ccl_gathers(int rank, Communicator& comm) {
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream);
  const auto size = static_cast<std::size_t>(comm.size());
  for (const std::size_t bytes : {0u, 1u, 15u, 16u, 1000u, 70'001u}) {
    SCOPED_TRACE(bytes);
    const auto byte_of = [&](std::size_t peer, std::size_t i) {
      return i % 5 == 0 ? std::uint8_t{0xff}
                        : static_cast<std::uint8_t>(peer * 37 + i * 11 + bytes);
    };
    std::vector<std::uint8_t> mine(bytes), all(bytes * size);
    for (std::size_t i = 0; i < bytes; ++i) mine[i] = byte_of(static_cast<std::size_t>(rank), i);
    auto in = Buffer::allocate(comm.device(), bytes + 1);
    auto out = Buffer::allocate(comm.device(), all.size() + 1);
    ASSERT_TRUE(in && out);
    ASSERT_TRUE(stream->copy(in->data(), mine.data(), bytes));
    meet(comm);
    const auto length = static_cast<std::int64_t>(bytes);
    const Status status = comm.all_gather(
        view(in->data(), DType::kU8, comm.device(), {length}),
        view(out->data(), DType::kU8, comm.device(), {comm.size(), length}), *stream);
    ASSERT_TRUE(status) << status.to_string();
    ASSERT_TRUE(stream->copy(all.data(), out->data(), all.size()));
    ASSERT_TRUE(stream->synchronize());
    for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], byte_of(i / bytes, i % bytes));
  }
}

// Two sums and a gather in one graph, replayed with new addends between eager calls.
inline void ccl_replays(int rank, Communicator& comm, bool exact = true) {
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream);
  auto large = CclRows::make(comm, DType::kBF16, 40'000),
       small = CclRows::make(comm, DType::kF16, 9);
  auto all = Buffer::allocate(comm.device(), 18 * static_cast<std::size_t>(comm.size()));
  ASSERT_TRUE(large && small && all);
  const auto reduce = [&](const CclRows& rows) {
    return comm.all_reduce({rows.view_of(rows.in)}, rows.view_of(rows.out), *stream);
  };
  ASSERT_TRUE(Graph::begin(*stream));
  ASSERT_TRUE(reduce(*large));
  ASSERT_TRUE(reduce(*small));
  ASSERT_TRUE(comm.all_gather(small->view_of(small->out),
                              view(all->data(), DType::kF16, comm.device(), {comm.size(), 9}),
                              *stream));
  auto graph = Graph::end(*stream);
  ASSERT_TRUE(graph) << graph.status().to_string();
  meet(comm);
  for (std::uint64_t round = 0; round < 10; ++round) {
    SCOPED_TRACE(round);
    ASSERT_TRUE(large->set(ccl_addend(DType::kBF16, 40'000, rank, round), *stream));
    ASSERT_TRUE(small->set(ccl_addend(DType::kF16, 9, rank, round + 50), *stream));
    if (round % 3 == 2) {
      ASSERT_TRUE(reduce(*small));
    }
    ASSERT_TRUE(graph->replay(*stream));
    const Halves sums = small->get(small->out, *stream);
    const Halves many = large->get(large->out, *stream);
    Halves gathered(9 * static_cast<std::size_t>(comm.size()));
    ASSERT_TRUE(stream->copy(gathered.data(), all->data(), gathered.size() * 2));
    ASSERT_TRUE(stream->synchronize());
    for (std::size_t i = 0; i < gathered.size(); ++i) ASSERT_EQ(gathered[i], sums[i % 9]);
    if (!exact) continue;
    ASSERT_EQ(first_difference(sums, ccl_sum(DType::kF16, 9, comm.size(), round + 50)), "");
    ASSERT_EQ(first_difference(many, ccl_sum(DType::kBF16, 40'000, comm.size(), round)), "");
  }
}

}  // namespace tenon::test
