// Slices of any form reach any target as they are stored, or converted; every byte is read once, in
// the order of the files, and failures of a source end the transfer with their sentence.
#include "tenon/models/slice_transfer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/device_fixture.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::DeviceFixture;

// Tensors in memory. Keeps account of what is read.
class Memory final : public TensorSource {
 public:
  struct Read {
    std::size_t file;
    std::uint64_t offset, count;
  };

  explicit Memory(std::size_t gap_bytes) : gap_bytes_(gap_bytes) {}

  // A tensor of random bytes that are finite in any type.
  const StoredTensor& make(DType dtype, std::int64_t rows, std::int64_t columns, std::size_t file,
                           std::uint64_t offset) {
    const std::string name = std::to_string(tensors_.size());
    StoredTensor& tensor = held_[name];
    tensor.dtype = dtype;
    tensor.shape = {rows, columns};
    tensor.bytes = static_cast<std::size_t>(rows * columns) * size_of(dtype);
    tensor.file = file;
    tensor.offset = offset;
    std::vector<std::byte>& bytes = bytes_[&tensor];
    bytes.resize(tensor.bytes);
    for (std::byte& each : bytes) each = static_cast<std::byte>(random_() % 0x40);
    tensors_.emplace(name, &tensor);
    return tensor;
  }
  const std::vector<std::byte>& bytes(const StoredTensor& tensor) const {
    return bytes_.at(&tensor);
  }
  void fail_at(const StoredTensor& tensor) { failing_ = &tensor; }

  const Tensors& tensors() const override { return tensors_; }
  std::unique_ptr<TensorReader> reader() const override { return std::make_unique<Reader>(*this); }

  mutable std::mutex mutex_;
  mutable std::vector<Read> reads_;

 private:
  class Reader final : public TensorReader {
   public:
    explicit Reader(const Memory& of) : of_(of) {}
    Status read(const StoredTensor& tensor, std::size_t begin, std::size_t count,
                std::byte* to) override {
      if (&tensor == of_.failing_) return Status::error(Code::kIo, "the disk has a scratch");
      const std::vector<std::byte>& bytes = of_.bytes(tensor);
      EXPECT_LE(begin + count, bytes.size());
      std::memcpy(to, bytes.data() + begin, count);
      const std::lock_guard lock(of_.mutex_);
      of_.reads_.push_back({tensor.file, tensor.offset + begin, count});
      return Status::ok();
    }
    void expect(const StoredTensor& tensor, std::size_t begin, std::size_t count) override {
      EXPECT_LE(begin + count, tensor.bytes);
    }
    std::size_t cheap_gap_bytes() const override { return of_.gap_bytes_; }

   private:
    const Memory& of_;
  };

  const std::size_t gap_bytes_;
  std::mt19937 random_{5};
  std::map<std::string, StoredTensor> held_;
  Tensors tensors_;
  std::map<const StoredTensor*, std::vector<std::byte>> bytes_;
  const StoredTensor* failing_ = nullptr;
};

// Element by element.
std::vector<std::byte> oracle(const Memory& memory, std::span<const StoredSlice> stacked,
                              DType as) {
  std::vector<std::byte> wanted;
  for (const StoredSlice& each : stacked)
    for (std::int64_t row = 0; row < each.rows; ++row)
      for (std::int64_t column = 0; column < each.columns; ++column) {
        const DType dtype = *each.from->dtype;
        const std::byte* at =
            memory.bytes(*each.from).data() +
            static_cast<std::size_t>(each.first + row * each.stride + column) * size_of(dtype);
        std::array<std::byte, 4> element{};
        if (dtype == as) {
          std::memcpy(element.data(), at, size_of(as));
        } else if (dtype == DType::kF32) {
          float value;
          std::memcpy(&value, at, sizeof value);
          const bf16 rounded = to_bf16(value);
          std::memcpy(element.data(), &rounded, sizeof rounded);
        } else {
          std::uint16_t bits;
          std::memcpy(&bits, at, sizeof bits);
          const float value = dtype == DType::kF16 ? to_float(f16{bits}) : to_float(bf16{bits});
          std::memcpy(element.data(), &value, sizeof value);
        }
        wanted.insert(wanted.end(), element.begin(),
                      element.begin() + static_cast<std::ptrdiff_t>(size_of(as)));
      }
  return wanted;
}

struct Stack {
  std::vector<StoredSlice> slices;
  DType as;
};

