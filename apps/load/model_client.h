// A client of OpenAI's API over HTTP: asks for answers as streams and notes when their tokens came.
// One thread: everything happens in run(). Not here: what is asked, and how much of it at a time
// (load_run.h).
#pragma once

#include <nlohmann/json.hpp>
#include <variant>

#include "apps/server/http_client.h"

namespace CLI {
class App;
}

namespace tenon::apps {

struct ClientOptions {
  std::string url = {};    // http://HOST:PORT
  std::string model = {};  // empty: the first that /v1/models names
  std::string key = {};    // empty: none is sent
  bool chat = false;       // /v1/chat/completions instead of /v1/completions
  int patience_s = 600;    // without a further byte
};

// --api-key, --served-model-name and --patience-seconds, in a group of that name.
void add_client_options(CLI::App& app, ClientOptions& options, const char* group);

struct ModelCall {
  std::variant<std::string, std::vector<std::int32_t>> prompt;  // a chat takes text alone
  int max_tokens = 16;
  double temperature = 0;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  std::vector<std::string> stops = {};
};

// Seconds are those of the client's clock, which begins with it.
struct ModelReply {
  // Empty where the answer came to its end, else a kind that can be counted: "no server", "broken",
  // "out of time", "http 429", "error event", "malformed", "cut off".
  std::string error = {}, why = {};
  std::string text = {}, finish = {};     // thoughts of a chat are part of the text
  std::vector<std::int32_t> tokens = {};  // where the server says ids (return_token_ids)
  struct Arrival {
    double at_s = 0;
    int tokens = 1;  // as ids say; 1 where there are none
  };
  std::vector<Arrival> arrivals = {};  // of what had new tokens or text
  double asked_s = 0, ended_s = 0;
  std::int64_t prompt_tokens = 0;      // as the server says, else 0
  std::int64_t completion_tokens = 0;  // as the server says, else those that arrived

  bool ok() const { return error.empty(); }
};

class ModelClient {
 public:
  // Finds the host and, where it is not given, the name of the model.
  static Result<ModelClient> open(const ClientOptions& options);

  const std::string& model() const { return options_.model; }
  double now_s() const;
  void ask(const ModelCall& call, std::function<void(ModelReply)> told);
  void at(double when_s, std::function<void()> what);
  Status run(const std::function<bool()>& stopped) { return http_->run(stopped); }

  // How many token ids there are, as tenon's server says; 0 where the server says nothing.
  Result<int> vocabulary();
  // The texts of ids, as /detokenize of the server says.
  Result<std::vector<std::string>> texts_of(const std::vector<std::vector<std::int32_t>>& ids);

 private:
  using Whole =
      std::function<void(const server::HttpEnd& end, int status, const std::string& body)>;
  void ask_whole(const char* method, const char* path, std::string body, Whole told);
  Result<nlohmann::json> get(const char* path);
  server::HttpFields fields() const;
  std::string body_of(const ModelCall& call) const;

  ClientOptions options_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::unique_ptr<server::HttpClient> http_;
};

}  // namespace tenon::apps
