// tenon._engine: an engine with its queue (tenon/serve) for Python. What users see, and what they
// may pass, is in bindings/python/tenon/_engine_api.py; the engine checks values.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python/src/dict_of.h"
#include "bindings/python/src/raise.h"
#include "bindings/python/src/released.h"
#include "tenon/serve/language_model.h"
#include "tenon/serve/request_queue.h"
#include "tenon/text/jinja/template.h"

namespace tenon::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;

// How often a thread that waits asks whether the user pressed Ctrl-C.
constexpr std::chrono::milliseconds kSignalPeriod{100};

[[noreturn]] void raise(Code code, const std::string& text) {
  python::raise(static_cast<std::int32_t>(code), text);  // the numbers of tenon.h are those of Code
}

[[noreturn]] void raise(const Status& why) { raise(why.code(), std::string(why.message())); }

void check(const Status& status) {
  if (!status) raise(status);
}

// An engine's threads do not exist in a child of fork(): nothing of it is touched there.
class HomeProcess {
 public:
  bool here() const { return getpid() == pid_; }
  void check(const char* what) const {
    if (!here())
      raise(
          Code::kUnsupported,
          std::string(what) + " belongs to process " + std::to_string(pid_) +
              ", this is its child " + std::to_string(getpid()) +
              " made by fork(); accepted: the process that opened it, or one started by spawn that "
              "opens its own");
  }

 private:
  pid_t pid_ = getpid();
};

jinja::Value parsed(const char* what, const std::string& json) {
  auto value = jinja::parse_json(json);
  if (!value)
    raise(value.status().code(), std::string(what) + ": " + std::string(value.status().message()));
  return std::move(*value);
}

serve::ChatPrompt chat_prompt(const std::string& messages, const std::string& tools,
                              std::optional<bool> enable_thinking) {
  serve::ChatPrompt prompt;
  const jinja::Value list = parsed("messages", messages);
  const auto refuse = [](const char* found) {
    raise(Code::kInvalidArgument,
          std::string(found) + "; accepted: a list of dicts with a role that is a text");
  };
  if (!list.is_list()) refuse("messages are no list");
  for (const jinja::Value& item : list.items()) {
    if (!item.is_dict()) refuse("a message is no dict");
    ChatMessage message;
    for (const auto& [key, value] : item.pairs()) {
      if (key.as_string() == "role" && value.is_string())
        message.role = value.as_string();
      else if (key.as_string() == "content" && value.is_string())
        message.content = value.as_string();
      else
        message.more.emplace_back(key.as_string(), value);
    }
    if (message.role.empty()) refuse("a message has no role");
    prompt.messages.push_back(std::move(message));
  }
  prompt.tools = parsed("tools", tools);
  prompt.options.enable_thinking = enable_thinking;
  return prompt;
}

nb::object logprobs_of(const std::vector<TokenLogprobs>& tokens) {
  nb::list told;
  for (const TokenLogprobs& token : tokens)
    told.append(nb::make_tuple(token.drawn, token.likeliest));
  return told;
}

nb::object outcome_of(const serve::Outcome& outcome) {
  if (outcome.reason == serve::FinishReason::kFailed) raise(outcome.why);
  const std::string_view reason = serve::name(outcome.reason);
  return dict_of("finish_reason", nb::str(reason.data(), reason.size()), "stop", outcome.stop,
                 "prompt_tokens", outcome.prompt_tokens, "cached_tokens", outcome.cached_tokens,
                 "completion_tokens", outcome.completion_tokens, "first_token_seconds",
                 serve::first_token_seconds(outcome), "seconds_per_token",
                 serve::seconds_per_token(outcome));
}

// One reader at a time, any thread; the lock makes that so.
class ReplyHandle {
 public:
  explicit ReplyHandle(serve::Reply reply)
      : lock_(std::make_unique<std::mutex>()),
        reply_(std::make_unique<serve::Reply>(std::move(reply))) {}
  ReplyHandle(ReplyHandle&&) = default;
  ReplyHandle& operator=(ReplyHandle&&) = delete;
  ~ReplyHandle() {
    if (!home_.here()) static_cast<void>(reply_.release());
  }

  // (text, tokens, logprobs, outcome or None), after waiting until there is something.
  nb::tuple wait() {
    home_.check("this reply");
    for (;;) {
      serve::ReplyPart part;
      {
        const Released released;
        const std::lock_guard one(*lock_);
        part = reply_->wait_for(kSignalPeriod);
      }
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (part.empty()) {
        if (over_)
          raise(Code::kInvalidArgument,
                "the reply was read to its end; accepted: one read, or a new request");
        continue;
      }
      over_ = part.outcome.has_value();
      nb::object outcome = over_ ? outcome_of(*part.outcome) : nb::none();
      return nb::make_tuple(part.text, part.tokens, logprobs_of(part.logprobs), outcome);
    }
  }
  void cancel() {
    home_.check("this reply");
    const Released released;
    reply_->cancel();
  }

