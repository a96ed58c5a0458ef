// An HTTP/1.1 server over TCP: connections, limits and deadlines. What a request means is said by a
// handler, which gives back an exchange; its pieces are read when the client can take them. Not
// here: JSON, routes (service.h), TLS and HTTP/2, which a proxy in front may add.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::server {

// Names of fields are lower case.
using HttpFields = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method, path, query;  // of "/v1/models?a=b": "/v1/models" and "a=b"
  HttpFields fields = {};
  std::string body = {};
  std::string peer = {};  // "127.0.0.1:4711"
  std::string id = {};    // of x-request-id, or made; short and printable
  // The value of a field, or null. `name` is lower case.
  const std::string* find(std::string_view name) const;
};

// The beginning of an answer.
struct HttpHead {
  int status = 200;
  std::string content_type = "application/json";
  HttpFields fields = {};
};

// A part of an answer. The first one with bytes has the head. Where head and `over` come together
// the answer has a Content-Length; else it is sent in chunks as they come.
struct HttpPiece {
  std::optional<HttpHead> head = {};
  std::string bytes = {};
  bool over = false;
};

// One request on its way to its answer. begin() and next() are called by one thread at a time. It
// is destroyed when its answer was sent or its client has left, which may be at any moment.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  // Once, before next(). `wake` says that next() may have more; any thread may call it, at any
  // time, and it returns at once.
  virtual void begin(std::function<void()> wake) = 0;
  // What can be sent now: perhaps nothing. Called again after every piece that was sent, and after
  // wake. After `over` it is called no more.
  virtual HttpPiece next() = 0;
  // A few words for the access log, asked at the end.
  virtual std::string note() const { return {}; }
};

// An answer that is known at once. One with status 204 has no body.
std::unique_ptr<HttpExchange> answer_at_once(HttpHead head, std::string body);
// The same answer with further fields in its head.
std::unique_ptr<HttpExchange> with_fields(std::unique_ptr<HttpExchange> exchange,
                                          HttpFields fields);

// One answered request, for the access log.
struct HttpRecord {
  std::string peer, method, path, id, note;
  int status = 0;  // 499: the client left before the answer began
  std::uint64_t bytes = 0;
  double seconds = 0;
  bool whole = false;  // all of the answer was handed to the system
};

struct HttpOptions {
  std::string host = "127.0.0.1";  // an address, or localhost
  int port = 0;                    // 0: one that is free
  int threads = 4;                 // they also encode prompts
  int max_connections = 1024;      // further ones get 503
  std::size_t max_header_bytes = 32 << 10;
  std::size_t max_body_bytes = std::size_t{32} << 20;
  std::size_t max_all_bodies_bytes = std::size_t{512} << 20;  // that are being read or answered
  std::chrono::milliseconds header_time{10'000};  // from the first byte of a request, or connecting
  std::chrono::milliseconds body_time{60'000};
  std::chrono::milliseconds idle_time{75'000};   // between requests
  std::chrono::milliseconds write_time{30'000};  // for one piece to be taken by the client
};

struct HttpCounts {
  std::int64_t connections = 0;  // open now
  std::int64_t refused = 0;      // for max_connections
  std::int64_t exchanges = 0;    // in progress
};

class HttpServer {
 public:
  using Handler = std::function<std::unique_ptr<HttpExchange>(HttpRequest)>;
  // Asked when the header of a request with a body has come. What it gives back is the answer: the
  // body is not read, and the connection is closed. Null: the body is read and the handler asked.
  using Screen = std::function<std::unique_ptr<HttpExchange>(const HttpRequest& head)>;
  // What the server itself answers with, where no handler is asked: 400, 408, 413, 431, 501, 503.
  using Refusal = std::function<std::string(int status, std::string_view why)>;
  struct Callbacks {
    Handler handle;
    Screen screen;
    Refusal refuse;                               // a JSON body
    std::function<void(const HttpRecord&)> done;  // after every request, from any thread
  };

  // Whether it could listen now, or which address cannot be had and why. Nothing stays open.
  static Status check(const HttpOptions& options);
  // Listens and starts its threads. Errors say which address could not be had and why.
  static Result<std::unique_ptr<HttpServer>> start(const HttpOptions& options, Callbacks callbacks);
  virtual ~HttpServer() = default;  // stop_now(), then waits for its threads

  virtual std::string host() const = 0;
  virtual int port() const = 0;
  virtual HttpCounts counts() const = 0;
  // No new connections; those without a request are closed, the others after their answer.
  virtual void drain() = 0;
  // Closes all connections, whatever they do.
  virtual void stop_now() = 0;
  // Waits until no connection is left. False where `budget` ended before.
  virtual bool wait_until_empty(std::chrono::milliseconds budget) = 0;
};

// "Bad Request" of 400.
std::string_view reason_phrase(int status);
// Bytes of a client as an answer or the log can show them: ASCII, and not too many.
std::string printable(std::string_view text);

}  // namespace tenon::server
