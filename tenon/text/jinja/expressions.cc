// Tokens to expressions, with the precedences of Jinja2's parser.
#include <algorithm>

#include "tenon/text/jinja/parser.h"

namespace tenon::jinja {
namespace {

using Kind = ExpressionKind;
constexpr int kMaxDepth = 120;  // of one expression tree, and of brackets

}  // namespace

void ExpressionParser::fail_here(std::string message) const {
  throw Error{std::move(message), now().line};
}

void ExpressionParser::unexpected(std::string_view wanted) const {
  std::string found;
  switch (now().kind) {
    case TokenKind::kEnd: found = "the end of the template"; break;
    case TokenKind::kText: found = "template text"; break;
    case TokenKind::kPrintBegin: found = "{{"; break;
    case TokenKind::kPrintEnd: found = "}}"; break;
    case TokenKind::kBlockBegin: found = "{%"; break;
    case TokenKind::kBlockEnd: found = "%}"; break;
    case TokenKind::kString: found = "a string"; break;
    default: found = "'" + now().text + "'";
  }
  fail_here("expected " + std::string(wanted) + ", found " + found);
}

bool ExpressionParser::skip_operator(std::string_view spelling) {
  if (!is_operator(spelling)) return false;
  take();
  return true;
}
bool ExpressionParser::skip_name(std::string_view spelling) {
  if (!is_name(spelling)) return false;
  take();
  return true;
}
void ExpressionParser::expect_operator(std::string_view spelling) {
  if (!skip_operator(spelling)) unexpected("'" + std::string(spelling) + "'");
}
void ExpressionParser::expect_name(std::string_view spelling) {
  if (!skip_name(spelling)) unexpected("'" + std::string(spelling) + "'");
}
std::string ExpressionParser::expect_any_name() {
  if (now().kind != TokenKind::kName) unexpected("a name");
  return take().text;
}

void ExpressionParser::enter() {
  if (++nesting_ > kMaxDepth)
    fail_here("brackets are nested deeper than " + std::to_string(kMaxDepth));
}

ExpressionPtr ExpressionParser::make(Kind kind, int line, std::vector<ExpressionPtr> children,
                                     std::string text) const {
  auto made = std::make_unique<Expression>();
  made->kind = kind;
  made->line = line;
  made->text = std::move(text);
  for (const ExpressionPtr& child : children)
    if (child) made->depth = std::max(made->depth, 1 + child->depth);
  if (made->depth > kMaxDepth)
    throw Error{"an expression is nested deeper than " + std::to_string(kMaxDepth), line};
  made->children = std::move(children);
  return made;
}

template <class... Children>
ExpressionPtr ExpressionParser::node(Kind kind, int line, std::string text,
                                     Children... children) const {
  std::vector<ExpressionPtr> list;
  (list.push_back(std::move(children)), ...);
  return make(kind, line, std::move(list), std::move(text));
}

ExpressionPtr ExpressionParser::constant(int line, Value value) const {
  ExpressionPtr made = make(Kind::kConstant, line);
  made->constant = std::move(value);
  return made;
}

ExpressionPtr ExpressionParser::conditional() {
  enter();
  ExpressionPtr value = either();
  while (is_name("if")) {
    const int line = take().line;
    ExpressionPtr condition = either();
    ExpressionPtr otherwise = skip_name("else") ? conditional() : nullptr;
    value = node(Kind::kConditional, line, "", std::move(condition), std::move(value),
                 std::move(otherwise));
  }
  leave();
  return value;
}

ExpressionPtr ExpressionParser::either() {
  ExpressionPtr left = both();
  while (is_name("or")) {
    const int line = take().line;
    ExpressionPtr right = both();
    left = node(Kind::kOr, line, "", std::move(left), std::move(right));
  }
  return left;
}

ExpressionPtr ExpressionParser::both() {
  ExpressionPtr left = negation();
  while (is_name("and")) {
    const int line = take().line;
    ExpressionPtr right = negation();
    left = node(Kind::kAnd, line, "", std::move(left), std::move(right));
  }
  return left;
}

ExpressionPtr ExpressionParser::negation() {
  if (!is_name("not")) return comparison();
  enter();
  const int line = take().line;
  ExpressionPtr made = node(Kind::kNot, line, "", negation());
  leave();
  return made;
}

ExpressionPtr ExpressionParser::comparison() {
  const int line = now().line;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> operators;
  operands.push_back(sum());
  for (;;) {
    if (is_operator("==") || is_operator("!=") || is_operator("<") || is_operator("<=") ||
        is_operator(">") || is_operator(">=")) {
      operators.push_back(take().text);
    } else if (skip_name("in")) {
      operators.emplace_back("in");
    } else if (is_name("not") && after().kind == TokenKind::kName && after().text == "in") {
      take();
      take();
      operators.emplace_back("not in");
    } else {
      break;
    }
    operands.push_back(sum());
  }
  if (operators.empty()) return std::move(operands.front());
  ExpressionPtr made = make(Kind::kCompare, line, std::move(operands));
  made->texts = std::move(operators);
  return made;
}

ExpressionPtr ExpressionParser::sum() {
  ExpressionPtr left = concatenation();
  while (is_operator("+") || is_operator("-")) {
    const Token sign = take();
    ExpressionPtr right = concatenation();
    left = node(Kind::kArithmetic, sign.line, sign.text, std::move(left), std::move(right));
  }
  return left;
}

ExpressionPtr ExpressionParser::concatenation() {
  const int line = now().line;
  std::vector<ExpressionPtr> parts;
  parts.push_back(product());
  while (skip_operator("~")) parts.push_back(product());
  if (parts.size() == 1) return std::move(parts.front());
  return make(Kind::kConcatenate, line, std::move(parts));
}

ExpressionPtr ExpressionParser::product() {
  ExpressionPtr left = power();
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    const Token sign = take();
    ExpressionPtr right = power();
    left = node(Kind::kArithmetic, sign.line, sign.text, std::move(left), std::move(right));
  }
  return left;
}

