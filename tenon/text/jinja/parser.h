// The two halves of the parser: tokens to expressions, and tokens to statements. Private to
// jinja*.cc.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/text/jinja/ast.h"
#include "tenon/text/jinja/lexer.h"

namespace tenon::jinja {

// A cursor over tokens and everything that yields an Expression (jinja/expressions.cc).
class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  const Token& now() const { return tokens_[at_]; }
  const Token& after() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token take() {
    Token token = now();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_operator(std::string_view spelling) const {
    return now().kind == TokenKind::kOperator && now().text == spelling;
  }
  bool is_name(std::string_view spelling) const {
    return now().kind == TokenKind::kName && now().text == spelling;
  }
  bool skip_operator(std::string_view spelling);
  bool skip_name(std::string_view spelling);
  void expect_operator(std::string_view spelling);
  void expect_name(std::string_view spelling);
  std::string expect_any_name();
  [[noreturn]] void fail_here(std::string message) const;
  [[noreturn]] void unexpected(std::string_view wanted) const;

  // Around everything that nests: fails when it nests too deep.
  void enter();
  void leave() { --nesting_; }

  ExpressionPtr expression() { return conditional(); }
  ExpressionPtr without_condition() { return either(); }
  // One expression, or several with commas between as a tuple. Ends before the name `end`.
  ExpressionPtr tuple(bool with_condition, std::string_view end = {});
  ExpressionPtr filters(ExpressionPtr value);  // "| name …" as often as it stands there
  ExpressionPtr one_filter(ExpressionPtr value);
  ExpressionPtr primary();

  std::vector<MacroDefinition*> macros_;  // being parsed, innermost last

 private:
  ExpressionPtr make(ExpressionKind kind, int line, std::vector<ExpressionPtr> children = {},
                     std::string text = {}) const;
  template <class... Children>
  ExpressionPtr node(ExpressionKind kind, int line, std::string text, Children... children) const;
  ExpressionPtr constant(int line, Value value) const;
  ExpressionPtr conditional();
  ExpressionPtr either();
  ExpressionPtr both();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters);
  ExpressionPtr named();
  ExpressionPtr parenthesised();
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr postfix(ExpressionPtr value);
  ExpressionPtr member(ExpressionPtr value);
  ExpressionPtr subscript(ExpressionPtr value);
  ExpressionPtr call(ExpressionPtr callee);
  ExpressionPtr filters_and_tests(ExpressionPtr value);
  ExpressionPtr test(ExpressionPtr value);
  Arguments arguments(int& depth);
  bool ends_tuple(std::string_view end) const;

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace tenon::jinja
