#include "tenon/serve/language_model.h"

#include <filesystem>
#include <mutex>
#include <utility>

#include "tenon/core/file.h"
#include "tenon/core/guard.h"

namespace tenon::serve {

namespace fs = std::filesystem;

bool has_chat_template(const std::string& directory) {
  std::error_code failed;
  const fs::path at(directory);
  if (fs::exists(at / "chat_template.jinja", failed)) return true;
  const auto config = read_text((at / "tokenizer_config.json").string());
  return config && config->find("\"chat_template\"") != std::string::npos;
}

TextCodec::TextCodec(Tokenizer tokenizer, std::optional<ChatTemplate> chat_template)
    : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)) {}

Result<TextCodec> TextCodec::load(const std::string& directory, TemplateUse use) {
  TENON_ASSIGN(Tokenizer tokenizer, Tokenizer::load(directory));
  if (use == TemplateUse::kNone || (use == TemplateUse::kIfThere && !has_chat_template(directory)))
    return TextCodec(std::move(tokenizer));
  TENON_ASSIGN(ChatTemplate chat, ChatTemplate::load(directory));
  return TextCodec(std::move(tokenizer), std::move(chat));
}

Result<std::string> TextCodec::render(const ChatPrompt& prompt) const {
  if (!chats())
    return Status::error(Code::kUnsupported,
                         "the prompt is a conversation, but no chat template was read; accepted "
                         "are token ids and texts");
  return chat_template_->render(prompt.messages, prompt.tools, prompt.options);
}

Result<std::vector<std::int32_t>> TextCodec::encode(Prompt prompt) const {
  if (auto* ids = std::get_if<std::vector<std::int32_t>>(&prompt)) return std::move(*ids);
  if (const auto* text = std::get_if<std::string>(&prompt)) return tokenizer_.encode(*text);
  TENON_ASSIGN(const std::string rendered, render(std::get<ChatPrompt>(prompt)));
  return tokenizer_.encode(rendered);
}

std::vector<std::int32_t> TextCodec::eos_ids() const {
  std::vector<std::int32_t> ids;
  if (chats() && tokenizer_.eos_id() >= 0) ids.push_back(tokenizer_.eos_id());
  return ids;
}

LanguageModel::LanguageModel(TextCodec text, const EngineOptions& options,
                             Engine::ModelFactory make_model)
    : text_(std::move(text)), max_batch_(options.max_batch), make_model_(std::move(make_model)) {}

Result<std::unique_ptr<LanguageModel>> LanguageModel::open(TextCodec text, EngineOptions options,
                                                           Engine::ModelFactory make_model) {
  return guarded([&]() -> Result<std::unique_ptr<LanguageModel>> {
    std::unique_ptr<LanguageModel> model(
        new LanguageModel(std::move(text), options, std::move(make_model)));
    TENON_TRY(model->reopen(std::move(options)));
    model->max_context_ = model->engine_->max_context();
    const std::vector<std::int32_t>& ends = model->engine_->eos_ids();
    TENON_ASSIGN(AnswerMarks marks, AnswerMarks::of(model->text_.tokenizer(), ends));
    model->eos_ids_ = ends;
    model->marks_ = std::make_shared<const AnswerMarks>(std::move(marks));
    model->grammars_.emplace(model->text_.tokenizer(), ends);
    return model;
  });
}

Status LanguageModel::check(const std::vector<std::int32_t>& prompt,
                            const SamplingParams& sampling) const {
  const std::shared_lock lock(mutex_);
  return engine_ == nullptr ? Status::ok() : engine_->check_request(prompt, sampling);
}

std::string LanguageModel::whereabouts() const {
  const std::shared_lock lock(mutex_);
  return engine_ == nullptr ? std::string() : engine_->whereabouts();
}

void LanguageModel::close() {
  const std::unique_lock lock(mutex_);
  engine_ = nullptr;
}

Status LanguageModel::reopen(EngineOptions options) {
  options.num_tokens = text_.tokenizer().num_tokens();
  options.eos_ids = text_.eos_ids();
  TENON_ASSIGN(auto engine, Engine::open(options, make_model_));
  const std::unique_lock lock(mutex_);
  engine_ = std::move(engine);
  return Status::ok();
}

Result<std::unique_ptr<LanguageModel>> LanguageModel::open(const EngineOptions& options,
                                                           TemplateUse use) {
  TENON_ASSIGN(TextCodec text, TextCodec::load(options.model, use));
  return open(std::move(text), options);
}

}  // namespace tenon::serve
