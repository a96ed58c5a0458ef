// A checkpoint as something that reads and writes text: tokenizer, chat template and engine, opened
// together. Not here: many callers at a time (request_queue.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/engine.h"
#include "tenon/serve/request.h"
#include "tenon/text/chat_template.h"
#include "tenon/text/tokenizer.h"

namespace tenon::serve {

// Whether the checkpoint's chat template is read.
enum class TemplateUse : std::uint8_t { kIfThere, kRequired, kNone };

// Whether the checkpoint in `directory` brings a chat template, valid or not.
bool has_chat_template(const std::string& directory);

// Text to token ids and back, without an engine. Immutable and safe to share between threads.
class TextCodec {
 public:
  // Reads the tokenizer and, where asked, the chat template in `directory`.
  static Result<TextCodec> load(const std::string& directory, TemplateUse use);
  // Prompts are token ids, and answers have no text.
  static TextCodec without_text() { return TextCodec(Tokenizer::none()); }
  explicit TextCodec(Tokenizer tokenizer, std::optional<ChatTemplate> chat_template = {});

  const Tokenizer& tokenizer() const { return tokenizer_; }
  bool reads_text() const { return tokenizer_.num_tokens() > 0; }
  bool chats() const { return chat_template_.has_value(); }
  // The text that a conversation becomes, with the answer about to begin. kUnsupported without a
  // template; what the template raises is kInvalidArgument.
  Result<std::string> render(const ChatPrompt& prompt) const;
  // The token ids of a prompt; ids are given back as they are.
  Result<std::vector<std::int32_t>> encode(Prompt prompt) const;
  // What ends an answer besides the end-of-sequence ids of the model: those of a chat, if any.
  std::vector<std::int32_t> eos_ids() const;

 private:
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_template_;
};

class LanguageModel {
 public:
  // Opens the engine that `options` ask for, with the ids and ends that `text` knows (num_tokens
  // and eos_ids of `options` are set here). Collective over processes, as Engine::open. With a
  // factory, for tests: any Model instead of a checkpoint.
  static Result<std::unique_ptr<LanguageModel>> open(TextCodec text, EngineOptions options,
                                                     Engine::ModelFactory make_model = {});
  // The same with the text of the checkpoint that `options` name.
  static Result<std::unique_ptr<LanguageModel>> open(const EngineOptions& options, TemplateUse use);

  // As the engine's: rank 0 leads; other processes follow and ask nothing else of this object.
  bool leads() const { return engine_->leads(); }
  Status follow() { return engine_->follow(); }

  const TextCodec& text() const { return text_; }
  int max_context() const { return max_context_; }  // tokens, prompt and answer together
  int max_batch() const { return max_batch_; }      // requests that run together
  // Ids that end an answer, of the model and of the chat.
  const std::vector<std::int32_t>& eos_ids() const { return eos_ids_; }
  // Grammars over the tokens of `text`, for rules of requests.
  const GrammarCompiler& grammars() const { return *grammars_; }
  const std::shared_ptr<const AnswerMarks>& marks() const { return marks_; }
  // For one thread at a time; a RequestQueue over this model is that thread.
  Engine& engine() { return *engine_; }
  // Whether the engine would take it. Safe from any thread. Between close() and reopen() it is ok:
  // whoever submits then is told that the engine is dead.
  Status check(const std::vector<std::int32_t>& prompt, const SamplingParams& sampling) const;

  // Engine::whereabouts() of the engine that there is, or empty. Safe from any thread.
  std::string whereabouts() const;

  // For an engine that is dead. close() ends it, and what it held is free; from then on nobody may
  // ask for engine() until reopen() has made another one of the same model. Collective, as open():
  // `options` are those of open(), with a bootstrap of its own where ranks are processes.
  void close();
  Status reopen(EngineOptions options);

 private:
  LanguageModel(TextCodec text, const EngineOptions& options, Engine::ModelFactory make_model);
  TextCodec text_;
  int max_context_ = 0, max_batch_ = 0;
  std::vector<std::int32_t> eos_ids_;
  Engine::ModelFactory make_model_;
  mutable std::shared_mutex mutex_;  // which engine there is
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const AnswerMarks> marks_;
  std::optional<GrammarCompiler> grammars_;  // uses text_
};

}  // namespace tenon::serve
