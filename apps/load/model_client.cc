#include "apps/load/model_client.h"

#include <CLI/CLI.hpp>

#include "apps/interrupt.h"
#include "apps/options.h"
#include "tenon/core/clock.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

using nlohmann::json;
using server::HttpEnd;

constexpr std::size_t kMaxLineBytes = std::size_t{16} << 20;  // of a stream
constexpr std::size_t kMaxErrorBytes = 4096;                  // of a body that says why

const char* kind_of(HttpEnd::Kind kind) {
  switch (kind) {
    case HttpEnd::Kind::kWhole: return "";
    case HttpEnd::Kind::kNoServer: return "no server";
    case HttpEnd::Kind::kBroken: return "broken";
    case HttpEnd::Kind::kOutOfTime: return "out of time";
  }
  return "";
}

std::string sentence_of(const std::string& body) {
  const auto parsed = parse_json(body);
  if (parsed && parsed->is_object() && parsed->contains("error")) {
    const json& error = (*parsed)["error"];
    if (error.is_object() && error.contains("message") && error["message"].is_string())
      return error["message"];
    if (error.is_string()) return error;
  }
  return body.substr(0, 200);
}

// The answer of one call while it comes.
class Incoming {
 public:
  Incoming(double asked_s, std::function<void(ModelReply)> told) : told_(std::move(told)) {
    reply_.asked_s = asked_s;
  }

  void head(int status) { status_ = status; }

  void bytes(std::string_view bytes, double now_s) {
    held_ += bytes;
    if (status_ != 200) {
      held_.resize(std::min(held_.size(), kMaxErrorBytes));
      return;
    }
    std::size_t begin = 0;
    for (auto end = held_.find('\n'); end != std::string::npos; end = held_.find('\n', begin)) {
      std::string_view line(held_.data() + begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.starts_with("data:")) event(line.substr(5), now_s);
      begin = end + 1;
    }
    held_.erase(0, begin);
    if (held_.size() > kMaxLineBytes) fail("malformed", "a line of the stream has no end");
  }

  void end(const HttpEnd& end, double now_s) {
    reply_.ended_s = now_s;
    if (end.kind != HttpEnd::Kind::kWhole) {
      fail(kind_of(end.kind), end.why);
    } else if (status_ != 200) {
      fail("http " + std::to_string(status_), sentence_of(held_));
    } else if (!done_) {
      fail("cut off", "the stream ended without [DONE]");
    }
    if (reply_.completion_tokens == 0)
      for (const auto& each : reply_.arrivals) reply_.completion_tokens += each.tokens;
    told_(std::move(reply_));
  }

 private:
  void fail(std::string kind, std::string why) {
    if (!reply_.error.empty()) return;  // the first one counts
    reply_.error = std::move(kind);
    reply_.why = std::move(why);
  }

  void event(std::string_view text, double now_s) {
    while (text.starts_with(' ')) text.remove_prefix(1);
    if (text == "[DONE]") {
      done_ = true;
      return;
    }
    const auto parsed = parse_json(text);
    if (!parsed || !parsed->is_object())
      return fail("malformed",
                  "an event of the stream is no JSON object: " + std::string(text.substr(0, 200)));
    if (parsed->contains("error")) return fail("error event", sentence_of(std::string(text)));
    if (const auto usage = parsed->find("usage"); usage != parsed->end() && usage->is_object()) {
      read_count(*usage, "prompt_tokens", reply_.prompt_tokens);
      read_count(*usage, "completion_tokens", reply_.completion_tokens);
    }
    const auto choices = parsed->find("choices");
    if (choices == parsed->end() || !choices->is_array() || choices->empty()) return;
    if (choices->at(0).is_object()) choice(choices->at(0), now_s);
  }

  static void read_count(const json& usage, const char* name, std::int64_t& out) {
    if (usage.contains(name) && usage[name].is_number_integer()) out = usage[name];
  }

  void choice(const json& choice, double now_s) {
    bool news = add_text(choice, "text");
    if (choice.contains("delta") && choice["delta"].is_object()) {
      const json& delta = choice["delta"];
      news |= add_text(delta, "reasoning_content") || add_text(delta, "reasoning");
      news |= add_text(delta, "content");
    }
    int count = 1;
    if (choice.contains("token_ids") && choice["token_ids"].is_array()) {
      count = 0;
      for (const json& each : choice["token_ids"]) {
        if (!each.is_number_integer()) continue;
        reply_.tokens.push_back(each);
        ++count;
      }
      news = count > 0;
    }
    if (news) reply_.arrivals.push_back({now_s, count});
    if (choice.contains("finish_reason") && choice["finish_reason"].is_string())
      reply_.finish = choice["finish_reason"];
  }

  bool add_text(const json& from, const char* name) {
    if (!from.contains(name) || !from[name].is_string()) return false;
    const auto& text = from[name].get_ref<const std::string&>();
    reply_.text += text;
    return !text.empty();
  }

  std::function<void(ModelReply)> told_;
  ModelReply reply_;
  std::string held_;
  int status_ = 0;
  bool done_ = false;
};

}  // namespace

