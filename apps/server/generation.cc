#include "apps/server/generation.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <span>
#include <utility>

namespace tenon::server {
namespace {

using serve::Clock;
using Tokens = std::vector<std::int32_t>;

// What may stand for an effort that a template refuses, best first.
std::vector<const char*> near_efforts(const std::string& effort) {
  if (effort == "minimal") return {"low"};
  if (effort == "high") return {"xhigh", "max"};
  if (effort == "max") return {"xhigh", "high"};
  if (effort == "xhigh") return {"max", "high"};
  return {};
}

Result<std::string> render(const serve::LanguageModel& model, const serve::ChatPrompt& prompt,
                           const std::string& effort) {
  if (effort.empty()) return model.text().render(prompt);
  const auto with = [&](const char* name) {
    serve::ChatPrompt tried = prompt;
    tried.options.more.emplace_back("reasoning_effort", name);
    return model.text().render(tried);
  };
  auto rendered = with(effort.c_str());
  if (rendered) return rendered;
  for (const char* name : near_efforts(effort))
    if (auto other = with(name)) return other;
  return rendered;
}

HttpHead head_of(const ApiError& error) {
  HttpHead head{error.status, "application/json", {}};
  if (error.status == 429 || error.status == 503) head.fields.emplace_back("retry-after", "1");
  if (error.status == 401) head.fields.emplace_back("www-authenticate", "Bearer");
  return head;
}

ApiError error_of(const serve::Submission& made) {
  const std::string why(made.why.message());
  switch (made.admission) {
    case serve::Admission::kInvalid: return {400, why, {}, {}};
    case serve::Admission::kFull: return {429, why, {}, "queue_full"};
    case serve::Admission::kClosed: return draining_error();
    case serve::Admission::kNoMemory: return {500, why, {}, {}};
    case serve::Admission::kFailed:
    case serve::Admission::kAccepted: break;
  }
  return {503, why, {}, "engine_failed"};
}

class Generation final : public HttpExchange {
 public:
  Generation(Engines& engines, PreparedRequest prepared, AnswerHead head)
      : engines_(engines),
        request_(std::move(prepared.request)),
        prompts_(std::move(prepared.prompts)),
        rule_(std::move(prepared.rule)),
        id_(head.id),
        format_(make_format(request_.dialect, std::move(head))) {}

  ~Generation() override { leave(); }

  void begin(std::function<void()> wake) override {
    const int think_end = engines_.model.text().tokenizer().id_of("</think>");
    const bool counts_thoughts = request_.form.has_reasoning && think_end >= 0;
    const std::uint64_t seed =
        request_.seed ? *request_.seed : engines_.next_seed.fetch_add(0x9E3779B97F4A7C15u);
    choices_.reserve(request_.choices());
    for (std::size_t i = 0; i < request_.choices(); ++i) {
      const Tokens& prompt = prompts_[i / static_cast<std::size_t>(request_.n)];
      Choice& choice = choices_.emplace_back(request_.form);
      choice.usage.prompt_tokens = static_cast<std::int64_t>(prompt.size());
      if (counts_thoughts) choice.usage.reasoning_tokens = 0;
      choice.thinks = counts_thoughts && request_.form.in_reasoning;
      choice.all.index = i;
      if (request_.echo)
        choice.untold.push_back({AnswerPiece::Kind::kText,
                                 engines_.model.text().tokenizer().decode(prompt, false), -1});
      if (runs() &&
          !submit(choice, prompt, seed + i % static_cast<std::uint64_t>(request_.n), wake))
        return;
      engines_.metrics.began(choice.usage.prompt_tokens, static_cast<bool>(choice.reply));
    }
    think_end_ = think_end;
  }

