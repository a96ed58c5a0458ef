// The bytes of a tokenizer.json and a tokenizer_config.json, and text through a good tokenizer. The
// first byte of an input says which: '0' the files (with a NUL between them), anything else text.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tenon/text/tokenizer.h"
#include "tenon/text/unicode.h"
#include "tenon/text/utf8.h"

namespace {

using tenon::StreamingDetokenizer;
using tenon::Tokenizer;

void demand(bool holds) {
  if (!holds) std::abort();
}

// A byte-level tokenizer with Qwen's pattern, a few merges and added tokens of every kind.
Tokenizer good_tokenizer() {
  std::string vocabulary, sign;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    sign.clear();
    tenon::utf8_append(sign, static_cast<char32_t>(itself ? byte : next++));
    if (sign == "\"" || sign == "\\") sign.insert(0, "\\");
    vocabulary += "\"" + sign + "\":" + std::to_string(byte) + ",";
  }
  const std::string file =
      R"({"added_tokens":[{"id":259,"content":"<|im_end|>","special":true},)"
      R"({"id":260,"content":"<l>","lstrip":true,"rstrip":true},)"
      R"({"id":261,"content":"word","single_word":true},)"
      R"({"id":262,"content":"\u00e9 \u00e9","normalized":true}],)"
      R"("normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[)"
      R"({"type":"Split","behavior":"Isolated","invert":false,"pattern":{"Regex":)"
      R"("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|)"
      R"( ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},)"
      R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},)"
      R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
      vocabulary + R"("aa":256,"aaaa":257,"ab":258},"merges":["a a","aa aa","a b"]}})";
  auto made = Tokenizer::parse(file);
  demand(static_cast<bool>(made));
  return std::move(*made);
}

void round_trip(const Tokenizer& tokenizer, std::string_view text, bool exact) {
  const auto ids = tokenizer.encode(text);
  if (!ids) return;
  const std::string whole = tokenizer.decode(*ids, false);
  StreamingDetokenizer stream(tokenizer, false);
  std::string streamed;
  for (std::int32_t id : *ids) streamed += stream.push(id);
  streamed += stream.finish();
  demand(tenon::utf8_valid(whole) && streamed == whole);
  if (!exact) return;
  // White space beside a token that takes it is all that gets lost.
  if (text.find("<l>") == std::string_view::npos)
    demand(tenon::to_nfc(whole) == tenon::to_nfc(tenon::utf8_lossy(text)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer good = good_tokenizer();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.empty()) return 0;
  if (input.front() != '0') {
    round_trip(good, input.substr(1), true);
    return 0;
  }
  const std::string_view files = input.substr(1);
  const std::size_t end = std::min(files.find('\0'), files.size());
  const auto made = Tokenizer::parse(
      files.substr(0, end), end < files.size() ? files.substr(end + 1) : std::string_view());
  if (made) round_trip(*made, "a word <|im_end|> e\xCC\x81 12 \xFF", false);
  return 0;
}
