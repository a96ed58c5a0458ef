#include "apps/server/service.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <utility>

#include "apps/server/json_text.h"
#include "apps/server/openapi.h"
#include "apps/server/page.h"
#include "apps/server/requests.h"

namespace tenon::server {
namespace {

using jinja::Value;
using Exchange = std::unique_ptr<HttpExchange>;

Exchange json_answer(const Json& json, int status = 200) {
  return answer_at_once({status, "application/json", {}}, to_text(json));
}

// Takes the same time wherever the texts differ.
bool equal_secrets(std::string_view a, std::string_view b) {
  unsigned differs = a.size() != b.size();
  for (std::size_t i = 0; i < a.size(); ++i)
    differs |= static_cast<unsigned char>(a[i]) ^
               static_cast<unsigned char>(b.empty() ? '\0' : b[i % b.size()]);
  return differs == 0;
}

bool is_json(const std::string& content_type) {
  std::string lower = content_type.substr(0, content_type.find(';'));
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  while (lower.ends_with(' ')) lower.pop_back();
  return lower == "application/json";
}

// "Qwen%2Fsmall" of a path: "Qwen/small". What is no such code stays as it is.
std::string decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    const char* const begin = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size()) {
      const auto [stop, error] = std::from_chars(begin, begin + 2, value, 16);
      if (error == std::errc() && stop == begin + 2) {
        out += static_cast<char>(value);
        i += 2;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

// Which methods a path takes, as the field "allow" has them.
std::string methods_of(std::string_view method) {
  return std::string(method == "GET" ? "GET, HEAD" : method) + ", OPTIONS";
}

std::int64_t unix_time() { return static_cast<std::int64_t>(std::time(nullptr)); }

}  // namespace

struct Service::Route {
  ApiPath at;
  Handler handler;
  Dialect dialect = Dialect::kChat;
};

const std::vector<Service::Route>& Service::routes() {
  constexpr Dialect kMessages = Dialect::kMessages;
  constexpr bool kOpen = true, kKeyed = false;
  static const std::vector<Route> all = {
      {{"/health", "GET", ApiBody::kHealth, kOpen}, &Service::health},
      {{"/ping", "GET", ApiBody::kHealth, kOpen}, &Service::health},
      {{"/health_generate", "GET", ApiBody::kGenerated, kKeyed}, &Service::health_generate},
      {{"/version", "GET", ApiBody::kVersion, kOpen}, &Service::version},
      {{"/metrics", "GET", ApiBody::kMetrics, kOpen}, &Service::metrics},
      {{"/openapi.json", "GET", ApiBody::kDescription, kOpen}, &Service::description},
      {{"/v1/models", "GET", ApiBody::kModels, kKeyed}, &Service::models},
      {{"/v1/models/", "GET", ApiBody::kModel, kKeyed}, &Service::models},
      {{"/get_model_info", "GET", ApiBody::kModelInfo, kKeyed}, &Service::model_info},
      {{"/model_info", "GET", ApiBody::kModelInfo, kKeyed}, &Service::model_info},
      {{"/get_server_info", "GET", ApiBody::kServerInfo, kKeyed}, &Service::server_info},
      {{"/server_info", "GET", ApiBody::kServerInfo, kKeyed}, &Service::server_info},
      {{"/get_load", "GET", ApiBody::kLoad, kKeyed}, &Service::load},
      {{"/v1/chat/completions", "POST", ApiBody::kChat, kKeyed}, &Service::chat},
      {{"/v1/completions", "POST", ApiBody::kCompletion, kKeyed},
       &Service::completions,
       Dialect::kCompletion},
      {{"/v1/chat/completions/render", "POST", ApiBody::kRenderChat, kKeyed},
       &Service::render_chat},
      {{"/v1/completions/render", "POST", ApiBody::kRenderCompletion, kKeyed},
       &Service::render_completions},
      {{"/v1/messages", "POST", ApiBody::kMessages, kKeyed}, &Service::messages, kMessages},
      {{"/v1/messages/count_tokens", "POST", ApiBody::kCountTokens, kKeyed},
       &Service::count_tokens,
       kMessages},
      {{"/generate", "POST", ApiBody::kGenerate, kKeyed}, &Service::generate, Dialect::kGenerate},
      {{"/tokenize", "POST", ApiBody::kTokenize, kKeyed}, &Service::tokenize},
      {{"/detokenize", "POST", ApiBody::kDetokenize, kKeyed}, &Service::detokenize},
  };
  return all;
}

const Service::Route* Service::find_route(std::string_view path) {
  static const Route page = {{"/", "GET", ApiBody::kPage, true}, &Service::page};
  if (find_page_file(path) != nullptr) return &page;
  const Route* found = nullptr;
  for (const Route& each : routes())
    if (path == each.at.path || (each.at.path.ends_with('/') && path.starts_with(each.at.path) &&
                                 path.size() > each.at.path.size()))
      found = &each;
  return found;
}

Service::Service(const serve::LanguageModel& model, serve::RequestQueue& queue,
                 ServiceOptions options)
    : options_(std::move(options)),
      engines_{model, queue, metrics_, options_.max_untaken_tokens, {options_.first_seed}} {}

std::string Service::refusal(int status, std::string_view why) {
  return error_body(Dialect::kChat, {status, std::string(why), {}, {}}, {});
}

void Service::drain() {
  draining_ = true;
  engines_.queue.close();
}

std::optional<ApiError> Service::check_key(const HttpRequest& request) const {
  if (options_.keys.empty()) return std::nullopt;
  std::string_view given;
  if (const std::string* bearer = request.find("authorization"); bearer != nullptr)
    if (bearer->size() > 7 && (bearer->starts_with("Bearer ") || bearer->starts_with("bearer ")))
      given = std::string_view(*bearer).substr(7);
  if (const std::string* key = request.find("x-api-key"); key != nullptr && given.empty())
    given = *key;
  bool known = false;
  for (const std::string& each : options_.keys) known |= equal_secrets(given, each);
  if (known) return std::nullopt;
  return ApiError{401,
                  given.empty() ? "there is no API key; accepted are \"Authorization: Bearer KEY\" "
                                  "and \"x-api-key: KEY\""
                                : "the API key is not known",
                  {},
                  "invalid_api_key"};
}

std::optional<ApiError> Service::check_model(const std::string& name) const {
  if (name.empty() || options_.any_model) return std::nullopt;
  if (std::count(options_.models.begin(), options_.models.end(), name) > 0) return std::nullopt;
  std::string known;
  for (const std::string& each : options_.models)
    known += (known.empty() ? "\"" : ", \"") + each + "\"";
  return ApiError{404, "there is no model \"" + name.substr(0, 200) + "\"; accepted is " + known,
                  "model", "model_not_found"};
}

std::string Service::unhealthy() const {
  if (const Status alive = engines_.queue.health(); !alive)
    return "the engine is dead: " + std::string(alive.message());
  if (draining_) return "the server is about to end";
  const auto stalled = engines_.queue.stalled_for();
  if (stalled > options_.stall_time)
    return "requests wait, and no step has ended for " + std::to_string(stalled.count()) +
           " ms: " + engines_.model.whereabouts();
  return {};
}

std::string Service::allowed_origin(const HttpRequest& request) const {
  const std::string* origin = request.find("origin");
  for (const std::string& each : options_.origins) {
    if (each == "*") return each;
    if (origin != nullptr && each == *origin) return each;
  }
  return {};
}

Exchange Service::handle(HttpRequest request) {
  const Route* route = route_of(request);
  Exchange known = answer_head(request, route);
  if (known == nullptr) {
    const std::string_view rest =
        std::string_view(request.path).substr(std::min(request.path.size(), route->at.path.size()));
    known = (this->*route->handler)({request, rest});
  }
  return with_origin(request, std::move(known));
}

Exchange Service::screen(const HttpRequest& head) {
  Exchange known = answer_head(head, route_of(head));
  return known == nullptr ? nullptr : with_origin(head, std::move(known));
}

Exchange Service::with_origin(const HttpRequest& request, Exchange exchange) const {
  if (options_.origins.empty()) return exchange;
  HttpFields fields;
  if (std::string origin = allowed_origin(request); !origin.empty()) {
    fields.emplace_back("access-control-allow-origin", std::move(origin));
    fields.emplace_back("access-control-expose-headers", "x-request-id, retry-after");
  }
  fields.emplace_back("vary", "origin");
  return with_fields(std::move(exchange), std::move(fields));
}

// Browsers ask it before a page's request to a foreign server, without the key.
Exchange Service::options(const HttpRequest& request, const Route& route) const {
  const std::string methods = methods_of(route.at.method);
  HttpHead head{204, {}, {{"allow", methods}}};
  if (!allowed_origin(request).empty()) {
    head.fields.emplace_back("access-control-allow-methods", methods);
    if (const std::string* asked = request.find("access-control-request-headers"))
      head.fields.emplace_back("access-control-allow-headers", *asked);
    head.fields.emplace_back("access-control-max-age", "600");
  }
  return answer_at_once(std::move(head), {});
}

const Service::Route* Service::route_of(const HttpRequest& request) const {
  const Route* route = find_route(request.path);
  const bool is_page = route != nullptr && route->handler == &Service::page;
  return is_page && !options_.has_page ? nullptr : route;
}

// What is answered without a look at the body; null where the route's handler is to be asked.
Exchange Service::answer_head(const HttpRequest& request, const Route* route) {
  const Dialect dialect = route != nullptr                           ? route->dialect
                          : request.path.starts_with("/v1/messages") ? Dialect::kMessages
                                                                     : Dialect::kChat;
  const auto refuse = [&](ApiError error) { return answer_with_error(dialect, error, request.id); };
  if (route != nullptr && request.method == "OPTIONS") return options(request, *route);
  if (route == nullptr || !route->at.open)
    if (auto error = check_key(request)) return refuse(*std::move(error));
  if (route == nullptr)
    return refuse({404, "there is no " + printable(request.path), {}, "not_found"});
  if (request.method != route->at.method)
    return with_fields(
        refuse({405,
                printable(request.method) + " is not for " + std::string(route->at.path) +
                    "; accepted is " + std::string(route->at.method),
                {},
                "method_not_allowed"}),
        {{"allow", methods_of(route->at.method)}});
  if (request.method == "POST") {
    // A web page may send other types to any host without asking.
    const std::string* type = request.find("content-type");
    if (type == nullptr || !is_json(*type))
      return refuse(
          {415,
           "the body's content-type is " +
               (type == nullptr ? std::string("not given") : "\"" + printable(*type) + "\"") +
               "; accepted is application/json",
           {},
           {}});
    const std::string* coding = request.find("content-encoding");
    if (coding != nullptr && *coding != "identity")
      return refuse({415,
                     "the body's content-encoding is \"" + printable(*coding) +
                         "\"; accepted is a body as it is",
                     {},
                     {}});
  }
  return nullptr;
}

void Service::done(const HttpRecord& record) {
  const Route* route = find_route(record.path);
  metrics_.answered(route != nullptr ? std::string(route->at.path) : "other", record.status);
  if (!options_.access_log) return;
  char when[32];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &parts);
  std::fprintf(stderr, "%s %s %s %s %d %lluB %.3fs id=%s%s%s%s\n", when, record.peer.c_str(),
               printable(record.method).c_str(), printable(record.path).c_str(), record.status,
               static_cast<unsigned long long>(record.bytes), record.seconds, record.id.c_str(),
               record.note.empty() ? "" : " ", record.note.c_str(),
               record.whole ? "" : " not whole");
}

// ---- about the server ----

// Open, as its scripts hold no secret: they ask for a key where one is needed.
Exchange Service::page(const Call& call) {
  const PageFile& file = *find_page_file(call.request.path);
  return answer_at_once(page_head(file), std::string(file.bytes));
}

Exchange Service::health(const Call&) {
  const std::string why = unhealthy();
  if (why.empty()) return json_answer({{"status", "ok"}});
  return json_answer({{"status", "unavailable"}, {"why", why}}, 503);
}

Exchange Service::health_generate(const Call& call) {
  ApiRequest request;
  request.dialect = Dialect::kGenerate;
  request.prompts.emplace_back(std::vector<std::int32_t>{0});
  request.max_tokens = 1;
  auto prepared = prepare(engines_.model, std::move(request));
  if (auto* error = std::get_if<ApiError>(&prepared))
    return answer_with_error(Dialect::kGenerate, *error, call.request.id);
  return make_generation(engines_, std::get<PreparedRequest>(std::move(prepared)),
                         AnswerHead{call.request.id, options_.models[0], unix_time()});
}

Exchange Service::version(const Call&) { return json_answer({{"version", options_.version}}); }

Exchange Service::metrics(const Call&) {
  const Metrics::Now now{engines_.queue.counts(),
                         sources_.http(),
                         std::chrono::duration<double>(engines_.queue.stalled_for()).count(),
                         unhealthy().empty(),
                         engines_.model.max_batch(),
                         sources_.engine()};
  return answer_at_once({200, "text/plain; version=0.0.4; charset=utf-8", {}},
                        metrics_.text(options_.models[0], now));
}

Exchange Service::description(const Call&) {
  std::vector<ApiPath> paths;
  for (const Route& each : routes()) paths.push_back(each.at);
  return answer_at_once({}, openapi_document(paths, options_.version, !options_.keys.empty()));
}

Exchange Service::models(const Call& call) {
  const auto shown = [&](const std::string& name) -> Json {
    return {{"id", name},
            {"object", "model"},
            {"created", 0},
            {"owned_by", "tenon"},
            {"root", options_.model_path},
            {"parent", nullptr},
            {"max_model_len", engines_.model.max_context()},
            {"permission", Json::array()}};
  };
  if (!call.rest.empty()) {
    const std::string wanted = decoded(call.rest);
    if (const auto error = check_model(wanted))
      return answer_with_error(Dialect::kChat, *error, call.request.id);
    return json_answer(shown(wanted));
  }
  Json list = Json::array();
  for (const std::string& name : options_.models) list.push_back(shown(name));
  return json_answer({{"object", "list"}, {"data", std::move(list)}});
}

Exchange Service::model_info(const Call&) {
  return json_answer({{"model_path", options_.model_path},
                      {"tokenizer_path", options_.model_path},
                      {"is_generation", true},
                      {"served_model_name", options_.models[0]},
                      {"max_model_len", engines_.model.max_context()},
                      {"vocab_size", options_.num_ids}});
}

// What routers read when they meet a server. `internal_states` is where SGLang's load client looks
// for the lengths of accepted drafts, of which there are none.
Exchange Service::server_info(const Call&) {
  Json info{{"model_path", options_.model_path},
            {"tokenizer_path", options_.model_path},
            {"served_model_name", options_.models[0]},
            {"version", options_.version},
            {"tp_size", options_.num_ranks},
            {"dp_size", 1},
            {"context_length", engines_.model.max_context()},
            {"max_running_requests", engines_.model.max_batch()},
            {"internal_states", Json::array({Json::object()})}};
  if (const auto engine = sources_.engine())
    info["max_total_num_tokens"] = engine->memory.cache_tokens;
  return json_answer(info);
}

// One entry, as there are no replicas inside of a server.
Exchange Service::load(const Call&) {
  const serve::QueueCounts counts = engines_.queue.counts();
  return json_answer(Json::array({{{"dp_rank", 0},
                                   {"num_reqs", counts.running + counts.queued},
                                   {"num_waiting_reqs", counts.queued},
                                   {"num_tokens", metrics_.held_tokens()}}}));
}

// ---- answers of the model ----

Exchange Service::chat(const Call& call) { return answer(Dialect::kChat, call.request); }
Exchange Service::completions(const Call& call) {
  return answer(Dialect::kCompletion, call.request);
}
Exchange Service::messages(const Call& call) { return answer(Dialect::kMessages, call.request); }
Exchange Service::generate(const Call& call) { return answer(Dialect::kGenerate, call.request); }

ApiResult<PreparedRequest> Service::understand(Dialect dialect, const std::string& body,
                                               std::string& name) const {
  auto parsed = parse_request(dialect, body, options_.defaults);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  ApiRequest& wanted = std::get<ApiRequest>(parsed);
  if (auto error = check_model(wanted.model)) return *std::move(error);
  const auto most = static_cast<std::size_t>(options_.max_queued);
  if (wanted.choices() > most && wanted.max_tokens != 0)
    return ApiError{400,
                    "the request asks for " + std::to_string(wanted.choices()) +
                        " answers; accepted are " + std::to_string(most) +
                        ", as many as may wait here",
                    wanted.n > 1 ? wanted.n_field : wanted.prompt_field,
                    {}};
  name = wanted.model.empty() ? options_.models[0] : wanted.model;
  return prepare(engines_.model, std::move(wanted));
}

Exchange Service::answer(Dialect dialect, const HttpRequest& request) {
  std::string name;
  auto understood = understand(dialect, request.body, name);
  if (const auto* error = std::get_if<ApiError>(&understood))
    return answer_with_error(dialect, *error, request.id);
  AnswerHead head{request.id, name, unix_time()};
  auto& prepared = std::get<PreparedRequest>(understood);
  if (!needs_grammar(prepared))
    return make_generation(engines_, std::move(prepared), std::move(head));
  return answer_in_form(dialect, std::make_shared<PreparedRequest>(std::move(prepared)), head,
                        /*is_quick=*/true);
}

// Whether a form is compiled at the first or at the second attempt, the answer is the same.
Exchange Service::answer_in_form(Dialect dialect, const std::shared_ptr<PreparedRequest>& prepared,
                                 const AnswerHead& head, bool is_quick) {
  return answer_later(
      is_quick ? quick_ : slow_,
      [=, this](const IsWanted& is_wanted) -> Exchange {
        const Status made = compile_grammar(engines_.model, *prepared,
                                            {is_quick ? kQuickEffort : kMaxGrammarEffort,
                                             [&] { return is_wanted() && !draining_; }});
        if (made) return make_generation(engines_, std::move(*prepared), head);
        if (draining_) return answer_with_error(dialect, draining_error(), head.id);
        if (is_quick && made.code() == Code::kTimeout)
          return answer_in_form(dialect, prepared, head, /*is_quick=*/false);
        const std::string& field = prepared->request.grammar_field;
        return answer_with_error(
            dialect, field_error(Status(made).with("\"" + field + "\""), field), head.id);
      },
      [dialect, id = head.id](int status, const std::string& why) {
        return answer_with_error(
            dialect, {status, "its grammar is not compiled: " + why + "; ask again later", {}, {}},
            id);
      });
}

// What routers ask that choose a server by the beginning of a prompt.
Exchange Service::render(Dialect dialect, const HttpRequest& request) {
  std::string name;
  const auto prepared = understand(dialect, request.body, name);
  if (const auto* error = std::get_if<ApiError>(&prepared))
    return answer_with_error(dialect, *error, request.id);
  Json all = Json::array();
  for (const auto& prompt : std::get<PreparedRequest>(prepared).prompts)
    all.push_back({{"request_id", request.id}, {"model", name}, {"token_ids", prompt}});
  return json_answer(dialect == Dialect::kChat ? all[0] : all);
}

Exchange Service::render_chat(const Call& call) { return render(Dialect::kChat, call.request); }
Exchange Service::render_completions(const Call& call) {
  return render(Dialect::kCompletion, call.request);
}

Exchange Service::count_tokens(const Call& call) {
  const auto refuse = [&](const ApiError& error) {
    return answer_with_error(Dialect::kMessages, error, call.request.id);
  };
  auto body = parse_body(call.request.body);
  if (const auto* error = std::get_if<ApiError>(&body)) return refuse(*error);
  std::optional<ApiError> error;
  ApiRequest request;
  request.dialect = Dialect::kMessages;
  const Fields fields(std::get<Value>(body), error);
  fields.text("model", request.model);
  read_messages_api(fields, request);
  if (!error) error = check_model(request.model);
  if (error) return refuse(*error);
  auto prepared = prepare(engines_.model, std::move(request));
  if (const auto* why = std::get_if<ApiError>(&prepared)) return refuse(*why);
  return json_answer({{"input_tokens", std::get<PreparedRequest>(prepared).prompts[0].size()}});
}

// ---- texts and ids ----

Exchange Service::tokenize(const Call& call) {
  const auto refuse = [&](const ApiError& error) {
    return answer_with_error(Dialect::kChat, error, call.request.id);
  };
  auto body = parse_body(call.request.body);
  if (const auto* error = std::get_if<ApiError>(&body)) return refuse(*error);
  std::optional<ApiError> error;
  ApiRequest request;
  const Fields fields(std::get<Value>(body), error);
  fields.text("model", request.model);
  bool strings = false;
  fields.boolean("return_token_strs", strings);
  std::string text;
  if (fields.find("messages") != nullptr) {
    read_conversation(fields, request);
  } else if (fields.need("prompt") != nullptr) {
    fields.text("prompt", text);
  }
  if (!error) error = check_model(request.model);
  if (error) return refuse(*error);
  serve::Prompt prompt =
      request.prompts.empty() ? serve::Prompt(text) : std::move(request.prompts[0]);
  const auto ids = engines_.model.text().encode(std::move(prompt));
  if (!ids) return refuse(field_error(ids.status(), "prompt"));
  Json out{
      {"count", ids->size()}, {"max_model_len", engines_.model.max_context()}, {"tokens", *ids}};
  if (strings) {
    out["token_strs"] = Json::array();
    for (const std::int32_t id : *ids)
      out["token_strs"].push_back(std::string(engines_.model.text().tokenizer().token_bytes(id)));
  }
  return json_answer(out);
}

Exchange Service::detokenize(const Call& call) {
  auto body = parse_body(call.request.body);
  std::optional<ApiError> error;
  if (auto* wrong = std::get_if<ApiError>(&body)) error = std::move(*wrong);
  std::vector<std::int32_t> ids;
  if (!error) {
    const Fields fields(std::get<Value>(body), error);
    std::string model;
    fields.text("model", model);
    if (fields.need("tokens") != nullptr)
      fields.ids("tokens", static_cast<std::size_t>(kMaxContext), ids);
    for (const std::int32_t id : ids)
      if (id >= options_.num_ids)
        fields.fail("tokens", "has " + std::to_string(id) + "; accepted are token ids from 0 to " +
                                  std::to_string(options_.num_ids - 1));
    if (!engines_.model.text().reads_text())
      fields.fail("tokens", "cannot become a text: this model has no tokenizer");
    if (!error) error = check_model(model);
  }
  if (error) return answer_with_error(Dialect::kChat, *error, call.request.id);
  return json_answer({{"prompt", engines_.model.text().tokenizer().decode(ids, false)}});
}

}  // namespace tenon::server
