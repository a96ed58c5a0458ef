// The tokenizer against goldens of the PyPI package `tokenizers` (tools/tokenizer_goldens.py), the
// merge loop against the plainest possible one, and every refusal of tokenizer.json by its
// sentence.
#include "tenon/text/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "tenon/text/bpe.h"
#include "tenon/text/utf8.h"
#include "tests/support/patience.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;

std::string read(const std::string& path) {
  std::ifstream file(std::string(TENON_SOURCE_DIR) + "/" + path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

Tokenizer small() {
  auto tokenizer = Tokenizer::parse(read("tests/data/tokenizer/small.json"));
  EXPECT_TRUE(tokenizer) << tokenizer.status().to_string();
  return std::move(*tokenizer);
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamingDetokenizer stream(tokenizer, skip_special);
  std::string text;
  for (std::int32_t id : ids) {
    const std::string part = stream.push(id);
    EXPECT_TRUE(utf8_valid(part));
    text += part;
  }
  return text + stream.finish();
}

void expect_decodes(const Tokenizer& tokenizer, const Json& golden) {
  const auto ids = golden["ids"].get<Ids>();
  for (bool skip_special : {false, true}) {
    const auto wanted = golden[skip_special ? "skipped" : "kept"].get<std::string>();
    EXPECT_EQ(tokenizer.decode(ids, skip_special), wanted) << golden.dump();
    EXPECT_EQ(streamed(tokenizer, ids, skip_special), wanted) << golden.dump();
  }
}

TEST(Tokenizer, AgreesWithTheReferenceOnEveryGolden) {
  const Json goldens = Json::parse(read("tests/data/tokenizer/goldens.json"));
  ASSERT_EQ(goldens.size(), 2u);
  for (const Json& file : goldens) {
    auto tokenizer = Tokenizer::parse(read(file["tokenizer"].get<std::string>()));
    ASSERT_TRUE(tokenizer) << tokenizer.status().to_string();
    ASSERT_GT(file["cases"].size(), 200u);
    for (const Json& golden : file["cases"]) {
      const std::string text = from_hex(golden["hex"].get<std::string>());
      auto ids = tokenizer->encode(text);
      ASSERT_TRUE(ids) << ids.status().to_string();
      EXPECT_EQ(*ids, golden["ids"].get<Ids>()) << text;
      expect_decodes(*tokenizer, golden);
    }
    for (const Json& golden : file["decoding"]) expect_decodes(*tokenizer, golden);
  }
}

// TENON_TOKENIZER_FUZZ=cases.jsonl (tools/tokenizer_goldens.py --fuzz) and TENON_TOKENIZER_FILE
// compare on many more; without them this is skipped.
TEST(Tokenizer, AgreesWithTheReferenceOnAFuzzFile) {
  const char* cases = std::getenv("TENON_TOKENIZER_FUZZ");
  const char* path = std::getenv("TENON_TOKENIZER_FILE");
  if (!cases || !path) GTEST_SKIP() << "no fuzz file given";
  std::ifstream model(path, std::ios::binary), lines(cases);
  auto tokenizer = Tokenizer::parse(std::string(std::istreambuf_iterator<char>(model), {}));
  ASSERT_TRUE(tokenizer) << tokenizer.status().to_string();
  int count = 0, wrong = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const Json golden = Json::parse(line);
    auto ids = tokenizer->encode(from_hex(golden["hex"].get<std::string>()));
    ASSERT_TRUE(ids) << ids.status().to_string();
    const bool same = *ids == golden["ids"].get<Ids>() &&
                      tokenizer->decode(*ids, false) == golden["kept"].get<std::string>() &&
                      streamed(*tokenizer, *ids, true) == golden["skipped"].get<std::string>();
    if (!same && ++wrong <= 20) ADD_FAILURE() << golden.dump() << "\n ours " << Json(*ids).dump();
  }
  std::printf("%d cases, %d differ\n", count, wrong);
  EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, AddsTheTokensOfTheConfigurationAsTheReference) {
  const Json goldens = Json::parse(read("tests/data/tokenizer/configs.json"));
  ASSERT_GT(goldens.size(), 10u);
  const Json base = Json::parse(read("tests/data/tokenizer/small.json"));
  for (const Json& one : goldens) {
    Json file = base;
    file["added_tokens"] = one["added_tokens"];
    auto tokenizer = Tokenizer::parse(file.dump(), one["config"].dump());
    ASSERT_TRUE(tokenizer) << one["config"].dump() << "\n " << tokenizer.status().to_string();
    EXPECT_EQ(tokenizer->eos_id(), one["eos"].get<int>()) << one["config"].dump();
    EXPECT_EQ(tokenizer->num_tokens(), one["size"].get<int>()) << one["config"].dump();
    for (const Json& golden : one["cases"]) {
      const std::string text = from_hex(golden["hex"].get<std::string>());
      auto ids = tokenizer->encode(text);
      ASSERT_TRUE(ids) << ids.status().to_string();
      EXPECT_EQ(*ids, golden["ids"].get<Ids>()) << '"' << text << "\" " << one["config"].dump();
      expect_decodes(*tokenizer, golden);
    }
  }
}

TEST(Tokenizer, LoadsBothFilesOfACheckpoint) {
  const std::string folder = testing::TempDir() + "tenon_tokenizer_" + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder + "/" + name) << text;
  };
  Json file = Json::parse(read("checkpoints/tiny/tokenizer.json"));
  file["added_tokens"].erase(file["added_tokens"].begin() + 2, file["added_tokens"].end());
  write("tokenizer.json", file.dump());
  auto bare = Tokenizer::load(folder);
  ASSERT_TRUE(bare) << bare.status().to_string();
  EXPECT_GT(bare->encode("hi<|im_end|>")->size(), 4u);
  EXPECT_EQ(bare->eos_id(), -1);
  write("tokenizer_config.json", read("checkpoints/tiny/tokenizer_config.json"));
  auto whole = Tokenizer::load(folder);
  ASSERT_TRUE(whole) << whole.status().to_string();
  EXPECT_EQ(whole->eos_id(), 962);
  EXPECT_EQ(whole->encode("hi<|im_end|>")->back(), 962);
  write("tokenizer_config.json", "{");
  EXPECT_FALSE(Tokenizer::load(folder));
  std::filesystem::remove_all(folder);
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = small();
  const std::int32_t end = tokenizer.id_of("<|im_end|>");
  ASSERT_GE(end, 0);
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_EQ(tokenizer.token_bytes(end), "<|im_end|>");
  const std::int32_t think = tokenizer.id_of("<think>");
  EXPECT_FALSE(tokenizer.is_special(think));
  EXPECT_EQ(tokenizer.decode(Ids{end, think}), "<think>");
  EXPECT_EQ(tokenizer.id_of("no such token"), -1);
  for (std::int32_t id : {-1, tokenizer.num_tokens(), 1 << 30}) {
    EXPECT_EQ(tokenizer.token_bytes(id), "");
    EXPECT_FALSE(tokenizer.is_special(id));
  }
}

