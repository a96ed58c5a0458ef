// What the server answers to which request: routes, keys, models, health. Not here: connections
// (http.h), the bodies of requests (requests.h), answers of the model (generation.h).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/api.h"
#include "apps/server/generation.h"
#include "apps/server/http.h"
#include "apps/server/later.h"
#include "apps/server/metrics.h"

namespace tenon::server {

struct ServiceOptions {
  std::vector<std::string> models;   // names that requests may use; the first is the one shown
  bool any_model = false;            // other names too
  std::vector<std::string> keys;     // one of them must come with a request; empty: none is needed
  std::vector<std::string> origins;  // of web pages that may ask; "*": all; empty: none
  std::string model_path, version;
  int num_ranks = 1;
  int num_ids = 0;  // token ids that there are
  ApiDefaults defaults;
  std::int64_t max_untaken_tokens = 4096;
  int max_queued = 1024;  // of the queue; a request with more answers could never be taken
  std::chrono::milliseconds stall_time{20'000};  // without a step's end, until /health says 503
  bool access_log = true;
  bool has_page = true;  // page.h at "/"
  std::uint64_t first_seed = 0;
};

class Service {
 public:
  // Both outlive this, and this outlives the server that calls it.
  Service(const serve::LanguageModel& model, serve::RequestQueue& queue, ServiceOptions options);

  // Any thread.
  // The answer's head names the origin of the web page that asks, where it may.
  std::unique_ptr<HttpExchange> handle(HttpRequest request);
  // The answer to a request whose body, still to come, need not be read: a refusal for its key, its
  // path, its method or its type. Null where the body is wanted.
  std::unique_ptr<HttpExchange> screen(const HttpRequest& head);
  static std::string refusal(int status, std::string_view why);
  void done(const HttpRecord& record);
  // For /metrics: what is known elsewhere, asked at once and without waiting.
  struct Sources {
    std::function<HttpCounts()> http;
    std::function<std::optional<EngineStats>()> engine;
  };
  void set_sources(Sources sources) { sources_ = std::move(sources); }
  // Why /health says 503 now, or empty.
  std::string unhealthy() const;
  // From now on /health says 503 and no request is taken.
  void drain();

 private:
  struct Route;
  struct Call {
    const HttpRequest& request;
    std::string_view rest;  // of the path, behind a route that ends with '/'
  };
  using Handler = std::unique_ptr<HttpExchange> (Service::*)(const Call&);
  static const std::vector<Route>& routes();
  static const Route* find_route(std::string_view path);

  std::unique_ptr<HttpExchange> page(const Call& call);
  std::unique_ptr<HttpExchange> health(const Call& call);
  std::unique_ptr<HttpExchange> health_generate(const Call& call);
  std::unique_ptr<HttpExchange> version(const Call& call);
  std::unique_ptr<HttpExchange> metrics(const Call& call);
  std::unique_ptr<HttpExchange> description(const Call& call);
  std::unique_ptr<HttpExchange> models(const Call& call);
  std::unique_ptr<HttpExchange> model_info(const Call& call);
  std::unique_ptr<HttpExchange> server_info(const Call& call);
  std::unique_ptr<HttpExchange> load(const Call& call);
  std::unique_ptr<HttpExchange> chat(const Call& call);
  std::unique_ptr<HttpExchange> completions(const Call& call);
  std::unique_ptr<HttpExchange> messages(const Call& call);
  std::unique_ptr<HttpExchange> count_tokens(const Call& call);
  std::unique_ptr<HttpExchange> generate(const Call& call);
  std::unique_ptr<HttpExchange> render_chat(const Call& call);
  std::unique_ptr<HttpExchange> render_completions(const Call& call);
  std::unique_ptr<HttpExchange> tokenize(const Call& call);
  std::unique_ptr<HttpExchange> detokenize(const Call& call);

  const Route* route_of(const HttpRequest& request) const;
  std::unique_ptr<HttpExchange> answer_head(const HttpRequest& request, const Route* route);
  std::unique_ptr<HttpExchange> with_origin(const HttpRequest& request,
                                            std::unique_ptr<HttpExchange> exchange) const;
  std::unique_ptr<HttpExchange> options(const HttpRequest& request, const Route& route) const;
  // The origin that an answer names, or empty.
  std::string allowed_origin(const HttpRequest& request) const;
  std::unique_ptr<HttpExchange> answer(Dialect dialect, const HttpRequest& request);
  std::unique_ptr<HttpExchange> answer_in_form(Dialect dialect,
                                               const std::shared_ptr<PreparedRequest>& prepared,
                                               const AnswerHead& head, bool is_quick);
  std::unique_ptr<HttpExchange> render(Dialect dialect, const HttpRequest& request);
  // The request in `body` with its prompts as ids, and `name` of the model that answers.
  ApiResult<PreparedRequest> understand(Dialect dialect, const std::string& body,
                                        std::string& name) const;
  std::optional<ApiError> check_key(const HttpRequest& request) const;
  std::optional<ApiError> check_model(const std::string& name) const;

  const ServiceOptions options_;
  Metrics metrics_;
  Engines engines_;
  Sources sources_;
  std::atomic<bool> draining_{false};
  // Compile grammars, each on two more threads; last, as their tasks use the rest. What takes more
  // than kQuickEffort is begun anew among the slow ones: the others never wait for its end.
  static constexpr std::int64_t kQuickEffort = kMaxGrammarEffort / 150;
  static constexpr int kQuick = 1, kSlow = 2, kMostWaiting = 256;
  Workers slow_{kSlow, kMostWaiting}, quick_{kQuick, kMostWaiting};
};

}  // namespace tenon::server