ExpressionPtr ExpressionParser::power() {
  ExpressionPtr left = unary(true);
  while (is_operator("**")) {
    const Token sign = take();
    ExpressionPtr right = unary(true);
    left = node(Kind::kArithmetic, sign.line, sign.text, std::move(left), std::move(right));
  }
  return left;
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  ExpressionPtr value;
  if (is_operator("-") || is_operator("+")) {
    enter();
    const Token sign = take();
    value = node(sign.text == "-" ? Kind::kNegative : Kind::kPositive, sign.line, "", unary(false));
    leave();
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filters ? filters_and_tests(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::named() {
  const Token token = take();
  if (token.text == "true" || token.text == "True") return constant(token.line, Value(true));
  if (token.text == "false" || token.text == "False") return constant(token.line, Value(false));
  if (token.text == "none" || token.text == "None") return constant(token.line, Value());
  if (!macros_.empty()) {
    macros_.back()->uses_varargs |= token.text == "varargs";
    macros_.back()->uses_kwargs |= token.text == "kwargs";
    macros_.back()->uses_caller |= token.text == "caller";
  }
  return make(Kind::kName, token.line, {}, token.text);
}

ExpressionPtr ExpressionParser::primary() {
  const int line = now().line;
  switch (now().kind) {
    case TokenKind::kName: return named();
    case TokenKind::kInteger: return constant(line, take().integer);
    case TokenKind::kFloat: return constant(line, Value(take().real));
    case TokenKind::kString: {
      std::string text;
      while (now().kind == TokenKind::kString) text += take().text;
      return constant(line, Value(std::move(text)));
    }
    default: break;
  }
  if (is_operator("(")) return parenthesised();
  if (is_operator("[")) return list();
  if (is_operator("{")) return dict();
  unexpected("an expression");
}

ExpressionPtr ExpressionParser::parenthesised() {
  enter();
  const int line = take().line;
  ExpressionPtr value = is_operator(")") ? make(Kind::kTuple, line) : tuple(true);
  expect_operator(")");
  leave();
  return value;
}

bool ExpressionParser::ends_tuple(std::string_view end) const {
  return now().kind == TokenKind::kPrintEnd || now().kind == TokenKind::kBlockEnd ||
         is_operator(")") || (!end.empty() && is_name(end));
}

ExpressionPtr ExpressionParser::tuple(bool with_condition, std::string_view end) {
  const int line = now().line;
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  for (;;) {
    if (!items.empty() && ends_tuple(end)) break;
    items.push_back(with_condition ? expression() : without_condition());
    if (!skip_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) return std::move(items.front());
  return make(Kind::kTuple, line, std::move(items));
}

ExpressionPtr ExpressionParser::list() {
  const int line = take().line;
  std::vector<ExpressionPtr> items;
  while (!is_operator("]")) {
    if (!items.empty()) expect_operator(",");
    if (is_operator("]")) break;
    items.push_back(expression());
  }
  expect_operator("]");
  return make(Kind::kList, line, std::move(items));
}

ExpressionPtr ExpressionParser::dict() {
  const int line = take().line;
  std::vector<ExpressionPtr> items;
  while (!is_operator("}")) {
    if (!items.empty()) expect_operator(",");
    if (is_operator("}")) break;
    items.push_back(expression());
    expect_operator(":");
    items.push_back(expression());
  }
  expect_operator("}");
  return make(Kind::kDict, line, std::move(items));
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr value) {
  for (;;) {
    if (is_operator(".")) {
      value = member(std::move(value));
    } else if (is_operator("[")) {
      value = subscript(std::move(value));
    } else if (is_operator("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::member(ExpressionPtr value) {
  const int line = take().line;
  if (now().kind == TokenKind::kInteger)
    return node(Kind::kSubscript, line, "", std::move(value), constant(line, take().integer));
  if (now().kind != TokenKind::kName) unexpected("a name or a number after '.'");
  return node(Kind::kAttribute, line, take().text, std::move(value));
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr value) {
  const int line = take().line;
  ExpressionPtr part[3];  // begin, end, step
  bool is_slice = false;
  if (!is_operator(":")) part[0] = expression();
  for (int i = 1; i < 3 && skip_operator(":"); ++i) {
    is_slice = true;
    if (!is_operator("]") && !is_operator(":")) part[i] = expression();
  }
  if (is_operator(",")) fail_here("a subscript with a comma is not implemented");
  expect_operator("]");
  if (is_slice)
    return node(Kind::kSlice, line, "", std::move(value), std::move(part[0]), std::move(part[1]),
                std::move(part[2]));
  return node(Kind::kSubscript, line, "", std::move(value), std::move(part[0]));
}

// `depth` grows to that of the deepest argument.
Arguments ExpressionParser::arguments(int& depth) {
  Arguments found;
  auto deepened = [&](ExpressionPtr value) {
    depth = std::max(depth, value->depth);
    return value;
  };
  const int line = now().line;
  expect_operator("(");
  auto demand = [&](bool condition) {
    if (!condition)
      throw Error{"the arguments of a call are in an order that is not allowed", line};
  };
  for (bool is_first = true; !is_operator(")"); is_first = false) {
    if (!is_first) expect_operator(",");
    if (is_operator(")")) break;
    if (skip_operator("*")) {
      demand(!found.more_positional && !found.more_keywords);
      found.more_positional = deepened(expression());
    } else if (skip_operator("**")) {
      demand(!found.more_keywords);
      found.more_keywords = deepened(expression());
    } else if (now().kind == TokenKind::kName && after().kind == TokenKind::kOperator &&
               after().text == "=") {
      demand(!found.more_keywords);
      std::string name = take().text;
      take();
      found.keywords.emplace_back(std::move(name), deepened(expression()));
    } else {
      demand(!found.more_positional && !found.more_keywords && found.keywords.empty());
      found.positional.push_back(deepened(expression()));
    }
  }
  expect_operator(")");
  return found;
}

ExpressionPtr ExpressionParser::call(ExpressionPtr callee) {
  const int line = now().line;
  int depth = 0;
  Arguments given = arguments(depth);
  ExpressionPtr made = node(Kind::kCall, line, "", std::move(callee));
  made->arguments = std::move(given);
  made->depth = std::max(made->depth, 1 + depth);
  return made;
}

ExpressionPtr ExpressionParser::one_filter(ExpressionPtr value) {
  const int line = now().line;
  std::string name = expect_any_name();
  int depth = 0;
  Arguments given;
  if (is_operator("(")) given = arguments(depth);
  ExpressionPtr made = node(Kind::kFilter, line, std::move(name), std::move(value));
  made->arguments = std::move(given);
  made->depth = std::max(made->depth, 1 + depth);
  return made;
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr value) {
  while (skip_operator("|")) value = one_filter(std::move(value));
  return value;
}

ExpressionPtr ExpressionParser::filters_and_tests(ExpressionPtr value) {
  for (;;) {
    if (is_operator("|")) {
      value = filters(std::move(value));
    } else if (is_name("is")) {
      value = test(std::move(value));
    } else if (is_operator("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::test(ExpressionPtr value) {
  const int line = take().line;
  const bool negated = skip_name("not");
  std::string name = expect_any_name();
  int depth = 0;
  Arguments given;
  const TokenKind next = now().kind;
  if (is_operator("(")) {
    given = arguments(depth);
  } else if ((next == TokenKind::kName && !is_name("else") && !is_name("or") && !is_name("and")) ||
             next == TokenKind::kString || next == TokenKind::kInteger ||
             next == TokenKind::kFloat || is_operator("[") || is_operator("{")) {
    if (is_name("is")) fail_here("tests cannot be chained with 'is'");
    given.positional.push_back(postfix(primary()));
    depth = given.positional.front()->depth;
  }
  ExpressionPtr made = node(Kind::kTest, line, std::move(name), std::move(value));
  made->arguments = std::move(given);
  made->depth = std::max(made->depth, 1 + depth);
  return negated ? node(Kind::kNot, line, "", std::move(made)) : std::move(made);
}

}  // namespace tenon::jinja
