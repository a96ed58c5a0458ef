// The text of an answer taken apart while it comes: what was thought, what is said, which tools are
// called. The format is that of the Qwen3.5 chat templates:
//
//   thoughts
//   </think>
//
//   text
//   <tool_call>
//   <function=NAME>
//   <parameter=KEY>
//   VALUE
//   </parameter>
//   </function>
//   </tool_call>
//
// The pieces, put together, are the same wherever the text was cut into parts. Calls are looked for
// behind the thoughts only. Not here: the other direction (chat_template.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/text/jinja/template.h"

namespace tenon {

struct AnswerPiece {
  enum class Kind : std::uint8_t {
    kReasoning,
    kText,
    kCallBegin,      // `text` is the function's name
    kCallArguments,  // `text` is a part of a JSON object
    kCallEnd,
  };
  Kind kind = Kind::kText;
  std::string text = {};
  int call = -1;  // of the three last kinds: which one, from 0
};

// What an answer may hold.
struct AnswerForm {
  bool has_reasoning = true;  // false: <think> is text like any other
  bool in_reasoning = false;  // the prompt ends with an open <think>
  bool has_calls = false;     // false: <tool_call> is text like any other
  // The tools as the template gets them: a list of {"type": "function", "function": {"name",
  // "parameters"}}. The schema of a parameter decides what its text becomes: a JSON string where
  // the schema says string or nothing is known; else the JSON value that is written there, and a
  // string where it is none.
  jinja::Value tools = {};
  int max_calls = 0;  // what follows that many calls is left out; 0: no limit
};

// Whether a rendered conversation ends inside an open <think>: looks behind the last turn that it
// opens, so that examples in earlier messages mean nothing.
bool ends_in_reasoning(std::string_view rendered);

class AnswerParser {
 public:
  explicit AnswerParser(const AnswerForm& form);

  // What `part` makes certain, in order; neighbours of one kind are put together.
  std::vector<AnswerPiece> push(std::string_view part);
  // What is still held back. A call that was begun and not ended stays so: its arguments are no
  // valid JSON, and there is no kCallEnd. Call once at the end.
  std::vector<AnswerPiece> finish();
  int calls() const { return ended_; }  // whole ones so far
  // All calls that the form allows have come: nothing of what follows will be shown.
  bool full() const { return form_.max_calls > 0 && ended_ >= form_.max_calls; }

 private:
  enum class Place : std::uint8_t {
    kBegin,           // perhaps in front of <think>
    kReasoningBegin,  // behind <think> and line ends
    kReasoning,
    kTextBegin,  // behind </think> or </tool_call> and white space
    kText,
    kCall,      // behind <tool_call>
    kFunction,  // between parameters
    kValue,
    kCallEnd,  // behind </function>
    kOver,
  };
  enum class ValueKind : std::uint8_t { kString, kStringOrNull, kJson };

  bool step(std::vector<AnswerPiece>& out);  // false: more text is needed
  bool begin_of_answer();
  bool skip(std::string_view characters, Place next);
  bool reasoning(std::vector<AnswerPiece>& out);
  bool text(std::vector<AnswerPiece>& out);
  bool call(std::vector<AnswerPiece>& out);
  bool function(std::vector<AnswerPiece>& out);
  bool value(std::vector<AnswerPiece>& out);
  bool call_end();
  void begin_value(std::string key, std::vector<AnswerPiece>& out);
  void end_value(std::string_view text, std::vector<AnswerPiece>& out);
  ValueKind kind_of(const std::string& key) const;
  std::size_t safe_before(std::string_view tag) const;
  std::string take(std::size_t bytes);

  AnswerForm form_;
  std::map<std::string, std::map<std::string, ValueKind>> kinds_;  // of functions and parameters
  Place place_ = Place::kBegin;
  std::string held_;
  std::string gap_;             // white space in front of the last <tool_call>
  std::string function_;        // the name of the present call
  std::set<std::string> keys_;  // its parameters so far
  ValueKind kind_ = ValueKind::kString;
  std::size_t seen_ = 0;  // bytes of held_ that hold no </parameter>
  bool value_begun_ = false, ignored_ = false;
  int begun_ = 0, ended_ = 0;
};

}  // namespace tenon