  HttpPiece next() override {
    std::string events;
    bool open = false;
    for (Choice& each : choices_) {
      if (!failure_ && !each.over) advance(each, events);
      open |= !each.over;
    }
    if (failure_) return fail(std::move(events));
    if (!request_.stream) return open ? HttpPiece{} : whole();
    if (!open) events += format_->end(usage());
    HttpPiece piece{{}, std::move(events), !open};
    if (!piece.bytes.empty() && !std::exchange(begun_, true))
      piece.head = HttpHead{200,
                            "text/event-stream; charset=utf-8",
                            {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}}};
    return piece;
  }

  std::string note() const override {
    const Usage used = usage();
    return "prompt=" + std::to_string(used.prompt_tokens) +
           " tokens=" + std::to_string(used.completion_tokens) + (ends_.empty() ? "" : " end=") +
           ends_;
  }

 private:
  struct Choice {
    explicit Choice(const AnswerForm& form) : parser(form) {}
    serve::Reply reply;
    AnswerParser parser;
    ChoicePart all;                   // of an answer that is sent whole
    std::vector<AnswerPiece> untold;  // in front of what comes
    Usage usage;
    std::optional<Clock::time_point> last;
    bool thinks = false, over = false, told_prompt = false;
  };

  // A prompt alone needs the engine where something is told of it.
  bool runs() const { return request_.max_tokens != 0 || request_.sampling.prompt_logprobs >= 0; }

  bool submit(Choice& choice, const Tokens& prompt, std::uint64_t seed,
              const std::function<void()>& wake) {
    serve::Request request;
    request.prompt = prompt;
    request.sampling = request_.sampling;
    request.sampling.seed = seed;
    request.sampling.max_tokens =
        request_.max_tokens.value_or(std::numeric_limits<std::int32_t>::max());
    request.stops = request_.stops;
    request.stop_ids = request_.stop_ids;
    request.rule = rule_;
    request.skip_special = request_.skip_special;
    request.max_untaken_tokens = request_.stream ? engines_.max_untaken_tokens : 0;
    request.on_ready = wake;
    serve::Submission made = engines_.queue.submit(std::move(request));
    if (!made) {
      failure_ = error_of(made);
      return false;
    }
    choice.reply = std::move(made.reply);
    return true;
  }

  // Takes what has come of one choice.
  void advance(Choice& choice, std::string& events) {
    serve::ReplyPart came;
    if (choice.reply) {
      came = choice.reply.take();
      if (came.empty()) return;
    }
    ChoicePart part;
    part.index = choice.all.index;
    part.pieces = std::exchange(choice.untold, {});
    std::optional<serve::Outcome> outcome;
    if (choice.reply) {
      count(choice, came.tokens);
      add(part.pieces, choice.parser.push(came.text));
      part.told = told(came.tokens, came.logprobs);
      part.prompt_told = told_of_prompt(choice, came);
      part.tokens = std::move(came.tokens);
      outcome = std::move(came.outcome);
      if (!outcome && choice.parser.full()) choice.reply.cancel();
    } else {
      part.end = Ending{Ending::Reason::kLength, {}};  // of no tokens at all
    }
    if (outcome) {
      engines_.metrics.ended(*outcome, choice.usage.tokens());
      choice.usage.cached_tokens = outcome->cached_tokens;
      add(part.pieces, choice.parser.finish());
      part.seconds =
          std::chrono::duration<double>(outcome->times.ended - outcome->times.queued).count();
      end(choice, *outcome, part);
      choice.over = true;
      if (failure_) return;
    }
    part.usage = choice.usage;
    choice.over |= part.end.has_value();
    if (request_.stream) {
      events += format_->part(part);
      return;
    }
    add(choice.all.pieces, std::move(part.pieces));
    auto& tokens = choice.all.tokens;
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
    choice.all.told.insert(choice.all.told.end(), part.told.begin(), part.told.end());
    std::ranges::move(part.prompt_told, std::back_inserter(choice.all.prompt_told));
    choice.all.end = std::move(part.end);
    choice.all.usage = part.usage;
    choice.all.seconds = part.seconds;
  }

