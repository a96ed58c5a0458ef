// Grammars over token ids: which tokens may come next in an answer that must keep to a form. The
// form is told as a structural tag, XGrammar's words for JSON schemas, regular expressions, EBNF
// and what stands around them (answer_grammar.h makes those of the APIs). XGrammar, of which
// nothing shows here, does the work; a program may be built without it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/text/tokenizer.h"

namespace tenon {

// What a compilation may take.
inline constexpr std::int64_t kMaxGrammarEffort = 1'500'000'000;
struct GrammarWork {
  std::int64_t effort = kMaxGrammarEffort;  // counted: the same on every machine
  // Asked again and again, by threads of the compilation, which ends where it says no. None: yes.
  std::function<bool()> is_wanted = {};
};

inline constexpr std::size_t kMaxGrammarBytes = std::size_t{64} << 10;  // of a structural tag
// Of the compiled grammars that a compiler keeps.
inline constexpr std::int64_t kMaxKeptGrammarBytes = std::int64_t{256} << 20;

// One answer on its way through a grammar.
class GrammarState {
 public:
  GrammarState(GrammarState&&) noexcept;
  GrammarState& operator=(GrammarState&&) noexcept;
  ~GrammarState();

  // Sets bit id % 32 of allowed[id / 32] for the ids that may come next, and clears all others.
  // Where the grammar is at its end, the ids that end an answer may come. kInternal where this or
  // accept() takes too much work: how much a grammar may take is the same on every machine. After
  // an error nothing more may be asked.
  Status fill(std::span<std::uint32_t> allowed);
  // The next token is `id`. An error where the grammar does not allow it.
  Status accept(std::int32_t id);

 private:
  friend class Grammar;
  struct State;
  explicit GrammarState(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A compiled grammar. Immutable, cheap to copy, safe to share between threads.
class Grammar {
 public:
  // At its beginning.
  Result<GrammarState> begin() const;

 private:
  friend class GrammarCompiler;
  struct State;
  explicit Grammar(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

// Compiles grammars for one vocabulary, and keeps those of late, and their parts, for when they are
// asked for again. Safe to share between threads. The vocabulary is prepared when the first grammar
// is asked for.
class GrammarCompiler {
 public:
  // Whether this program was built with grammars. Without them compile() refuses: kUnsupported.
  static bool is_built();

  // `ends`: ids that end an answer. Tokens that are marked special are in no grammar. `tokenizer`
  // outlives the compiler. `max_kept_bytes`: grammars that answers still go through count only
  // while they are kept.
  GrammarCompiler(const Tokenizer& tokenizer, std::span<const std::int32_t> ends,
                  std::int64_t max_kept_bytes = kMaxKeptGrammarBytes);
  ~GrammarCompiler();

  // kInvalidArgument, with the reason, where the tag is no structural tag, holds a schema that
  // cannot be had, is longer than kMaxGrammarBytes, or has no text that fits. kTimeout where `work`
  // is not enough, or it is not wanted any more.
  Result<Grammar> compile(std::string_view structural_tag, const GrammarWork& work = {}) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tenon
