// Template text to tokens: tags, white-space control, literals. Private to jinja*.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tenon/text/jinja/value.h"

namespace tenon::jinja {

enum class TokenKind {
  kText,        // literal template text
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kName,
  kString,  // text holds the unescaped value
  kInteger,
  kFloat,
  kOperator,  // text holds its spelling
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;
  Value integer;
  double real = 0;
};

// Always ends with kEnd. Throws Error.
std::vector<Token> tokenize(std::string_view source);

}  // namespace tenon::jinja