  // Tokens with their probabilities; nothing where they were not asked for.
  std::vector<ToldToken> told(std::span<const std::int32_t> tokens,
                              const std::vector<TokenLogprobs>& logprobs) const {
    const Tokenizer& tokenizer = engines_.model.text().tokenizer();
    std::vector<ToldToken> all;
    for (std::size_t i = 0; i < logprobs.size(); ++i) {
      ToldToken& one = all.emplace_back();
      one.id = tokens[i];
      one.bytes = tokenizer.token_bytes(one.id);
      one.logprob = logprobs[i].drawn;
      one.rank = logprobs[i].rank;
      for (const auto& [id, logprob] : logprobs[i].likeliest)
        one.likeliest.push_back({id, std::string(tokenizer.token_bytes(id)), logprob});
    }
    return all;
  }

  // The prompt from where it is told on, once; nothing is known of the first of its tokens.
  std::vector<ToldToken> told_of_prompt(Choice& choice, const serve::ReplyPart& came) const {
    const bool due = !came.prompt_logprobs.empty() || !came.tokens.empty() || came.outcome;
    if (request_.sampling.prompt_logprobs < 0 || !due || std::exchange(choice.told_prompt, true))
      return {};
    const std::span<const std::int32_t> prompt =
        std::span(prompts_[choice.all.index / static_cast<std::size_t>(request_.n)])
            .subspan(static_cast<std::size_t>(request_.sampling.prompt_logprobs_from));
    std::vector<ToldToken> all = told(prompt.subspan(1), came.prompt_logprobs);
    ToldToken first;
    first.id = prompt[0];
    first.bytes = engines_.model.text().tokenizer().token_bytes(first.id);
    all.insert(all.begin(), std::move(first));
    return all;
  }

  // Pieces behind others; texts of one kind are put together.
  static void add(std::vector<AnswerPiece>& to, std::vector<AnswerPiece> from) {
    for (AnswerPiece& each : from) {
      const bool joins = !to.empty() && to.back().kind == each.kind && to.back().call == each.call;
      if (joins)
        to.back().text += each.text;
      else
        to.push_back(std::move(each));
    }
  }

  void count(Choice& choice, const Tokens& tokens) {
    if (tokens.empty()) return;
    const auto now = Clock::now();
    const auto number = static_cast<std::int64_t>(tokens.size());
    engines_.metrics.took(number);
    if (choice.last)
      engines_.metrics.between(std::chrono::duration<double>(now - *choice.last).count(), number);
    choice.last = now;
    choice.usage.completion_tokens += number;
    for (const std::int32_t token : tokens) {
      if (!choice.thinks) break;
      ++*choice.usage.reasoning_tokens;
      choice.thinks = token != think_end_;
    }
  }

  void end(const Choice& choice, const serve::Outcome& outcome, ChoicePart& part) {
    if (!ends_.empty()) ends_ += ',';
    ends_ += name(outcome.reason);
    const bool calls = choice.parser.calls() > 0;
    switch (outcome.reason) {
      case serve::FinishReason::kStop:
        part.end = Ending{calls ? Ending::Reason::kCalls : Ending::Reason::kStop, {}};
        return;
      case serve::FinishReason::kStopString:
        part.end = Ending{Ending::Reason::kStop, outcome.stop};
        return;
      case serve::FinishReason::kLength:
      case serve::FinishReason::kContext: part.end = Ending{Ending::Reason::kLength, {}}; return;
      case serve::FinishReason::kCancelled:
        if (choice.parser.full()) {
          part.end = Ending{Ending::Reason::kCalls, {}};
          return;
        }
        break;
      case serve::FinishReason::kFailed:
        failure_ = ApiError{500, std::string(outcome.why.message()), {}, "request_failed"};
        return;
      case serve::FinishReason::kReaderBehind:
        failure_ =
            ApiError{500,
                     "the client left more than " + std::to_string(engines_.max_untaken_tokens) +
                         " tokens of the answer unread",
                     {},
                     "reader_behind"};
        return;
      case serve::FinishReason::kStopped: break;
    }
    failure_ = ApiError{503, "the server ended before the answer", {}, "stopped"};
  }

