// An HTTP/1.1 client over TCP: many requests at once, all in the one thread that calls run(), which
// also makes every call back. Connections are kept and used again. Not here: JSON, events of a
// stream (apps/load/model_client.h), TLS.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "apps/server/http.h"
#include "tenon/core/status.h"

namespace tenon::server {

// "http://127.0.0.1:8000/base": the base stands in front of every path. The port is 80 where none
// is named; an address of IPv6 stands in brackets.
struct HttpUrl {
  std::string host, port = "80", base = {};
};
// Refuses everything but http.
Result<HttpUrl> parse_url(std::string_view text);

struct HttpEnd {
  enum class Kind {
    kWhole,      // the whole answer came
    kNoServer,   // nobody took the connection
    kBroken,     // it ended before the answer did, or was no HTTP
    kOutOfTime,  // nothing came for as long as the client waits
  };
  Kind kind = Kind::kWhole;
  std::string why = {};  // of the others
};

struct HttpCall {
  std::string method = "GET", path = {}, body = {};
  HttpFields fields = {};  // besides host, content-length and, with a body, content-type
  std::function<void(int status)> on_head = [](int) {};
  std::function<void(std::string_view bytes)> on_bytes = [](std::string_view) {};
  std::function<void(const HttpEnd& end)> on_end = [](const HttpEnd&) {};  // once, the last
};

class HttpClient {
 public:
  // Finds the addresses of the host. `patience`: how long it waits for a next byte.
  static Result<std::unique_ptr<HttpClient>> make(const HttpUrl& url,
                                                  std::chrono::milliseconds patience);
  virtual ~HttpClient() = default;

  // Begun by run(). Call backs may ask again.
  virtual void ask(HttpCall call) = 0;
  // Calls back at this time.
  virtual void at(std::chrono::steady_clock::time_point when, std::function<void()> what) = 0;
  // Until nothing is left to be done, or `stopped` says so, which is asked ten times a second. What
  // has not ended then is cut off and not called back, and the client is asked nothing any more.
  virtual Status run(const std::function<bool()>& stopped) = 0;
};

}  // namespace tenon::server