 private:
  HomeProcess home_;
  std::unique_ptr<std::mutex> lock_;
  std::unique_ptr<serve::Reply> reply_;
  bool over_ = false;
};

// A model and the queue over it; the queue's thread ends when this does.
struct Opened {
  std::unique_ptr<serve::LanguageModel> model;
  std::unique_ptr<serve::RequestQueue> queue;
};

Result<std::shared_ptr<Opened>> open(const EngineOptions& options, int max_queued) {
  auto opened = std::make_shared<Opened>();
  TENON_ASSIGN(opened->model, serve::LanguageModel::open(options, serve::TemplateUse::kIfThere));
  TENON_ASSIGN(opened->queue, serve::RequestQueue::start(*opened->model, {max_queued}));
  return opened;
}

class EngineHandle {
 public:
  explicit EngineHandle(std::shared_ptr<Opened> opened) : opened_(std::move(opened)) {}
  EngineHandle(EngineHandle&& other) noexcept : opened_(std::move(other.opened_)) {}
  EngineHandle& operator=(EngineHandle&&) = delete;
  ~EngineHandle() {
    if (!home_.here()) new std::shared_ptr<Opened>(std::move(opened_));  // kept for ever
  }

  // What is open, for one call: close() in another thread leaves it alive until that ends.
  std::shared_ptr<Opened> opened() const {
    home_.check("this engine");
    const std::lock_guard alone(lock_);
    if (!opened_)
      raise(Code::kInvalidArgument, "the engine was closed; accepted: one that is open");
    return opened_;
  }
  void close() {
    home_.check("this engine");
    const Released released;
    std::shared_ptr<Opened> last;
    const std::lock_guard alone(lock_);
    last.swap(opened_);
  }

 private:
  HomeProcess home_;
  mutable std::mutex lock_;
  std::shared_ptr<Opened> opened_;  // null after close()
};

EngineHandle open_engine(const std::string& model, int tp, const std::string& target, int max_batch,
                         int max_context, int max_tokens_per_step, std::int64_t cache_tokens,
                         int prefix_states, int max_queued, const std::string& transport,
                         std::int64_t deadline_ms) {
  const std::optional<Target> named = target_named(target);
  if (!named)
    raise(Code::kInvalidArgument,
          "target is \"" + target + "\"; accepted: cuda, hip, cpu, emu32 or emu64, where built");
  EngineOptions options;
  options.model = model;
  options.tp = tp;
  options.target = *named;
  options.max_batch = max_batch;
  options.max_context = max_context;
  options.max_tokens_per_step = max_tokens_per_step;
  options.cache_tokens = cache_tokens;
  options.prefix_states = prefix_states;
  options.transport = transport;
  options.deadline = std::chrono::milliseconds(deadline_ms);
  std::shared_ptr<Opened> opened;
  Status status = Status::ok();
  {
    const Released released;
    auto made = open(options, max_queued);
    if (made) opened = std::move(*made);
    status = made.status();
  }
  check(status);
  return EngineHandle(std::move(opened));
}

SamplingParams make_sampling(float temperature, float top_p, int top_k, float min_p, int max_tokens,
                             std::uint64_t seed, bool ignore_eos, float repetition_penalty,
                             float frequency_penalty, float presence_penalty,
                             std::vector<std::pair<std::int32_t, float>> logit_bias, int min_tokens,
                             int logprobs) {
  SamplingParams sampling;
  sampling.temperature = temperature;
  sampling.top_p = top_p;
  sampling.top_k = top_k;
  sampling.min_p = min_p;
  sampling.max_tokens = max_tokens;
  sampling.seed = seed;
  sampling.ignore_eos = ignore_eos;
  sampling.repetition_penalty = repetition_penalty;
  sampling.frequency_penalty = frequency_penalty;
  sampling.presence_penalty = presence_penalty;
  sampling.logit_bias = std::move(logit_bias);
  sampling.min_tokens = min_tokens;
  sampling.logprobs = logprobs;
  return sampling;
}

