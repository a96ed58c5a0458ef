// The parsed form of a template, and the parser's entry. Private to jinja*.cc.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/text/jinja/value.h"

namespace tenon::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind {
  kConstant,     // constant
  kName,         // text
  kList,         // children
  kTuple,        // children
  kDict,         // children: key, value, key, value, …
  kAttribute,    // children[0] . text
  kSubscript,    // children[0] [ children[1] ]
  kSlice,        // children[0] [ children[1] : children[2] : children[3] ], any of the three null
  kCall,         // children[0] ( arguments )
  kFilter,       // children[0] | text ( arguments ); children[0] null in filter blocks
  kTest,         // children[0] is text ( arguments )
  kNot,          // children[0]
  kNegative,     // children[0]
  kPositive,     // children[0]
  kAnd,          // children[0], children[1]
  kOr,           // children[0], children[1]
  kArithmetic,   // children[0] text children[1]
  kConcatenate,  // children
  kCompare,      // children[0] texts[0] children[1] texts[1] children[2] …
  kConditional,  // children: condition, value, otherwise (may be null)
};

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  ExpressionPtr more_positional, more_keywords;  // *list and **dict; usually null
};

struct Expression {
  ExpressionKind kind{};
  int line = 0;
  int depth = 1;  // of this tree
  std::string text;
  std::vector<std::string> texts;
  Value constant;
  std::vector<ExpressionPtr> children;
  Arguments arguments;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

enum class StatementKind {
  kText,         // text
  kPrint,        // expressions
  kFor,          // targets in expressions[0] if expressions[1] (may be null); body, otherwise
  kIf,           // expressions[i] → bodies[i]; otherwise
  kSet,          // targets = expressions[0]
  kSetBlock,     // targets[0] = body, filtered by expressions[0] (may be null)
  kMacro,        // macro
  kCallBlock,    // expressions[0] is the call; macro is the caller
  kFilterBlock,  // expressions[0] over body
  kWith,         // targets[i] = expressions[i] inside body
  kScope,        // body (generation blocks)
  kBreak,
  kContinue,
};

// What an assignment binds: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name, attribute;
  std::vector<Target> parts;
  bool is_tuple = false;
};

struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  Body body;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

struct Statement {
  StatementKind kind{};
  int line = 0;
  std::string text;
  std::vector<Target> targets;
  std::vector<ExpressionPtr> expressions;
  std::vector<Body> bodies;  // of if: one per condition; of others: bodies[0]
  Body otherwise;
  bool recursive = false;
  MacroDefinition macro;
};

// Throws Error.
Body parse_template(std::string_view source);

}  // namespace tenon::jinja
