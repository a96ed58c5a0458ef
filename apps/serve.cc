// tenon serve: a model behind HTTP, for clients of OpenAI's and Anthropic's APIs: docs/serve.md.
#include <sys/timerfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "apps/commands.h"
#include "apps/config_file.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/server/http.h"
#include "apps/server/service.h"
#include "apps/server/stats_watch.h"
#include "apps/session.h"
#include "apps/table.h"
#include "apps/team.h"
#include "apps/version.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/file.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

using std::chrono::milliseconds;
namespace fs = std::filesystem;

struct Options {
  SessionOptions session;
  // More threads of HTTP than cores only take turns on those that the engine of a host computes
  // with.
  server::HttpOptions http{
      .port = 8000,
      .threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 4u))};
  server::ServiceOptions service;
  std::vector<std::string> names;
  std::string key_file;
  bool use_generation_config = true, quiet = false;
  int drain_seconds = 30, stall_seconds = 20, body_mb = 32;
  int request_seconds = 10, write_seconds = 30;
  int restarts = 0;
};

// What the checkpoint's generation_config.json says of drawing; without one, and without a number
// in it, what the APIs say: a temperature of 1, or the likeliest token where it says so.
Result<SamplingParams> sampling_defaults(const std::string& model, bool use_config) {
  SamplingParams sampling;
  sampling.temperature = 1;
  std::error_code ignored;
  fs::path at(model);
  if (!fs::is_directory(at, ignored)) at = at.parent_path();
  const std::string path = (at / "generation_config.json").string();
  if (!use_config || !fs::exists(path, ignored)) return sampling;
  TENON_ASSIGN(const std::string text, read_text(path));
  TENON_ASSIGN(const nlohmann::json config, parse_json(text), path);
  const auto number = [&](const char* name, auto& out) {
    if (config.is_object() && config.contains(name) && config[name].is_number())
      out = config[name].get<std::remove_reference_t<decltype(out)>>();
  };
  number("temperature", sampling.temperature);
  number("top_p", sampling.top_p);
  number("top_k", sampling.top_k);
  if (config.is_object() && config.value("do_sample", nlohmann::json(true)) == false)
    sampling.temperature = 0;
  const Status sound = tenon::check(sampling);
  if (!sound) return Status(sound).with(path);
  return sampling;
}

Result<std::vector<std::string>> read_keys(const std::string& path) {
  std::vector<std::string> keys;
  TENON_ASSIGN(const std::string text, read_text(path));
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    while (line.ends_with('\r') || line.ends_with(' ')) line.pop_back();
    if (!line.empty()) keys.push_back(std::move(line));
    begin = end + 1;
  }
  if (keys.empty())
    return Status::error(Code::kInvalidArgument,
                         "\"" + path + "\" holds no key; accepted is one in each line");
  return keys;
}

// Browsers send an origin as "scheme://host" or "scheme://host:port", and nothing behind it.
Status check_origins(const std::vector<std::string>& origins) {
  for (const std::string& each : origins) {
    const auto scheme = each.find("://");
    const bool sound = scheme != std::string::npos && scheme > 0 && each.size() > scheme + 3 &&
                       each.find_first_of("/ \t*?#", scheme + 3) == std::string::npos;
    if (!sound && each != "*")
      return Status::error(Code::kInvalidArgument,
                           "--allow-origin is \"" + each +
                               "\"; accepted are * and origins such as https://example.org and "
                               "http://localhost:3000, without a path");
  }
  return Status::ok();
}

// One token, so that what is done at a first step is done before the first client comes.
Status warm_up(serve::RequestQueue& queue) {
  serve::Request request;
  request.prompt = std::vector<std::int32_t>{0};
  request.sampling.max_tokens = 2;
  serve::Submission made = queue.submit(std::move(request));
  TENON_TRY(Status(made.why));
  return made.reply.complete().outcome.why;
}

// Until a signal comes, or the engine dies, whose error is returned. Says when /health begins to
// tell that the engine makes no progress, and when it ends to.
Status wait_for_end(Session& session, const server::Service& service, milliseconds deadline) {
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  itimerspec every{};
  every.it_value.tv_nsec = every.it_interval.tv_nsec = 500'000'000;
  if (timer < 0 || timerfd_settime(timer, 0, &every, nullptr) != 0)
    return Status::error(Code::kIo, std::string("cannot make a timer: ") + std::strerror(errno));
  Status alive = Status::ok();
  bool was_healthy = true;
  while (alive && wait_for_input(timer)) {
    std::uint64_t ticks = 0;
    [[maybe_unused]] const auto got = ::read(timer, &ticks, sizeof ticks);
    alive = session.queue().health();
    const std::string why = service.unhealthy();
    if (!alive || why.empty() == was_healthy) continue;
    was_healthy = why.empty();
    if (was_healthy)
      std::fprintf(stderr, "tenon: steps of the engine end again\n");
    else
      std::fprintf(stderr, "tenon: %s; who does not answer for %s s is given up\n", why.c_str(),
                   fixed(std::chrono::duration<double>(deadline).count(), 1).c_str());
  }
  ::close(timer);
  return alive;
}

