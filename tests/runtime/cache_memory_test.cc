// Caches as data: bytes, views, what is cleared, and what is refused before it is touched.
#include "tenon/runtime/cache_memory.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace tenon {
namespace {

using Per = CacheSpec::Per;

CacheLayout two_kinds() {
  CacheLayout layout;
  layout.caches = {{"codes", DType::kE4M3, Per::kBlock, {64, 2}},
                   {"state", DType::kF32, Per::kSequence, {3, 5}},
                   {"scales", DType::kF32, Per::kBlock, {2}}};
  return layout;
}

TEST(CacheLayout, CountsWhatASpecSays) {
  const CacheLayout layout = two_kinds();
  EXPECT_EQ(layout.caches[0].part_bytes(), 128);
  EXPECT_EQ(layout.block_bytes(), 128 + 8);
  EXPECT_EQ(layout.sequence_bytes(), 60);
  const TensorView seen = layout.caches[1].tensor(nullptr, Device{}, 7);
  EXPECT_EQ(describe(seen), "f32 [7, 3, 5] on cpu:0");
  EXPECT_TRUE(seen.contiguous());
}

TEST(CacheMemory, ClearsThePartsOfOneSequence) {
  auto stream = Stream::create(Device{});
  ASSERT_TRUE(stream);
  // 2 sequences of 2 blocks each.
  auto memory = CacheMemory::allocate(two_kinds(), {100, 2, 1}, *stream);
  ASSERT_TRUE(memory) << memory.status().to_string();
  const CacheViews views = memory->views();
  ASSERT_EQ(views.size(), 3u);
  const std::vector<std::int64_t> parts{4, 2, 4};
  for (std::size_t i = 0; i < views.size(); ++i) {
    EXPECT_EQ(views[i].shape[0], parts[i]);
    auto* bytes = views[i].as<std::uint8_t>();
    EXPECT_TRUE(std::all_of(bytes, bytes + views[i].bytes(), [](auto byte) { return byte == 0; }));
    std::fill_n(bytes, views[i].bytes(), std::uint8_t{0xff});
  }
  const std::vector<std::int32_t> blocks{0, 2};
  ASSERT_TRUE(memory->clear({blocks, 1}, *stream));
  for (std::size_t i = 0; i < views.size(); ++i)
    for (std::int64_t part = 0; part < parts[i]; ++part) {
      const bool is_cleared = i == 1 ? part == 1 : part == 0 || part == 2;
      const TensorView one = views[i].rows(part, 1);
      const auto* bytes = one.as<std::uint8_t>();
      const auto wanted = static_cast<std::uint8_t>(is_cleared ? 0 : 0xff);
      EXPECT_TRUE(
          std::all_of(bytes, bytes + one.bytes(), [&](auto byte) { return byte == wanted; }))
          << "cache " << i << ", part " << part;
    }
}

TEST(CacheMemory, RefusesWhatCannotFit) {
  auto stream = Stream::create(Device{});
  ASSERT_TRUE(stream);
  CacheLayout layout;
  layout.caches = {{"large", DType::kF32, Per::kBlock, {64, 1 << 20}}};  // 256 MiB a block
  const Status refused = CacheMemory::allocate(layout, {1 << 20, 4, 2}, *stream).status();
  EXPECT_EQ(refused.code(), Code::kOutOfMemory);
  for (const char* piece : {"max_context 1048576 with max_batch 4 asks for", "accepted are"})
    EXPECT_NE(refused.message().find(piece), std::string_view::npos) << refused.to_string();
  layout.block_tokens = 32;
  EXPECT_EQ(CacheMemory::allocate(layout, {64, 1, 1}, *stream).status().message(),
            "the model wants cache blocks of 32 tokens; the engine has blocks of 64");
}

}  // namespace
}  // namespace tenon
