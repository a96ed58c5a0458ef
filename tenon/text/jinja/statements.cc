// Tokens to statements.
#include <algorithm>

#include "tenon/text/jinja/parser.h"

namespace tenon::jinja {
namespace {

using Kind = StatementKind;
constexpr int kMaxNesting = 60;  // of blocks in blocks

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body whole() {
    Body made = body({});
    return made;
  }

 private:
  // Statements up to a block that begins with one of `ends`; that name is left to be read.
  Body body(std::initializer_list<std::string_view> ends) {
    if (++blocks_ > kMaxNesting)
      fail_here("blocks are nested deeper than " + std::to_string(kMaxNesting));
    Body made;
    for (;;) {
      const Token token = take_part();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0)
          throw Error{"the template ends where '" + std::string(*(ends.end() - 1)) + "' is missing",
                      token.line};
        break;
      }
      if (token.kind == TokenKind::kText) {
        made.push_back(make(Kind::kText, token.line));
        made.back()->text = token.text;
      } else if (token.kind == TokenKind::kPrintBegin) {
        made.push_back(print(token.line));
      } else {
        if (now().kind == TokenKind::kName && std::ranges::find(ends, now().text) != ends.end())
          break;
        made.push_back(statement());
      }
    }
    --blocks_;
    return made;
  }

  Token take_part() { return now().kind == TokenKind::kEnd ? now() : take(); }

  std::unique_ptr<Statement> make(Kind kind, int line) {
    auto made = std::make_unique<Statement>();
    made->kind = kind;
    made->line = line;
    return made;
  }

  std::unique_ptr<Statement> print(int line) {
    auto made = make(Kind::kPrint, line);
    made->expressions.push_back(tuple(true));
    if (now().kind != TokenKind::kPrintEnd) unexpected("'}}'");
    take();
    return made;
  }

  void end_of_block() {
    if (now().kind != TokenKind::kBlockEnd) unexpected("'%}'");
    take();
  }
  void closing(std::string_view name) {
    expect_name(name);
    end_of_block();
  }

  std::unique_ptr<Statement> statement() {
    const int line = now().line;
    const std::string name = expect_any_name();
    if (name == "for") return for_loop(line);
    if (name == "if") return condition(line);
    if (name == "set") return set(line);
    if (name == "macro") return macro(line);
    if (name == "call") return call_block(line);
    if (name == "filter") return filter_block(line);
    if (name == "with") return with(line);
    if (name == "generation") return generation(line);
    if (name == "break" || name == "continue") return loop_control(line, name);
    if (name == "print") return print_block(line);
    throw Error{"'" + name +
                    "' is not a block that is implemented (for, if, set, macro, call, filter, "
                    "with, generation, break, continue and raw are)",
                line};
  }

  Target one_target(bool with_attribute) {
    if (skip_operator("(")) {
      enter();
      Target target = targets(with_attribute, "");
      expect_operator(")");
      leave();
      return target;
    }
    Target target;
    const int line = now().line;
    target.name = expect_any_name();
    for (std::string_view reserved : {"true", "false", "none", "True", "False", "None"})
      if (target.name == reserved) throw Error{"can't assign to '" + target.name + "'", line};
    if (with_attribute && skip_operator(".")) target.attribute = expect_any_name();
    return target;
  }

  Target targets(bool with_attribute, std::string_view end) {
    Target first = one_target(with_attribute);
    if (!is_operator(",")) return first;
    Target made;
    made.is_tuple = true;
    made.parts.push_back(std::move(first));
    while (skip_operator(",")) {
      if (is_operator(")") || is_operator("=") || (!end.empty() && is_name(end))) break;
      made.parts.push_back(one_target(with_attribute));
    }
    return made;
  }

  std::unique_ptr<Statement> for_loop(int line) {
    auto made = make(Kind::kFor, line);
    made->targets.push_back(targets(false, "in"));
    expect_name("in");
    made->expressions.push_back(tuple(false, "recursive"));
    made->expressions.push_back(skip_name("if") ? expression() : nullptr);
    made->recursive = skip_name("recursive");
    end_of_block();
    ++loops_;
    made->bodies.push_back(body({"else", "endfor"}));
    --loops_;
    if (skip_name("else")) {
      end_of_block();
      made->otherwise = body({"endfor"});
    }
    closing("endfor");
    return made;
  }

  std::unique_ptr<Statement> condition(int line) {
    auto made = make(Kind::kIf, line);
    do {
      made->expressions.push_back(tuple(false));
      end_of_block();
      made->bodies.push_back(body({"elif", "else", "endif"}));
    } while (skip_name("elif"));
    if (skip_name("else")) {
      end_of_block();
      made->otherwise = body({"endif"});
    }
    closing("endif");
    return made;
  }

  std::unique_ptr<Statement> set(int line) {
    auto made = make(Kind::kSet, line);
    made->targets.push_back(targets(true, ""));
    if (skip_operator("=")) {
      made->expressions.push_back(tuple(true));
      end_of_block();
      return made;
    }
    made->kind = Kind::kSetBlock;
    made->expressions.push_back(is_operator("|") ? filters(nullptr) : nullptr);
    end_of_block();
    made->bodies.push_back(body({"endset"}));
    closing("endset");
    return made;
  }

  void signature(MacroDefinition& macro) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      macro.parameters.push_back(expect_any_name());
      if (skip_operator("=")) {
        macro.defaults.push_back(expression());
      } else if (!macro.defaults.empty()) {
        fail_here("a parameter without a default follows one with a default");
      }
    }
    expect_operator(")");
  }

  void macro_body(MacroDefinition& macro, std::string_view end) {
    end_of_block();
    const int loops = std::exchange(loops_, 0);  // no way to break out of a loop around a macro
    macros_.push_back(&macro);
    macro.body = body({end});
    macros_.pop_back();
    loops_ = loops;
    closing(end);
  }

  std::unique_ptr<Statement> macro(int line) {
    auto made = make(Kind::kMacro, line);
    made->macro.name = expect_any_name();
    macros_.push_back(&made->macro);  // defaults may mention varargs and caller, too
    signature(made->macro);
    macros_.pop_back();
    macro_body(made->macro, "endmacro");
    return made;
  }

  std::unique_ptr<Statement> call_block(int line) {
    auto made = make(Kind::kCallBlock, line);
    made->macro.name = "caller";
    if (is_operator("(")) signature(made->macro);
    made->expressions.push_back(expression());
    if (made->expressions.front()->kind != ExpressionKind::kCall)
      throw Error{"a call block needs a call", line};
    macro_body(made->macro, "endcall");
    return made;
  }

  std::unique_ptr<Statement> filter_block(int line) {
    auto made = make(Kind::kFilterBlock, line);
    made->expressions.push_back(filters(one_filter(nullptr)));
    end_of_block();
    made->bodies.push_back(body({"endfilter"}));
    closing("endfilter");
    return made;
  }

  std::unique_ptr<Statement> with(int line) {
    auto made = make(Kind::kWith, line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!made->targets.empty()) expect_operator(",");
      made->targets.push_back(one_target(false));
      expect_operator("=");
      made->expressions.push_back(expression());
    }
    end_of_block();
    made->bodies.push_back(body({"endwith"}));
    closing("endwith");
    return made;
  }

  // Marks what an assistant has written, for training; here it is only a scope.
  std::unique_ptr<Statement> generation(int line) {
    auto made = make(Kind::kScope, line);
    end_of_block();
    made->bodies.push_back(body({"endgeneration"}));
    closing("endgeneration");
    return made;
  }

  std::unique_ptr<Statement> loop_control(int line, std::string_view name) {
    if (loops_ == 0) throw Error{"'" + std::string(name) + "' outside of a loop", line};
    end_of_block();
    return make(name == "break" ? Kind::kBreak : Kind::kContinue, line);
  }

  std::unique_ptr<Statement> print_block(int line) {
    auto made = make(Kind::kPrint, line);
    made->expressions.push_back(expression());
    while (skip_operator(",")) made->expressions.push_back(expression());
    end_of_block();
    return made;
  }

  int blocks_ = 0, loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(tokenize(source)).whole(); }

}  // namespace tenon::jinja