ReplyHandle submit(const EngineHandle& engine, serve::Prompt prompt, const SamplingParams& sampling,
                   std::vector<std::string> stops, std::vector<std::int32_t> stop_ids,
                   bool skip_special) {
  serve::Request request;
  request.prompt = std::move(prompt);
  request.sampling = sampling;
  request.stops = std::move(stops);
  request.stop_ids = std::move(stop_ids);
  request.skip_special = skip_special;
  const auto opened = engine.opened();
  serve::Submission made;
  {
    const Released released;
    made = opened->queue->submit(std::move(request));
  }
  if (!made) raise(made.why);
  return ReplyHandle(std::move(made.reply));
}

std::vector<std::int32_t> encode(const EngineHandle& engine, const std::string& text) {
  auto ids = engine.opened()->model->text().tokenizer().encode(text);
  if (!ids) raise(ids.status());
  return std::move(*ids);
}

nb::object decode(const EngineHandle& engine, const std::vector<std::int32_t>& ids,
                  bool skip_special) {
  const std::string text = engine.opened()->model->text().tokenizer().decode(ids, skip_special);
  PyObject* const made =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

std::string render(const EngineHandle& engine, const serve::ChatPrompt& prompt) {
  auto text = engine.opened()->model->text().render(prompt);
  if (!text) raise(text.status());
  return std::move(*text);
}

nb::dict counts(const EngineHandle& engine) {
  const serve::QueueCounts counts = engine.opened()->queue->counts();
  return dict_of("accepted", counts.accepted, "queued", counts.queued, "running", counts.running,
                 "finished", counts.finished, "failed", counts.failed, "cancelled",
                 counts.cancelled);
}

}  // namespace
}  // namespace tenon::python

NB_MODULE(_engine, module) {
  using namespace tenon;
  using namespace tenon::python;
  nb::set_leak_warnings(false);  // a thread that waits at the end of the process keeps things
  nb::class_<SamplingParams>(module, "Sampling");
  module.def("sampling", make_sampling, "temperature"_a, "top_p"_a, "top_k"_a, "min_p"_a,
             "max_tokens"_a, "seed"_a, "ignore_eos"_a, "repetition_penalty"_a,
             "frequency_penalty"_a, "presence_penalty"_a, "logit_bias"_a, "min_tokens"_a,
             "logprobs"_a);
  nb::class_<serve::ChatPrompt>(module, "ChatPrompt");
  module.def("chat_prompt", chat_prompt, "messages"_a, "tools"_a, "enable_thinking"_a.none());
  nb::class_<ReplyHandle>(module, "Reply")
      .def("wait", &ReplyHandle::wait)
      .def("cancel", &ReplyHandle::cancel);
  nb::class_<EngineHandle>(module, "Engine")
      .def_static("open", open_engine, "model"_a, "tp"_a, "target"_a, "max_batch"_a,
                  "max_context"_a, "max_tokens_per_step"_a, "cache_tokens"_a, "prefix_states"_a,
                  "max_queued"_a, "transport"_a, "deadline_ms"_a)
      .def(
          "submit_ids",
          [](const EngineHandle& self, std::vector<std::int32_t> ids,
             const SamplingParams& sampling, std::vector<std::string> stops,
             std::vector<std::int32_t> stop_ids, bool skip_special) {
            return submit(self, std::move(ids), sampling, std::move(stops), std::move(stop_ids),
                          skip_special);
          },
          "ids"_a, "sampling"_a, "stops"_a, "stop_ids"_a, "skip_special"_a)
      .def(
          "submit_text",
          [](const EngineHandle& self, std::string text, const SamplingParams& sampling,
             std::vector<std::string> stops, std::vector<std::int32_t> stop_ids,
             bool skip_special) {
            return submit(self, std::move(text), sampling, std::move(stops), std::move(stop_ids),
                          skip_special);
          },
          "text"_a, "sampling"_a, "stops"_a, "stop_ids"_a, "skip_special"_a)
      .def(
          "submit_chat",
          [](const EngineHandle& self, const serve::ChatPrompt& chat,
             const SamplingParams& sampling, std::vector<std::string> stops,
             std::vector<std::int32_t> stop_ids, bool skip_special) {
            return submit(self, chat, sampling, std::move(stops), std::move(stop_ids),
                          skip_special);
          },
          "chat"_a, "sampling"_a, "stops"_a, "stop_ids"_a, "skip_special"_a)
      .def("encode", encode, "text"_a)
      .def("decode", decode, "ids"_a, "skip_special"_a)
      .def("render", render, "chat"_a)
      .def("counts", counts)
      .def("health", [](const EngineHandle& self) { check(self.opened()->queue->health()); })
      .def("max_context",
           [](const EngineHandle& self) { return self.opened()->model->max_context(); })
      .def("max_batch", [](const EngineHandle& self) { return self.opened()->model->max_batch(); })
      .def("close", &EngineHandle::close);
}
