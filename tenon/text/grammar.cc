#include "tenon/text/grammar.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "tenon/core/guard.h"

#ifdef TENON_HAS_XGRAMMAR
#include <dlpack/dlpack.h>
#include <xgrammar/compiler.h>
#include <xgrammar/matcher.h>
#include <xgrammar/tokenizer_info.h>

#include "tenon/text/grammar_effort.h"
#endif

namespace tenon {

#ifdef TENON_HAS_XGRAMMAR
namespace {

constexpr int kThreads = 2;  // of one compilation
// States of the parser that an answer may cost: at once, and more for every token that it draws. A
// count and no time, so that the same answer ends in the same way on every machine.
constexpr long long kMaxEffort = 20'000'000, kEffortPerToken = 1'000'000;

// "[time] /file:line: what\n" without what is in front.
std::string reason_in(std::string_view what) {
  if (what.starts_with('[')) {
    const auto place = what.find("] ");
    const auto colon = place == std::string_view::npos ? place : what.find(": ", place);
    if (colon != std::string_view::npos) what.remove_prefix(colon + 2);
  }
  while (what.ends_with('\n') || what.ends_with('.')) what.remove_suffix(1);
  return std::string(what.substr(0, 300));
}

// What the library throws says what is wrong with what was asked.
template <class Work>
auto with_reason(Code code, Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return status_of_exception();
  } catch (const std::exception& error) {
    return Status::error(code, reason_in(error.what()));
  }
}

}  // namespace

struct GrammarState::State {
  xgrammar::GrammarMatcher matcher;
  long long effort = kMaxEffort;  // that is left

  // Runs what goes through the parser.
  template <class Work>
  Status spend(Work&& work) {
    grammar_effort::account.left = effort;
    Status done = with_reason(Code::kInternal, std::forward<Work>(work));
    effort = std::exchange(grammar_effort::account.left, 0);
    return done;
  }
};

struct Grammar::State {
  xgrammar::CompiledGrammar compiled;
};

struct GrammarCompiler::State {
  const Tokenizer& tokenizer;
  std::vector<std::int32_t> ends;
  std::int64_t max_kept_bytes;
  std::mutex mutex;
  std::optional<xgrammar::GrammarCompiler> compiler;

  // Special tokens, and ids without a token, have no text: then they are in no grammar.
  xgrammar::TokenizerInfo vocabulary() const {
    std::vector<std::string> texts(static_cast<std::size_t>(tokenizer.num_tokens()));
    for (std::int32_t id = 0; id < tokenizer.num_tokens(); ++id)
      if (!tokenizer.is_special(id))
        texts[static_cast<std::size_t>(id)] = tokenizer.token_bytes(id);
    std::vector<std::int32_t> stops;
    for (const std::int32_t id : ends)
      if (id >= 0 && id < tokenizer.num_tokens()) stops.push_back(id);
    return {texts, xgrammar::VocabType::RAW, tokenizer.num_tokens(), stops};
  }
  xgrammar::GrammarCompiler& prepared() {
    const std::scoped_lock lock(mutex);
    if (!compiler) compiler.emplace(vocabulary(), kThreads, true, max_kept_bytes);
    return *compiler;
  }
};

Status GrammarState::fill(std::span<std::uint32_t> allowed) {
  return state_->spend([&] {
    auto words = static_cast<std::int64_t>(allowed.size());
    DLTensor mask{};
    mask.data = allowed.data();
    mask.device = {kDLCPU, 0};
    mask.ndim = 1;
    mask.dtype = xgrammar::GetBitmaskDLType();
    mask.shape = &words;
    if (!state_->matcher.FillNextTokenBitmask(&mask))
      std::fill(allowed.begin(), allowed.end(), ~std::uint32_t{0});
    return Status::ok();
  });
}

Status GrammarState::accept(std::int32_t id) {
  state_->effort = std::min(state_->effort + kEffortPerToken, kMaxEffort);
  return state_->spend([&] {
    if (state_->matcher.IsTerminated() || state_->matcher.AcceptToken(id)) return Status::ok();
    return Status::error(Code::kInvalidArgument,
                         "does not allow token id " + std::to_string(id) + " here");
  });
}

Result<GrammarState> Grammar::begin() const {
  return with_reason(Code::kInternal, [&]() -> Result<GrammarState> {
    grammar_effort::account.left = kMaxEffort;
    return GrammarState(std::make_unique<GrammarState::State>(
        GrammarState::State{xgrammar::GrammarMatcher(state_->compiled)}));
  });
}

bool GrammarCompiler::is_built() { return true; }

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer, std::span<const std::int32_t> ends,
                                 std::int64_t max_kept_bytes)
    : state_(new State{tokenizer, {ends.begin(), ends.end()}, max_kept_bytes, {}, {}}) {}

Result<Grammar> GrammarCompiler::compile(std::string_view structural_tag,
                                         const GrammarWork& work) const {
  if (state_->tokenizer.num_tokens() == 0)
    return Status::error(Code::kUnsupported, "there are no texts, so nothing to keep to a grammar");
  if (structural_tag.size() > kMaxGrammarBytes)
    return Status::error(Code::kInvalidArgument, "has " + std::to_string(structural_tag.size()) +
                                                     " bytes; accepted are at most " +
                                                     std::to_string(kMaxGrammarBytes));
  grammar_effort::Compilation counted(work.effort, work.is_wanted);
  Result<Grammar> made = with_reason(Code::kInvalidArgument, [&]() -> Result<Grammar> {
    const grammar_effort::OnThread counts(&counted);
    return Grammar(std::make_shared<Grammar::State>(
        Grammar::State{state_->prepared().CompileStructuralTag(std::string(structural_tag))}));
  });
  if (!made && counted.is_over()) return Status::error(Code::kTimeout, grammar_effort::kTooMuch);
  if (!made) return made;
  Result<GrammarState> begun = made->begin();
  std::vector<std::uint32_t> first(static_cast<std::size_t>(state_->tokenizer.num_tokens() + 31) /
                                   32);
  if (const Status filled = begun ? begun->fill(first) : begun.status(); !filled)
    return Status::error(Code::kInvalidArgument, std::string(filled.message()));
  if (std::all_of(first.begin(), first.end(), [](std::uint32_t word) { return word == 0; }))
    return Status::error(Code::kInvalidArgument, "no text of this vocabulary fits it");
  return made;
}

#else  // without XGrammar

namespace {

Status not_built() {
  return Status::error(Code::kUnsupported, "this program was built without grammars");
}

}  // namespace

struct GrammarState::State {};
struct Grammar::State {};
struct GrammarCompiler::State {};

Status GrammarState::fill(std::span<std::uint32_t>) { return not_built(); }
Status GrammarState::accept(std::int32_t) { return not_built(); }
Result<GrammarState> Grammar::begin() const { return not_built(); }
bool GrammarCompiler::is_built() { return false; }
GrammarCompiler::GrammarCompiler(const Tokenizer&, std::span<const std::int32_t>, std::int64_t) {}
Result<Grammar> GrammarCompiler::compile(std::string_view, const GrammarWork&) const {
  return not_built();
}

#endif

GrammarState::GrammarState(std::unique_ptr<State> state) : state_(std::move(state)) {}
GrammarState::GrammarState(GrammarState&&) noexcept = default;
GrammarState& GrammarState::operator=(GrammarState&&) noexcept = default;
GrammarState::~GrammarState() = default;
Grammar::Grammar(std::shared_ptr<const State> state) : state_(std::move(state)) {}
GrammarCompiler::~GrammarCompiler() = default;

}  // namespace tenon