// Rows [2, rows − 1) and columns [3, 3 + taken) of a tensor.
StoredSlice inside(const StoredTensor& tensor, std::int64_t taken) {
  const std::int64_t columns = tensor.shape[1];
  return {&tensor, 2 * columns + 3, tensor.shape[0] - 3, taken, columns};
}
StoredSlice whole(const StoredTensor& tensor) {
  return {&tensor, 0, tensor.shape[0], tensor.shape[1], tensor.shape[1]};
}

// Small and large, narrow and wide, of one tensor and of several.
std::vector<Stack> stacks(Memory& memory) {
  const StoredTensor& codes = memory.make(DType::kE4M3, 2500, 1200, 1, 0);
  const StoredTensor& halves = memory.make(DType::kBF16, 130, 9000, 0, 500);
  const StoredTensor& other = memory.make(DType::kBF16, 5, 9000, 0, 3'000'000);
  const StoredTensor& floats = memory.make(DType::kF32, 40, 33, 2, 7);
  const StoredTensor& narrow = memory.make(DType::kF16, 100'000, 5, 3, 0);
  const StoredTensor& long_rows = memory.make(DType::kE4M3, 5, 3'000'000, 4, 0);
  return {{{whole(codes)}, DType::kE4M3},
          {{inside(codes, 700)}, DType::kE4M3},
          {{inside(halves, 5000), inside(other, 5000)}, DType::kBF16},
          {{inside(halves, 1), whole(other)}, DType::kF32},
          {{whole(floats), inside(floats, 30)}, DType::kBF16},
          {{inside(floats, 30)}, DType::kF32},
          {{inside(narrow, 2)}, DType::kF32},
          {{whole(narrow)}, DType::kF16},
          {{inside(long_rows, 2'999'990), whole(codes)}, DType::kE4M3},
          {{{&codes, 7, 1, 0, 0}, {&codes, 9, 1, 3, 3}, {&codes, 0, 0, 4, 4}}, DType::kE4M3}};
}

TEST(SliceTransfer, BringsAnyFormToAnyTarget) {
  for (const Target target : test::usable_targets())
    for (const std::size_t gap_bytes : {0u, 1000u, 100'000u}) {
      SCOPED_TRACE(std::string(name(target)) + ", gaps of " + std::to_string(gap_bytes));
      DeviceFixture on(target);
      Memory memory(gap_bytes);
      SliceTransfer transfer;
      std::vector<std::vector<std::byte>> wanted;
      std::vector<TensorView> found;
      std::int64_t stored = 0;
      for (const Stack& each : stacks(memory)) {
        wanted.push_back(oracle(memory, each.slices, each.as));
        const std::vector<std::byte> nothing(wanted.back().size() + 16, std::byte{0xee});
        found.push_back(on.put(nothing, DType::kU8, {static_cast<std::int64_t>(nothing.size())}));
        transfer.add(each.slices, each.as, found.back().as<std::byte>());
        for (const StoredSlice& slice : each.slices)
          stored +=
              slice.rows * slice.columns * static_cast<std::int64_t>(size_of(*slice.from->dtype));
      }
      std::int64_t reached = 0;
      const auto times =
          transfer.run(memory, on.stream(), [&](std::int64_t done, std::int64_t all) {
            EXPECT_GE(done, reached);
            EXPECT_LT(done, all);
            EXPECT_EQ(all, stored);
            reached = done;
          });
      ASSERT_TRUE(times) << times.status().to_string();
      EXPECT_EQ(times->bytes, stored);
      EXPECT_GE(times->readers, 1);
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        auto bytes = on.get<std::byte>(found[i]);
        for (std::size_t behind = wanted[i].size(); behind < bytes.size(); ++behind)
          EXPECT_EQ(bytes[behind], std::byte{0xee}) << "stack " << i << " wrote behind its end";
        bytes.resize(wanted[i].size());
        EXPECT_TRUE(bytes == wanted[i]) << "stack " << i;
      }
    }
}

// One reader, so that the order can be seen: a little of each of many tensors, asked for backwards.
TEST(SliceTransfer, ReadsInTheOrderOfTheFilesAndNothingTwice) {
  DeviceFixture on(Target::kCpu);
  Memory memory(4096);
  std::vector<const StoredTensor*> tensors;
  for (std::size_t i = 0; i < 12; ++i)
    tensors.push_back(&memory.make(DType::kE4M3, 64, 512, i % 3, 100'000 * i));
  SliceTransfer transfer;
  std::vector<TensorView> to;
  for (const StoredTensor* each : tensors) {
    const StoredSlice half{each, 256, 64, 256, 512};
    to.push_back(on.put(std::vector<std::byte>(64 * 256), DType::kU8, {64 * 256}));
    transfer.add({&half, 1}, DType::kE4M3, to.back().as<std::byte>());
  }
  std::vector<std::int64_t> told;
  const auto times = transfer.run(memory, on.stream(),
                                  [&](std::int64_t done, std::int64_t) { told.push_back(done); });
  ASSERT_TRUE(times) << times.status().to_string();
  ASSERT_EQ(times->readers, 1);
  ASSERT_EQ(told.size(), 11u);  // the end is not told
  for (std::size_t i = 0; i < told.size(); ++i)
    EXPECT_EQ(told[i], static_cast<std::int64_t>(i + 1) * 64 * 256);
  EXPECT_EQ(times->bytes, 12 * 64 * 256);
  ASSERT_EQ(memory.reads_.size(), tensors.size());
  EXPECT_TRUE(std::is_sorted(memory.reads_.begin(), memory.reads_.end(),
                             [](const Memory::Read& a, const Memory::Read& b) {
                               return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
                             }));
  for (const Memory::Read& each : memory.reads_) EXPECT_EQ(each.count, 63u * 512 + 256);
}

// Where a gap costs more than a second read, nothing but what is wanted is read.
TEST(SliceTransfer, LeavesWideGapsWhereTheyAre) {
  DeviceFixture on(Target::kCpu);
  Memory memory(100);
  const StoredTensor& tensor = memory.make(DType::kE4M3, 64, 512, 0, 0);
  const StoredSlice narrow{&tensor, 0, 64, 411, 512};
  const TensorView to = on.put(std::vector<std::byte>(64 * 411), DType::kU8, {64 * 411});
  SliceTransfer transfer;
  transfer.add({&narrow, 1}, DType::kE4M3, to.as<std::byte>());
  ASSERT_TRUE(transfer.run(memory, on.stream(), {}));
  std::uint64_t read = 0;
  for (const Memory::Read& each : memory.reads_) read += each.count;
  EXPECT_EQ(read, 64u * 411);
}

TEST(SliceTransfer, AFailureEndsAllReaders) {
  for (const Target target : test::usable_targets()) {
    DeviceFixture on(target);
    Memory memory(0);
    SliceTransfer transfer;
    constexpr std::int64_t kRows = 16, kColumns = 1 << 17;
    constexpr std::size_t kBytes = kRows * kColumns, kTensors = 8;
    const TensorView to = on.put(std::vector<std::byte>(kTensors * kBytes), DType::kU8,
                                 {static_cast<std::int64_t>(kTensors * kBytes)});
    for (std::size_t i = 0; i < kTensors; ++i) {
      const StoredTensor& tensor = memory.make(DType::kE4M3, kRows, kColumns, i, 0);
      const StoredSlice all = whole(tensor);
      if (i == 2) memory.fail_at(tensor);
      transfer.add({&all, 1}, DType::kE4M3, to.as<std::byte>() + i * kBytes);
    }
    const auto times = transfer.run(memory, on.stream(), {});
    ASSERT_FALSE(times);
    EXPECT_EQ(times.status().message(), "the disk has a scratch");
    std::uint64_t read = 0;
    for (const Memory::Read& each : memory.reads_) read += each.count;
    EXPECT_LT(read, kTensors * kBytes);
  }
}

TEST(SliceTransfer, SaysWhatLimitedIt) {
  TransferTimes times{4, 3, 1, 0, 100, 0};
  EXPECT_EQ(times.limit(false), "copies out of the page cache, 75 % of the time of 4 readers");
  EXPECT_EQ(times.limit(true), "making them, 75 % of the time of 4 readers");
  times.disk_bytes = 90;
  EXPECT_EQ(times.limit(false), "the disk, 75 % of the time of 4 readers");
  times.prepare_s = 6;
  EXPECT_EQ(times.limit(false), "preparing, 67 % of the time of 4 readers");
  times.send_s = 31;
  times.readers = 1;
  EXPECT_EQ(times.limit(false), "copies to the device, 78 % of the time of 1 reader");
}

}  // namespace
}  // namespace tenon
