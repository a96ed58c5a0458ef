// Reading checkpoints: what a well-formed one gives, and every way of being malformed is refused
// with a sentence that says what is wrong.
#include "tenon/models/weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <span>

#include "tests/support/tiny_model.h"

namespace tenon {
namespace {

using test::FileTensor;
using test::FileTensors;
using test::TempDirectory;
using test::write_file;

FileTensor bf16_tensor(std::vector<std::int64_t> shape, std::byte fill) {
  std::size_t bytes = 2;
  for (std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  return {"BF16", std::move(shape), std::vector<std::byte>(bytes, fill)};
}

// Length and header as given, then `data_bytes` zeros.
std::string file_with_header(const std::string& header, std::size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + std::string(data_bytes, '\0');
}

Result<StoredTensors> tensors_of(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), file.size());
}
Status parse(const std::string& file) { return tensors_of(file).status(); }

void expect_refused(const Status& status, std::string_view sentence) {
  ASSERT_FALSE(status) << "accepted, but should say: " << sentence;
  EXPECT_NE(status.message().find(sentence), std::string_view::npos) << status.message();
}

TEST(Safetensors, ReadsWhatWasWritten) {
  const FileTensors written{{"a", bf16_tensor({2, 3}, std::byte{1})},
                            {"b", bf16_tensor({}, std::byte{2})},
                            {"empty", bf16_tensor({0, 5}, std::byte{3})}};
  const std::string file = test::safetensors_bytes(written);
  const auto read = tensors_of(file);
  ASSERT_TRUE(read) << read.status().message();
  ASSERT_EQ(read->size(), written.size());
  for (const auto& [name, tensor] : written) {
    const StoredTensor& stored = read->at(name);
    EXPECT_EQ(stored.dtype, DType::kBF16);
    EXPECT_EQ(stored.shape, tensor.shape);
    ASSERT_EQ(stored.bytes, tensor.bytes.size());
    ASSERT_LE(stored.offset + stored.bytes, file.size());
    EXPECT_TRUE(std::equal(
        tensor.bytes.begin(), tensor.bytes.end(),
        std::as_bytes(std::span(file)).begin() + static_cast<std::ptrdiff_t>(stored.offset)));
  }
}

TEST(Safetensors, SkipsMetadataAndKnowsExoticTypes) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}})";
  const auto read = tensors_of(file_with_header(header, 16));
  ASSERT_TRUE(read) << read.status().message();
  ASSERT_EQ(read->size(), 1u);
  EXPECT_FALSE(read->at("x").dtype.has_value());
}

TEST(Safetensors, RefusesLyingHeaders) {
  const auto one = [](const std::string& entry, std::size_t bytes) {
    return file_with_header("{\"x\":" + entry + "}", bytes);
  };
  expect_refused(parse(""), "0 bytes but a header length alone takes 8");
  expect_refused(parse(std::string(7, '\0')), "7 bytes");
  expect_refused(parse(std::string(8, '\xff')), "the header claims 18446744073709551615");
  expect_refused(parse(file_with_header("{}", 0).substr(0, 9)), "the header claims 2 bytes");
  expect_refused(parse(file_with_header("[]", 0)), "not an object");
  expect_refused(parse(file_with_header("{\"x\":", 0)), "not valid JSON");
  expect_refused(parse(file_with_header("{\"a\xff\":1}", 0)), "not valid JSON");
  expect_refused(parse(one("[]", 0)), "its entry is not an object");
  expect_refused(parse(one(R"({"shape":[2],"data_offsets":[0,4]})", 4)), "no \"dtype\"");
  expect_refused(parse(one(R"({"dtype":"Q7","shape":[2],"data_offsets":[0,4]})", 4)),
                 "\"Q7\" is not known");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[-2],"data_offsets":[0,4]})", 4)), "shape");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[1.5],"data_offsets":[0,4]})", 4)), "shape");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":2,"data_offsets":[0,4]})", 4)), "shape");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[2],"data_offsets":[0]})", 4)),
                 "data_offsets");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[2],"data_offsets":[4,0]})", 4)),
                 "do not lie in the file's 4 data bytes");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[2],"data_offsets":[0,8]})", 4)),
                 "do not lie in the file's 4 data bytes");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[3],"data_offsets":[0,4]})", 4)),
                 "hold 4 bytes but BF16 [3] has 6");
  expect_refused(
      parse(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0)),
      "more bytes than any file");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[2],"data_offsets":[0,4]})", 6)),
                 "the last 2 bytes belong to no tensor");
  expect_refused(parse(one(R"({"dtype":"BF16","shape":[2],"data_offsets":[2,6]})", 6)),
                 "2 bytes that no tensor owns in front of \"x\"");
  const std::string entry = R"({"dtype":"BF16","shape":[2],"data_offsets":[0,4]})";
  expect_refused(parse(file_with_header("{\"x\":" + entry + ",\"x\":" + entry + "}", 4)),
                 "the key \"x\" twice");
  expect_refused(parse(file_with_header("{\"x\":" + entry + ",\"y\":" + entry + "}", 4)),
                 "\"y\" overlaps the one before it");
  expect_refused(
      parse(one(R"({"dtype":"BF16","dtype":"F16","shape":[2],"data_offsets":[0,4]})", 4)),
      "the key \"dtype\" twice");
}