void add_client_options(CLI::App& app, ClientOptions& options, const char* group) {
  app.add_option("--served-model-name", options.model,
                 "the model that is asked for; default: the first that the server names")
      ->type_name("NAME")
      ->group(group);
  app.add_option("--api-key", options.key, "the key that the server wants")
      ->type_name("KEY")
      ->group(group);
  app.add_option("--patience-seconds", options.patience_s,
                 "a request ends as failed where nothing has come for so long")
      ->capture_default_str()
      ->check(whole_number(1, 86'400))
      ->group(group);
}

double ModelClient::now_s() const { return seconds_since(begin_); }

void ModelClient::at(double when_s, std::function<void()> what) {
  const std::chrono::duration<double> passed(when_s);
  http_->at(begin_ + std::chrono::duration_cast<std::chrono::steady_clock::duration>(passed),
            std::move(what));
}

server::HttpFields ModelClient::fields() const {
  if (options_.key.empty()) return {};
  return {{"authorization", "Bearer " + options_.key}};
}

std::string ModelClient::body_of(const ModelCall& call) const {
  json body{{"model", options_.model},
            {"temperature", call.temperature},
            {"seed", call.seed},
            {"stream", true},
            {"stream_options", {{"include_usage", true}}},
            {"return_token_ids", true}};
  body[options_.chat ? "max_completion_tokens" : "max_tokens"] = call.max_tokens;
  if (call.ignore_eos) body["ignore_eos"] = true;
  if (!call.stops.empty()) body["stop"] = call.stops;
  const auto* text = std::get_if<std::string>(&call.prompt);
  if (options_.chat) {
    body["messages"] = {{{"role", "user"}, {"content", text != nullptr ? *text : std::string()}}};
  } else if (text != nullptr) {
    body["prompt"] = *text;
  } else {
    body["prompt"] = std::get<std::vector<std::int32_t>>(call.prompt);
  }
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

void ModelClient::ask(const ModelCall& call, std::function<void(ModelReply)> told) {
  const auto incoming = std::make_shared<Incoming>(now_s(), std::move(told));
  server::HttpCall http;
  http.method = "POST";
  http.path = options_.chat ? "/v1/chat/completions" : "/v1/completions";
  http.body = body_of(call);
  http.fields = fields();
  http.on_head = [incoming](int status) { incoming->head(status); };
  http.on_bytes = [this, incoming](std::string_view bytes) { incoming->bytes(bytes, now_s()); };
  http.on_end = [this, incoming](const HttpEnd& end) { incoming->end(end, now_s()); };
  http_->ask(std::move(http));
}

void ModelClient::ask_whole(const char* method, const char* path, std::string body, Whole told) {
  struct Held {
    int status = 0;
    std::string body;
  };
  const auto held = std::make_shared<Held>();
  server::HttpCall http;
  http.method = method;
  http.path = path;
  http.body = std::move(body);
  http.fields = fields();
  http.on_head = [held](int status) { held->status = status; };
  http.on_bytes = [held](std::string_view bytes) { held->body += bytes; };
  http.on_end = [held, told = std::move(told)](const HttpEnd& end) {
    told(end, held->status, held->body);
  };
  http_->ask(std::move(http));
}

Result<json> ModelClient::get(const char* path) {
  const std::string where = options_.url + path;
  Result<json> found = Status::error(Code::kIo, where + ": a signal came before the answer");
  ask_whole("GET", path, {}, [&](const HttpEnd& end, int status, const std::string& body) {
    if (end.kind != HttpEnd::Kind::kWhole) {
      found = Status::error(Code::kIo, where + ": " + kind_of(end.kind) + ": " + end.why);
    } else if (status != 200) {
      found = Status::error(
          Code::kIo, where + ": status " + std::to_string(status) + ": " + sentence_of(body));
    } else {
      found = parse_json(body);
    }
  });
  TENON_TRY(http_->run([] { return interrupted_by() != 0; }));
  return found;
}

Result<int> ModelClient::vocabulary() {
  const auto info = get("/get_model_info");
  if (interrupted_by() != 0) return info.status();
  if (!info || !info->is_object() || !info->contains("vocab_size")) return 0;
  const json& size = (*info)["vocab_size"];
  return size.is_number_integer() ? size.get<int>() : 0;
}

Result<std::vector<std::string>> ModelClient::texts_of(
    const std::vector<std::vector<std::int32_t>>& ids) {
  std::vector<std::string> texts(ids.size());
  Status failed = Status::ok();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const json body{{"model", options_.model}, {"tokens", ids[i]}};
    const auto told = [&, i](const HttpEnd& end, int status, const std::string& answer) {
      const auto parsed = parse_json(answer);
      if (end.kind == HttpEnd::Kind::kWhole && status == 200 && parsed && parsed->is_object() &&
          parsed->contains("prompt") && (*parsed)["prompt"].is_string()) {
        texts[i] = (*parsed)["prompt"];
        return;
      }
      failed = Status::error(Code::kIo, options_.url +
                                            "/detokenize gives no text for token ids (status " +
                                            std::to_string(status) +
                                            "), which a chat needs; --backend openai does not");
    };
    ask_whole("POST", "/detokenize", body.dump(), told);
    // One after the other: this is no load.
    TENON_TRY(http_->run([] { return interrupted_by() != 0; }));
    TENON_TRY(Status(failed));
  }
  return texts;
}

Result<ModelClient> ModelClient::open(const ClientOptions& options) {
  TENON_ASSIGN(const server::HttpUrl url, server::parse_url(options.url));
  ModelClient client;
  client.options_ = options;
  TENON_ASSIGN(client.http_, server::HttpClient::make(
                                 url, std::chrono::milliseconds(1000LL * options.patience_s)));
  if (!options.model.empty()) return client;
  TENON_ASSIGN(const json models, client.get("/v1/models"));
  if (models.is_object() && models.contains("data") && models["data"].is_array() &&
      !models["data"].empty() && models["data"][0].is_object() &&
      models["data"][0].contains("id") && models["data"][0]["id"].is_string()) {
    client.options_.model = models["data"][0]["id"];
    return client;
  }
  return Status::error(Code::kIo,
                       options.url + "/v1/models names no model; --served-model-name may be given");
}

}  // namespace tenon::apps