  Usage usage() const {
    Usage all;
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      const Usage& one = choices_[i].usage;
      if (i % static_cast<std::size_t>(request_.n) == 0) {
        all.prompt_tokens += one.prompt_tokens;
        all.cached_tokens += one.cached_tokens;
      }
      all.completion_tokens += one.completion_tokens;
      if (one.reasoning_tokens)
        all.reasoning_tokens = all.reasoning_tokens.value_or(0) + *one.reasoning_tokens;
    }
    return all;
  }

  HttpPiece whole() {
    std::vector<ChoicePart> parts;
    for (Choice& each : choices_) parts.push_back(std::move(each.all));
    return {HttpHead{}, format_->whole(parts, usage()), true};
  }

  // Nobody reads the choices any more: those that run are cancelled, and counted as such.
  void leave() {
    for (const Choice& each : choices_)
      if (each.reply && !each.over) engines_.metrics.left(each.usage.tokens());
    choices_.clear();
  }

  HttpPiece fail(std::string events) {
    leave();
    if (begun_) return {{}, std::move(events) + format_->broken(*failure_), true};
    return {head_of(*failure_), error_body(request_.dialect, *failure_, id_), true};
  }

  Engines& engines_;
  const ApiRequest request_;
  const std::vector<Tokens> prompts_;
  const serve::AnswerRule rule_;
  const std::string id_;
  const std::unique_ptr<Format> format_;
  std::int32_t think_end_ = -1;
  std::vector<Choice> choices_;
  std::optional<ApiError> failure_;
  std::string ends_;
  bool begun_ = false;
};

}  // namespace

namespace {

// The error of a prompt that leaves no room in the context, or nothing.
std::optional<ApiError> check_context(const serve::LanguageModel& model, std::size_t prompt_tokens,
                                      const std::string& field) {
  const auto most = static_cast<std::size_t>(model.max_context());
  if (prompt_tokens < most) return std::nullopt;
  return ApiError{400,
                  "this model's maximum context length is " + std::to_string(most) +
                      " tokens, of which at least 1 is for the answer; the prompt has " +
                      std::to_string(prompt_tokens),
                  field, "context_length_exceeded"};
}

// The error of a place in the prompt that it does not have, or nothing.
std::optional<ApiError> check_start(std::size_t prompt_tokens, const ApiRequest& request) {
  const auto from = static_cast<std::size_t>(request.sampling.prompt_logprobs_from);
  if (from == 0 || from < prompt_tokens) return std::nullopt;
  return ApiError{400,
                  "\"logprob_start_len\" is " + std::to_string(from) + "; a prompt of " +
                      std::to_string(prompt_tokens) + " tokens accepts -1 to " +
                      std::to_string(prompt_tokens - 1),
                  "logprob_start_len",
                  {}};
}

// Log probabilities of prompts that one request may be told: an answer holds all of them at once.
constexpr std::int64_t kMaxTold = std::int64_t{1} << 24;

std::optional<ApiError> check_told(std::int64_t told, const std::string& field) {
  if (told <= kMaxTold) return std::nullopt;
  return ApiError{400,
                  "the request asks for " + std::to_string(told) +
                      " log probabilities of its prompts, those of each answer counted; accepted "
                      "are " +
                      std::to_string(kMaxTold),
                  field,
                  {}};
}

// Whether the engine would take the prompt, and how tokens are drawn. Of the latter all but the ids
// of logit_bias was looked at when the request was read.
std::optional<ApiError> check_engine(const serve::LanguageModel& model,
                                     const std::vector<std::int32_t>& prompt,
                                     const ApiRequest& request) {
  SamplingParams sampling = request.sampling;
  sampling.max_tokens =
      std::max(1, request.max_tokens.value_or(std::numeric_limits<std::int32_t>::max()));
  const Status sound = model.check(prompt, sampling);
  if (sound) return std::nullopt;
  sampling.logit_bias.clear();
  const auto is_bias = static_cast<bool>(model.check(prompt, sampling));
  return field_error(sound, is_bias ? request.bias_field : request.prompt_field);
}

}  // namespace

