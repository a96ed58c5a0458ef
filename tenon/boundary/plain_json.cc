#include "tenon/boundary/plain_json.h"

#include <algorithm>
#include <charconv>

namespace tenon {
namespace {

constexpr int kMostLevels = 8;
constexpr std::string_view kEscaped = "\"\\/\b\f\n\r\t", kLetters = "\"\\/bfnrt";

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Result<PlainJson> read() {
    TENON_ASSIGN(PlainJson value, value_at(0));
    skip();
    if (at_ < text_.size()) return wrong("something follows the value");
    return value;
  }

 private:
  Status wrong(const std::string& why) const {
    return Status::error(Code::kIo,
                         "is not accepted as JSON: byte " + std::to_string(at_) + ": " + why);
  }
  void skip() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
  }
  // Whether this character is next; it is then passed.
  bool took(char wanted) {
    skip();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  Result<PlainJson> value_at(int level) {
    if (level >= kMostLevels) return wrong("more than " + std::to_string(kMostLevels) + " levels");
    skip();
    const std::size_t begin = at_;
    PlainJson value;
    if (took('{')) {
      TENON_TRY(object_into(value, level));
    } else if (took('[')) {
      TENON_TRY(list_into(value, level));
    } else if (at_ < text_.size() && text_[at_] == '"') {
      value.kind = PlainJson::Kind::kText;
      TENON_ASSIGN(value.text, quoted_text());
      return value;
    } else {
      TENON_TRY(number_into(value));
    }
    value.text = text_.substr(begin, at_ - begin);
    return value;
  }

  Status object_into(PlainJson& value, int level) {
    value.kind = PlainJson::Kind::kObject;
    if (took('}')) return Status::ok();
    do {
      skip();
      if (at_ >= text_.size() || text_[at_] != '"') return wrong("a key in quotes is missing");
      TENON_ASSIGN(std::string key, quoted_text());
      if (value.find(key) != nullptr) return wrong("the key " + in_quotes(key) + " is there twice");
      if (!took(':')) return wrong("a colon is missing");
      TENON_ASSIGN(PlainJson item, value_at(level + 1));
      value.keys.push_back(std::move(key));
      value.items.push_back(std::move(item));
    } while (took(','));
    return took('}') ? Status::ok() : wrong("a comma or } is missing");
  }

  Status list_into(PlainJson& value, int level) {
    value.kind = PlainJson::Kind::kList;
    if (took(']')) return Status::ok();
    do {
      TENON_ASSIGN(PlainJson item, value_at(level + 1));
      value.items.push_back(std::move(item));
    } while (took(','));
    return took(']') ? Status::ok() : wrong("a comma or ] is missing");
  }

  Status number_into(PlainJson& value) {
    value.kind = PlainJson::Kind::kNumber;
    const char* const begin = text_.data() + at_;
    const char* const end = text_.data() + text_.size();
    const auto [stop, error] = std::from_chars(begin, end, value.number);
    const bool whole = stop == end || std::string_view(".eE0123456789").find(*stop) == text_.npos;
    if (error != std::errc() || !whole)
      return wrong("no object, list, text in quotes or whole number");
    at_ += static_cast<std::size_t>(stop - begin);
    return Status::ok();
  }

  Result<std::string> quoted_text() {
    std::string read;
    for (++at_; at_ < text_.size(); ++at_) {
      const char next = text_[at_];
      if (next == '"') {
        ++at_;
        return read;
      }
      if (static_cast<unsigned char>(next) < ' ') return wrong("a control character in a text");
      if (next != '\\') {
        read += next;
        continue;
      }
      const auto which = ++at_ < text_.size() ? kLetters.find(text_[at_]) : kLetters.npos;
      if (which == kLetters.npos)
        return wrong("an escape that is not one of " + std::string(kLetters));
      read += kEscaped[which];
    }
    return wrong("a text has no end");
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const PlainJson* PlainJson::find(std::string_view key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

std::string PlainJson::describe() const { return kind == Kind::kText ? in_quotes(text) : text; }

Result<PlainJson> parse_plain_json(std::string_view text) { return Reader(text).read(); }

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char each : text) {
    const auto which = each == '/' ? kEscaped.npos : kEscaped.find(each);
    if (which == kEscaped.npos) {
      out += each;
    } else {
      out += '\\';
      out += kLetters[which];
    }
  }
  return out + "\"";
}

}  // namespace tenon