// Whatever happens to a file, reading either works or refuses; the sanitizers watch the rest.
TEST(Safetensors, SurvivesTruncationAndMutation) {
  const std::string good = test::safetensors_bytes(
      {{"a", bf16_tensor({2, 3}, std::byte{1})}, {"b.c", bf16_tensor({4}, std::byte{2})}});
  for (std::size_t length = 0; length < good.size(); ++length)
    EXPECT_FALSE(parse(good.substr(0, length))) << "accepted the first " << length << " bytes";

  std::mt19937 random(7);
  const std::string interesting = "{}[]\":,0123456789-eE.\\u\xff\x80 nft";
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = good;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int edit = 0; edit < edits; ++edit) {
      const std::size_t at = random() % file.size();
      if (random() % 4 == 0)
        file.erase(at, 1 + random() % 8);
      else
        file[at] = random() % 2 == 0 ? interesting[random() % interesting.size()]
                                     : static_cast<char>(random());
    }
    const std::vector<char> exact(file.begin(), file.end());  // no slack behind the last byte
    const auto read = parse_safetensors(std::as_bytes(std::span(exact)), exact.size());
    refused += !read;
    if (!read) continue;
    for (const auto& [name, tensor] : *read) {  // every byte that a tensor claims is in the file
      ASSERT_LE(tensor.offset, exact.size());
      ASSERT_LE(tensor.bytes, exact.size() - tensor.offset);
    }
  }
  EXPECT_GT(refused, 5000);
}

class Checkpoint : public ::testing::Test {
 protected:
  const FileTensors first_{{"a", bf16_tensor({2, 3}, std::byte{1})},
                           {"b", bf16_tensor({4}, std::byte{2})}};
  const FileTensors second_{{"c", bf16_tensor({1}, std::byte{3})}};
  TempDirectory directory_;

  void write_shards() {
    write_file(directory_ / "one.safetensors", test::safetensors_bytes(first_));
    write_file(directory_ / "two.safetensors", test::safetensors_bytes(second_));
  }
  void write_index(std::string_view json) {
    write_file(directory_ / "model.safetensors.index.json", json);
  }
  Status open() { return Weights::open(directory_.path().string()).status(); }
};