ApiResult<PreparedRequest> prepare(const serve::LanguageModel& model, ApiRequest request) {
  PreparedRequest out;
  std::int64_t told = 0;
  for (serve::Prompt& prompt : request.prompts) {
    if (const auto* chat = std::get_if<serve::ChatPrompt>(&prompt)) {
      auto text = render(model, *chat, request.effort);
      if (!text) return field_error(text.status(), request.prompt_field);
      out.rule.in_reasoning = ends_in_reasoning(*text);
      request.form.in_reasoning = request.form.has_reasoning && out.rule.in_reasoning;
      prompt = *std::move(text);
    }
    auto ids = model.text().encode(std::move(prompt));
    if (!ids) return field_error(ids.status(), request.prompt_field);
    if (auto error = check_context(model, ids->size(), request.prompt_field))
      return *std::move(error);
    if (auto error = check_start(ids->size(), request)) return *std::move(error);
    if (auto error = check_engine(model, *ids, request)) return *std::move(error);
    if (request.sampling.prompt_logprobs >= 0)
      told += static_cast<std::int64_t>(ids->size()) * request.n *
              (request.sampling.prompt_logprobs + 1);
    out.prompts.push_back(*std::move(ids));
  }
  if (auto error = check_told(told, request.prompt_field)) return *std::move(error);
  out.rule.thinking_budget = request.thinking_budget;
  out.request = std::move(request);
  return out;
}

ApiError field_error(const Status& why, const std::string& field) {
  if (why.code() == Code::kOutOfMemory) return {500, std::string(why.message()), {}, {}};
  return {400, std::string(why.message()), field, {}};
}

ApiError draining_error() { return {503, "the server is about to end", {}, "draining"}; }

bool needs_grammar(const PreparedRequest& prepared) {
  const AnswerGrammar& wanted = prepared.request.grammar;
  return wanted.text || wanted.tools.is_list();
}

Status compile_grammar(const serve::LanguageModel& model, PreparedRequest& prepared,
                       const GrammarWork& work) {
  TENON_ASSIGN(const std::string tag, structural_tag(prepared.request.grammar));
  TENON_ASSIGN(prepared.rule.grammar, model.grammars().compile(tag, work));
  return Status::ok();
}

std::unique_ptr<HttpExchange> make_generation(Engines& engines, PreparedRequest prepared,
                                              AnswerHead head) {
  head.n = prepared.request.n;
  head.include_usage = prepared.request.include_usage;
  head.continuous_usage = prepared.request.continuous_usage;
  // Where the model has no texts, ids are all there is to see.
  head.echo = prepared.request.echo;
  head.shows_prompt_logprobs = prepared.request.shows_prompt_logprobs;
  head.prompt_likeliest = prepared.request.prompt_likeliest;
  head.shows_token_texts = prepared.request.shows_token_texts;
  head.told_likeliest = prepared.request.sampling.logprobs;
  head.return_ids = prepared.request.return_ids || !engines.model.text().reads_text();
  head.is_list = prepared.request.is_batch || prepared.request.n > 1;
  if (head.return_ids) head.prompts = prepared.prompts;
  return std::make_unique<Generation>(engines, std::move(prepared), std::move(head));
}

std::unique_ptr<HttpExchange> answer_with_error(Dialect dialect, const ApiError& error,
                                                const std::string& request_id) {
  return answer_at_once(head_of(error), error_body(dialect, error, request_id));
}

}  // namespace tenon::server