// What runs may end in time; what does not is cancelled.
void drain(const Options& options, Session& session, server::Service& service,
           server::HttpServer& http) {
  const auto counts = session.queue().counts();
  if (!options.quiet)
    std::fprintf(stderr, "tenon: %lld requests have %d s to end; a second signal ends at once\n",
                 static_cast<long long>(counts.queued + counts.running), options.drain_seconds);
  service.drain();
  http.drain();
  const auto budget = milliseconds(1000 * options.drain_seconds);
  if (session.queue().drain(budget) && http.wait_until_empty(milliseconds(5'000))) return;
  http.stop_now();
}

Status serve_session(const Options& options, Session& session) {
  server::ServiceOptions service_options = options.service;
  service_options.models = options.names;
  if (service_options.models.empty())
    service_options.models.push_back(fs::path(options.session.model).lexically_normal().string());
  service_options.model_path = options.session.model;
  service_options.version = version_name();
  service_options.num_ranks = options.session.tp;
  TENON_ASSIGN(service_options.num_ids, session.num_ids());
  service_options.stall_time = milliseconds(1000 * options.stall_seconds);
  service_options.access_log = !options.quiet;
  service_options.max_queued = options.session.queue.max_queued;
  std::random_device random;
  service_options.first_seed = (std::uint64_t{random()} << 32) | random();
  TENON_ASSIGN(service_options.defaults.sampling,
               sampling_defaults(options.session.model, options.use_generation_config));
  server::HttpOptions http_options = options.http;
  http_options.max_body_bytes = static_cast<std::size_t>(options.body_mb) << 20;
  http_options.header_time = milliseconds(1000 * options.request_seconds);
  http_options.write_time = milliseconds(1000 * options.write_seconds);
  TENON_ASSIGN(const EngineOptions engine, engine_options(options.session));
  TENON_TRY(warm_up(session.queue()));

  server::Service service(session.model(), session.queue(), service_options);
  std::atomic<const server::HttpServer*> counted{nullptr};  // requests come before it is set
  TENON_ASSIGN(const auto watch, server::StatsWatch::start(session.queue()));
  service.set_sources({[&counted] {
                         const server::HttpServer* http = counted;
                         return http == nullptr ? server::HttpCounts{} : http->counts();
                       },
                       [&watch] { return watch->latest(); }});
  const Interruptible interruptible;
  TENON_ASSIGN(const std::unique_ptr<server::HttpServer> http,
               server::HttpServer::start(
                   http_options, {[&](auto request) { return service.handle(std::move(request)); },
                                  [&](const auto& head) { return service.screen(head); },
                                  server::Service::refusal,
                                  [&](const server::HttpRecord& each) { service.done(each); }}));
  counted = http.get();
  const bool v6 = http->host().find(':') != std::string::npos;
  if (!options.session.quiet) {
    TENON_ASSIGN(const EngineStats stats, session.queue().engine_stats());
    std::fprintf(stderr,
                 "%sa request has at most %d tokens, prompt and answer together; %d run together, "
                 "in steps of at most %d tokens\n",
                 memory_table(stats.memory).c_str(), session.model().max_context(),
                 session.model().max_batch(), engine.max_tokens_per_step);
  }
  std::fprintf(stderr, "tenon: \"%s\" is served on http://%s:%d, loaded in %s s%s\n",
               service_options.models[0].c_str(),
               (v6 ? "[" + http->host() + "]" : http->host()).c_str(), http->port(),
               fixed(session.load_seconds(), 2).c_str(),
               service_options.keys.empty() ? ", without keys" : "");
  if (const std::string note = note_of(options.session.weights); !note.empty())
    std::fprintf(stderr, "tenon: %s\n", note.c_str());
  Status ended = wait_for_end(session, service, engine.deadline);
  for (int left = options.restarts; !ended && left > 0; --left) {
    std::fprintf(stderr, "tenon: the engine is dead: %s\ntenon: it is started again; %d of %d\n",
                 ended.to_string().c_str(), options.restarts - left + 1, options.restarts);
    ended = session.restart();
    if (ended) ended = wait_for_end(session, service, engine.deadline);
  }
  drain(options, session, service, *http);
  return ended;
}

Status serve(const Options& given) {
  Options options = given;
  if (options.restarts > 0 && !Team::has_leader() &&
      was_launched([](const char* name) { return std::getenv(name); }))
    return Status::error(Code::kInvalidArgument,
                         "--restart is given, but the ranks were started by somebody else, who has "
                         "to start them again; accepted is --restart 0");
  options.session.quiet |= options.quiet;
  // All that may be wrong is found before the weights are loaded, which takes long.
  TENON_TRY(check_origins(options.service.origins));
  if (!options.key_file.empty()) {
    TENON_ASSIGN(const auto keys, read_keys(options.key_file));
    options.service.keys.insert(options.service.keys.end(), keys.begin(), keys.end());
  }
  TENON_TRY(check(options.session));
  if (!follows_a_leader()) TENON_TRY(server::HttpServer::check(options.http));
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower
  return serve_session(options, *session);
}

void add_http_options(CLI::App& app, Options& options) {
  const char* group = "HTTP";
  app.add_option("--host", options.http.host,
                 "the address to listen on; 0.0.0.0 and :: are reached from everywhere")
      ->capture_default_str()
      ->type_name("ADDRESS")
      ->group(group);
  app.add_option("--port", options.http.port, "the port to listen on; 0: one that is free")
      ->capture_default_str()
      ->check(whole_number(0, 65535))
      ->group(group);
  app.add_option("--api-key", options.service.keys,
                 "a key that requests must bring; may be given again. Others see it in ps")
      ->allow_extra_args(false)
      ->check(not_empty("a key"))
      ->type_name("KEY")
      ->group(group);
  app.add_option("--api-key-file", options.key_file, "the same from a file, one in each line")
      ->check(not_empty("a path"))
      ->type_name("FILE")
      ->group(group);
  app.add_option("--allow-origin", options.service.origins,
                 "an origin such as https://example.org whose web pages may ask; * for all; may be "
                 "given again. Default: none")
      ->allow_extra_args(false)
      ->type_name("ORIGIN")
      ->group(group);
  app.add_option("--http-threads", options.http.threads,
                 "threads that read requests, encode prompts and write answers")
      ->capture_default_str()
      ->check(whole_number(1, 256))
      ->group(group);
  app.add_option("--max-connections", options.http.max_connections,
                 "open connections; further ones are answered with 503")
      ->capture_default_str()
      ->check(whole_number(1, 65536))
      ->group(group);
  app.add_option("--max-body-mb", options.body_mb, "the longest body of a request, in MiB")
      ->capture_default_str()
      ->check(whole_number(1, 512))
      ->group(group);
  app.add_option("--request-seconds", options.request_seconds,
                 "the longest that a client may take to send the header of a request")
      ->capture_default_str()
      ->check(whole_number(1, 3600))
      ->group(group);
  app.add_option("--write-seconds", options.write_seconds,
                 "the longest that a client may take to read a piece of an answer")
      ->capture_default_str()
      ->check(whole_number(1, 3600))
      ->group(group);
}

void add_service_options(CLI::App& app, Options& options) {
  const char* group = "Requests";
  app.add_option("--served-model-name", options.names,
                 "a name that requests may use for the model; may be given again. Default: the "
                 "model as it was given")
      ->allow_extra_args(false)
      ->check(not_empty("a name"))
      ->type_name("NAME")
      ->group(group);
  app.add_flag("--any-model-name", options.service.any_model, "take requests for any name")
      ->group(group);
  app.add_option("--max-queued", options.session.queue.max_queued,
                 "requests that wait for their turn; further ones are answered with 429")
      ->capture_default_str()
      ->check(whole_number(1, 1'000'000))
      ->group(group);
  app.add_option("--max-untaken-tokens", options.service.max_untaken_tokens,
                 "a client that leaves more of a stream unread loses its request")
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount))
      ->group(group);
  app.add_flag("!--no-generation-config", options.use_generation_config,
               "do not take temperature, top_p and top_k from generation_config.json where a "
               "request does not say")
      ->group(group);
  app.add_option("--drain-seconds", options.drain_seconds,
                 "after SIGTERM or Ctrl-C: how long requests may still run")
      ->capture_default_str()
      ->check(whole_number(0, 86'400))
      ->group(group);
  app.add_option("--stall-seconds", options.stall_seconds,
                 "without a finished step while there is work: /health says 503")
      ->capture_default_str()
      ->check(whole_number(1, 86'400))
      ->group(group);
  app.add_option("--restart", options.restarts,
                 "how often an engine that died is made anew from the checkpoint, with its ranks; "
                 "then the program ends with 1")
      ->capture_default_str()
      ->check(whole_number(0, 1'000'000))
      ->group(group);
  app.add_flag("!--no-page", options.service.has_page, "leave out the page for people at \"/\"")
      ->group("HTTP");
  app.add_flag("--quiet", options.quiet, "no line for every request")->group("Output");
}

}  // namespace

Command add_serve(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("serve", "serve a model to OpenAI and Anthropic clients");
  add_config_option(*app);
  add_session_options(*app, options->session);
  add_http_options(*app, *options);
  add_service_options(*app, *options);
  app->footer(
      "POST /v1/chat/completions, /v1/completions, /v1/messages, /generate, /tokenize; GET / (a\n"
      "page), /v1/models, /health, /metrics. A signal lets what runs end; a second one ends at "
      "once.\n\n"
      "  tenon serve --port 8000 &\n"
      "  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\\n"
      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"How far is the moon?\"}]}'");
  return {app, [options] { return serve(*options); }};
}

}  // namespace tenon::apps