TEST(StreamingDetokenizer, HoldsBackUnfinishedCharacters) {
  const Tokenizer tokenizer = small();
  auto byte = [&](unsigned char value) {
    for (std::int32_t id = 0; id < tokenizer.num_tokens(); ++id)
      if (tokenizer.token_bytes(id) == std::string(1, static_cast<char>(value))) return id;
    return -1;
  };
  StreamingDetokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(byte(0xF0)), "");
  EXPECT_EQ(stream.push(byte(0x9F)), "");
  EXPECT_EQ(stream.push(byte(0x98)), "");
  EXPECT_EQ(stream.push(byte(0x80)), "😀");
  EXPECT_EQ(stream.push(byte(0xE4)), "");
  EXPECT_EQ(stream.push(byte('x')), "\uFFFDx");  // broken for certain: shown at once
  EXPECT_EQ(stream.push(byte(0xC3)), "");
  EXPECT_EQ(stream.push(tokenizer.id_of("<|im_end|>")), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

// The plainest merge loop: find the lowest rank, leftmost, merge it, start again.
Ids merged_plainly(const MergeTable& table, Ids symbols) {
  for (;;) {
    std::size_t where = symbols.size();
    MergeTable::Merge best;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto merge = table.find(symbols[i], symbols[i + 1]);
      if (merge.rank < best.rank) best = merge, where = i;
    }
    if (where == symbols.size()) return symbols;
    symbols[where] = best.made;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

TEST(BpeMerger, IsThePlainLoopForRandomTables) {
  std::mt19937 random(5);
  BpeMerger merger;
  for (int round = 0; round < 300; ++round) {
    MergeTable table;
    std::int32_t next = 4;
    for (int i = 0; i < 40; ++i) {
      const auto left = static_cast<std::int32_t>(random() % static_cast<unsigned>(next));
      const auto right = static_cast<std::int32_t>(random() % static_cast<unsigned>(next));
      if (table.add(left, right, next)) ++next;
    }
    Ids symbols(random() % 120);
    for (auto& symbol : symbols) symbol = static_cast<std::int32_t>(random() % 4);
    const Ids wanted = merged_plainly(table, symbols);
    merger.merge(table, symbols);
    EXPECT_EQ(symbols, wanted);
  }
}

std::string repeated(std::string_view part, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

// Some 2 MB of what could make a part of the path quadratic: that would take many minutes.
TEST(Tokenizer, NothingTakesQuadraticTime) {
  Json file = Json::parse(read("tests/data/tokenizer/small.json"));
  for (int i = 0; i < 300; ++i)
    file["added_tokens"].push_back(
        {{"id", 1154 + i},
         {"content", std::string("<").append(static_cast<std::size_t>(1 + i), '~').append(">")},
         {"special", true},
         {"rstrip", i % 2 == 0},
         {"lstrip", i % 3 == 0}});
  auto made = Tokenizer::parse(file.dump());
  ASSERT_TRUE(made) << made.status().to_string();
  std::string letters;
  std::mt19937 random(3);
  for (int i = 0; i < 2'000'000; ++i) letters.push_back(static_cast<char>('a' + random() % 26));
  constexpr std::size_t kBytes = 2'000'000;
  for (const auto& [what, text] : std::vector<std::pair<std::string, std::string>>{
           {"letters", letters},
           {"one letter", std::string(kBytes, 'a')},
           {"marks of two classes in turn", repeated("\u0301\u0316", kBytes)},
           {"one mark", "a" + repeated("\u0301", kBytes)},
           {"falling classes", repeated("\u0345\u0301\u0316\u05b0\u0334", kBytes)},
           {"spaces", std::string(kBytes, ' ')},
           {"spaces before a letter", std::string(kBytes, ' ') + "a"},
           {"newlines", std::string(kBytes, '\n')},
           {"spaces and newlines in turn", repeated(" \n", kBytes)},
           {"carriage returns and letters", repeated("\r  a", kBytes)},
           {"digits", std::string(kBytes, '7')},
           {"punctuation", std::string(kBytes, '!')},
           {"punctuation before newlines",
            repeated("!", kBytes / 2) + repeated("\r\n", kBytes / 2)},
           {"apostrophes", std::string(kBytes, '\'')},
           {"beginnings of added tokens", repeated("<~~~~~~~~~", kBytes)},
           {"almost an added token", repeated(std::string("<").append(299, '~'), kBytes)},
           {"added tokens between spaces", repeated("<~>   <~~>  ", kBytes)},
           {"added tokens", repeated("<|im_end|>", kBytes)},
           {"Hangul", repeated("\u1112\u1161\u11ab", kBytes)},
           {"emoji", repeated("\U0001F469\u200D", kBytes)},
           {"broken UTF-8", std::string(kBytes, '\xF0')},
       }) {
    const auto begin = std::chrono::steady_clock::now();
    auto ids = made->encode(text);
    ASSERT_TRUE(ids) << what << ": " << ids.status().to_string();
    EXPECT_FALSE(made->decode(*ids, false).empty()) << what;
    std::size_t bytes = 0;
    StreamingDetokenizer stream(*made, false);
    for (std::int32_t id : *ids) bytes += stream.push(id).size();
    EXPECT_GT(bytes + stream.finish().size(), 0u) << what;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (taken.count() > 1) std::printf("%s: %.1f s\n", what.c_str(), taken.count());
    EXPECT_LT(taken.count(), 30.0 * test::kSlowdown) << what;  // some tenths of a second
  }
}

TEST(Utf8, FindsEveryCharacterAndNothingElse) {
  for (char32_t code = 0; code < 0x110000; code += (code < 0x3000 ? 1 : 61)) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    utf8_append(text, code);
    const Utf8Character found = utf8_first(text);
    ASSERT_EQ(found.kind, Utf8Character::Kind::kValid);
    ASSERT_EQ(found.code, code);
    ASSERT_EQ(static_cast<std::size_t>(found.num_bytes), text.size());
    for (std::size_t cut = 1; cut < text.size(); ++cut)
      ASSERT_EQ(utf8_first(text.substr(0, cut)).kind, Utf8Character::Kind::kIncomplete);
  }
  EXPECT_FALSE(utf8_valid("\xED\xA0\x80"));      // a surrogate
  EXPECT_FALSE(utf8_valid("\xC0\x80"));          // overlong
  EXPECT_FALSE(utf8_valid("\xF4\x90\x80\x80"));  // past U+10FFFF
  EXPECT_EQ(utf8_count("añ😀"), 3u);
}

// small.json with one thing changed.
Status refusal(const std::function<void(Json&)>& change) {
  Json file = Json::parse(read("tests/data/tokenizer/small.json"));
  change(file);
  return Tokenizer::parse(file.dump()).status();
}

void expect_refused(const std::function<void(Json&)>& change, Code code,
                    const std::string& mentions) {
  const Status status = refusal(change);
  EXPECT_EQ(status.code(), code) << mentions;
  EXPECT_NE(status.message().find(mentions), std::string_view::npos)
      << status.to_string() << "\n does not mention: " << mentions;
}

TEST(TokenizerFile, RefusesWhatIsNotImplemented) {
  const Code no = Code::kUnsupported;
  expect_refused([](Json& f) { f["model"]["type"] = "Unigram"; }, no, "Unigram");
  expect_refused([](Json& f) { f["model"]["dropout"] = 0.1; }, no, "dropout");
  expect_refused([](Json& f) { f["model"]["byte_fallback"] = true; }, no, "byte_fallback");
  expect_refused([](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, no, "</w>");
  expect_refused([](Json& f) { f["model"]["continuing_subword_prefix"] = "##"; }, no, "##");
  expect_refused([](Json& f) { f["normalizer"] = {{"type", "Lowercase"}}; }, no, "Lowercase");
  expect_refused([](Json& f) { f["normalizer"] = {{"type", "NFKC"}}; }, no, "NFKC");
  expect_refused([](Json& f) { f["pre_tokenizer"] = {{"type", "Metaspace"}}; }, no, "Metaspace");
  expect_refused([](Json& f) { f["pre_tokenizer"] = nullptr; }, no, "pre_tokenizer");
  auto split = [](Json& f) -> Json& { return f["pre_tokenizer"]["pretokenizers"][0]; };
  auto byte_level = [](Json& f) -> Json& { return f["pre_tokenizer"]["pretokenizers"][1]; };
  expect_refused([&](Json& f) { split(f)["behavior"] = "Removed"; }, no, "Removed");
  expect_refused([&](Json& f) { split(f)["invert"] = true; }, no, "invert");
  expect_refused([&](Json& f) { split(f)["pattern"] = {{"String", " "}}; }, no, "String");
  expect_refused([&](Json& f) { split(f)["pattern"]["Regex"] = "[\\S]"; }, no, "\\S");
  expect_refused([&](Json& f) { byte_level(f)["use_regex"] = true; }, no, "use_regex");
  expect_refused([&](Json& f) { byte_level(f)["add_prefix_space"] = true; }, no,
                 "add_prefix_space");
  expect_refused([](Json& f) { f["decoder"] = {{"type", "Metaspace"}}; }, no, "decoder");
  expect_refused(
      [](Json& f) {
        f["post_processor"] = {{"type", "TemplateProcessing"}};
      },
      no, "TemplateProcessing");
  expect_refused([&](Json& f) { split(f)["pattern"]["Regex"] = "[\\P{L}]"; }, no, "\\P{L}");
}

TEST(TokenizerFile, IgnoresTruncationAndPadding) {
  Json file = Json::parse(read("tests/data/tokenizer/small.json"));
  file["truncation"] = {
      {"direction", "Right"}, {"max_length", 3}, {"strategy", "LongestFirst"}, {"stride", 0}};
  file["padding"] = {{"strategy", {{"Fixed", 100}}}, {"direction", "Left"}, {"pad_id", 0}};
  auto tokenizer = Tokenizer::parse(file.dump());
  ASSERT_TRUE(tokenizer) << tokenizer.status().to_string();
  const std::string text = "The quick brown fox jumps over the lazy dog.";
  EXPECT_EQ(*tokenizer->encode(text), *small().encode(text));
}

TEST(TokenizerFile, RefusesABrokenConfiguration) {
  const std::string file = read("tests/data/tokenizer/small.json");
  auto expect = [&](const Json& config, const std::string& mentions) {
    const Status status = Tokenizer::parse(file, config.dump()).status();
    EXPECT_EQ(status.code(), Code::kIo) << mentions;
    EXPECT_NE(status.message().find(mentions), std::string_view::npos) << status.to_string();
    EXPECT_NE(status.message().find("tokenizer_config.json"), std::string_view::npos);
  };
  auto listed = [](const char* id, const Json& token) {
    return Json{{"added_tokens_decoder", {{id, token}}}};
  };
  expect(Json::array(), "object");
  expect({{"added_tokens_decoder", 5}}, "added_tokens_decoder");
  expect(listed("x1", {{"content", "<A>"}}), "x1");
  expect(listed("-1", {{"content", "<A>"}}), "-1");
  expect(listed("1154", {{"special", true}}), "content");
  expect(listed("1154", {{"content", "<A>"}, {"lstrip", 1}}), "lstrip");
  expect(listed("1160", {{"content", "<A>"}}), "free is 1154");    // a gap
  expect(listed("5", {{"content", "<A>"}}), "free is 1154");       // taken
  expect(listed("1154", {{"content", "<|im_end|>"}}), "it 1147");  // two ids
  expect({{"eos_token", 5}}, "eos_token");
  const std::string deep(100'000, '[');
  EXPECT_FALSE(Tokenizer::parse(file, deep));
  EXPECT_FALSE(Tokenizer::parse(file, "{\"a\": " + deep + std::string(100'000, ']') + "}"));
  EXPECT_FALSE(Tokenizer::parse("{\"model\": " + deep + std::string(100'000, ']') + "}"));
}

TEST(TokenizerFile, RefusesWhatIsBroken) {
  const Code no = Code::kIo;
  auto broken = [](const std::string& text) { return Tokenizer::parse(text).status().code(); };
  const std::string whole = read("tests/data/tokenizer/small.json");
  EXPECT_EQ(broken(""), no);
  EXPECT_EQ(broken("[1, 2]"), no);
  EXPECT_EQ(broken("{}"), no);
  EXPECT_EQ(broken(whole.substr(0, whole.size() / 2)), no);
  EXPECT_EQ(broken(std::string(100'000, '[')), no);
  expect_refused([](Json& f) { f["model"].erase("vocab"); }, no, "vocab");
  expect_refused([](Json& f) { f["model"].erase("merges"); }, no, "merges");
  expect_refused([](Json& f) { f["model"]["vocab"].erase("a"); }, no, "97");
  expect_refused([](Json& f) { f["model"]["vocab"]["a"] = -3; }, no, "-3");
  expect_refused([](Json& f) { f["model"]["vocab"]["a"] = "x"; }, no, "\"a\"");
  expect_refused([](Json& f) { f["model"]["vocab"]["a"] = 1ll << 40; }, no, "integer");
  expect_refused([](Json& f) { f["model"]["vocab"]["a"] = f["model"]["vocab"]["b"]; }, no,
                 "two tokens");
  expect_refused([](Json& f) { f["model"]["merges"][3] = "x\u0100 y"; }, no, "merge number 3");
  expect_refused([](Json& f) { f["model"]["merges"][3] = "one two three"; }, no, "one two three");
  expect_refused([](Json& f) { f["model"]["merges"][3] = 5; }, no, "a merge must be");
  expect_refused([](Json& f) { f["model"]["merges"][3] = f["model"]["merges"][2]; }, no, "twice");
  expect_refused([](Json& f) { f["added_tokens"] = 7; }, no, "added_tokens");
  expect_refused([](Json& f) { f["added_tokens"][0].erase("content"); }, no, "content");
  expect_refused([](Json& f) { f["added_tokens"][0].erase("id"); }, no, "<|im_start|>");
  auto split = [](Json& f) -> Json& { return f["pre_tokenizer"]["pretokenizers"][0]; };
  expect_refused([&](Json& f) { split(f)["pattern"]["Regex"] = "(a"; }, no, "does not compile");
  EXPECT_EQ(Tokenizer::load("/no/such/folder").status().code(), no);
}

TEST(TokenizerFile, AcceptsBothSpellingsOfMerges) {
  Json file = Json::parse(read("tests/data/tokenizer/small.json"));
  for (Json& merge : file["model"]["merges"])
    if (merge.is_array()) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  auto other = Tokenizer::parse(file.dump());
  ASSERT_TRUE(other) << other.status().to_string();
  const std::string text = "The quick brown fox: 人人生而自由";
  EXPECT_EQ(*other->encode(text), *small().encode(text));
}

}  // namespace
}  // namespace tenon