TEST_F(Checkpoint, TakesEveryTensorOnce) {
  write_shards();
  write_index(
      R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})");
  auto weights = Weights::open(directory_.path().string());
  ASSERT_TRUE(weights) << weights.status().message();
  EXPECT_TRUE(weights->has("a"));
  EXPECT_FALSE(weights->has("d"));
  EXPECT_EQ(weights->dtype("a"), DType::kBF16);
  EXPECT_EQ(weights->bytes_wanted({}), 12 + 8 + 2);

  const auto taken = weights->take("a", {DType::kF32, DType::kBF16}, {2, 3});
  ASSERT_TRUE(taken) << taken.status().message();
  EXPECT_EQ(taken->rows(), 2);
  EXPECT_EQ(taken->columns(), 3);
  std::array<std::byte, 3> read{};
  const auto reader = taken->source->reader();
  ASSERT_TRUE(reader->read(*taken->stored, 10, 2, read.data()));
  EXPECT_EQ(read, (std::array{std::byte{1}, std::byte{1}, std::byte{0}}));
  EXPECT_EQ(weights->bytes_taken(), 12);
  expect_refused(weights->take("a", {DType::kBF16}, {2, 3}).status(),
                 "\"a\" is taken a second time");

  expect_refused(weights->take("d", {DType::kBF16}, {1}).status(),
                 "tensor \"d\" is missing; wanted bf16 [1]");
  expect_refused(weights->take("b", {DType::kBF16}, {5}).status(),
                 "tensor \"b\" is BF16 [4]; wanted bf16 [5]");
  expect_refused(weights->take("b", {DType::kF32, DType::kF16}, {4}).status(),
                 "tensor \"b\" is BF16 [4]; wanted f32 or f16 [4]");

  const std::string_view skipped[] = {"c"};
  expect_refused(weights->finish({}),
                 "holds 2 tensors that this model has no place for: \"b\", \"c\"");
  expect_refused(weights->finish(skipped),
                 "holds 1 tensors that this model has no place for: \"b\"");
  EXPECT_EQ(weights->bytes_wanted(skipped), 12 + 8);
  ASSERT_TRUE(weights->take("b", {DType::kBF16}, {4}));
  EXPECT_TRUE(weights->finish(skipped));
}

TEST_F(Checkpoint, ReadsASingleFile) {
  write_file(directory_ / "model.safetensors", test::safetensors_bytes(first_));
  auto weights = Weights::open(directory_.path().string());
  ASSERT_TRUE(weights) << weights.status().message();
  EXPECT_TRUE(weights->take("b", {DType::kBF16}, {4}));
}

TEST_F(Checkpoint, RefusesBrokenDirectories) {
  expect_refused(Weights::open(directory_ / "nowhere").status(), "holds neither");
  expect_refused(open(), "holds neither model.safetensors.index.json nor model.safetensors");
  write_shards();
  write_index("nonsense");
  expect_refused(open(), "is not valid JSON");
  write_index("[1]");
  expect_refused(open(), "is not a JSON object");
  write_index(R"({"weight_map":[]})");
  expect_refused(open(), "no \"weight_map\" object");
  write_index(R"({"weight_map":{"a":7}})");
  expect_refused(open(), "the file of \"a\" is not a string");
  write_index(R"({"weight_map":{"a":"../one.safetensors"}})");
  expect_refused(open(), "not a plain file name");
  write_index(R"({"weight_map":{"a":"three.safetensors"}})");
  expect_refused(open(), "names the file three.safetensors, which is missing");
  write_index(R"({"weight_map":{"a":"one.safetensors"}})");
  expect_refused(open(), "holds \"b\", which the index does not know");
  write_index(
      R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"one.safetensors"}})");
  expect_refused(open(), "places \"c\" in one.safetensors, which does not hold it");
  write_index(
      R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})");
  expect_refused(open(), "holds \"b\", which the index places in two.safetensors");
  write_file(directory_ / "two.safetensors", "");
  write_index(
      R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})");
  expect_refused(open(), "two.safetensors: the file has 0 bytes");
  std::filesystem::remove(directory_.path() / "two.safetensors");
  std::filesystem::create_directory(directory_.path() / "two.safetensors");
  expect_refused(open(), "accepted: a regular file");
}

}  // namespace
}  // namespace tenon
