// One coroutine for each request. A connection that was kept may have been closed by the server in
// the meantime: where nothing of an answer has come over it, the request goes over a new one.
#include "apps/server/http_client.h"

#include <array>
#include <exception>
#include <limits>
#include <utility>  // before Asio, which uses it and does not include it
#include <vector>

#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "tenon/core/guard.h"

namespace tenon::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kStopEvery{100};

auto caught(error_code& failed) { return asio::redirect_error(asio::use_awaitable, failed); }

// A connection, and how long it may wait.
class Line : public std::enable_shared_from_this<Line> {
 public:
  explicit Line(asio::io_context& io) : socket(io), deadline_(io) {}

  // One timer for all the pieces of an answer: it looks again at the end that holds by then.
  void limit(milliseconds time) {
    ends_ = steady_clock::now() + time;
    if (!std::exchange(is_limited_, true)) wait_for(ends_);
  }
  void no_limit() {
    is_limited_ = false;
    deadline_.cancel();
  }

  tcp::socket socket;
  boost::beast::flat_buffer buffer;
  std::array<char, 16 << 10> bytes;
  bool is_late = false;

 private:
  void wait_for(steady_clock::time_point end) {
    deadline_.expires_at(end);
    deadline_.async_wait([weak = weak_from_this()](error_code failed) {
      const auto self = weak.lock();
      if (failed || !self || !self->is_limited_) return;
      if (self->ends_ > steady_clock::now()) return self->wait_for(self->ends_);
      self->is_late = true;
      error_code ignored;
      self->socket.close(ignored);
    });
  }

  asio::steady_timer deadline_;
  steady_clock::time_point ends_{};
  bool is_limited_ = false;
};

class BeastClient final : public HttpClient {
 public:
  BeastClient(HttpUrl url, milliseconds patience) : url_(std::move(url)), patience_(patience) {}

  Status resolve() {
    error_code failed;
    tcp::resolver resolver(io_);
    for (const auto& each : resolver.resolve(url_.host, url_.port, failed))
      addresses_.push_back(each.endpoint());
    if (failed)
      return Status::error(Code::kIo,
                           "\"" + url_.host + "\" is no known host: " + failed.message());
    return Status::ok();
  }

  void ask(HttpCall call) override {
    asio::co_spawn(io_, perform(std::move(call)), [](const std::exception_ptr& thrown) {
      if (thrown) std::rethrow_exception(thrown);  // to run()
    });
  }

  void at(steady_clock::time_point when, std::function<void()> what) override {
    auto timer = std::make_shared<asio::steady_timer>(io_, when);
    timer->async_wait([timer, what = std::move(what)](error_code failed) {
      if (!failed) what();
    });
  }

  Status run(const std::function<bool()>& stopped) override {
    return guarded([&] {
      io_.restart();
      while (!io_.stopped() && !stopped()) io_.run_for(kStopEvery);
    });
  }

 private:
  std::string text_of(const HttpCall& call) const {
    const bool v6 = url_.host.find(':') != std::string::npos;
    std::string text = call.method + " " + url_.base + call.path +
                       " HTTP/1.1\r\nhost: " + (v6 ? "[" + url_.host + "]" : url_.host) + ":" +
                       url_.port + "\r\n";
    for (const auto& [name, value] : call.fields) text += name + ": " + value + "\r\n";
    if (!call.body.empty()) text += "content-type: application/json\r\n";
    if (!call.body.empty() || call.method != "GET")
      text += "content-length: " + std::to_string(call.body.size()) + "\r\n";
    return text + "\r\n" + call.body;
  }

  asio::awaitable<void> perform(HttpCall call) {
    const std::string text = text_of(call);
    for (bool again = true; again;) {
      std::shared_ptr<Line> line;
      const bool kept = !idle_.empty();
      error_code failed;
      if (kept) {
        line = std::move(idle_.back());
        idle_.pop_back();
      } else {
        line = std::make_shared<Line>(io_);
        line->limit(patience_);
        co_await asio::async_connect(line->socket, addresses_, caught(failed));
        if (failed) {
          call.on_end({line->is_late ? HttpEnd::Kind::kOutOfTime : HttpEnd::Kind::kNoServer,
                       failed.message()});
          co_return;
        }
        line->socket.set_option(tcp::no_delay(true), failed);
      }
      again = !co_await exchange(call, text, line, kept);
    }
  }

  // False where a kept connection turned out to be closed.
  asio::awaitable<bool> exchange(const HttpCall& call, const std::string& text,
                                 std::shared_ptr<Line> line, bool kept) {
    error_code failed;
    line->limit(patience_);
    co_await asio::async_write(line->socket, asio::buffer(text), caught(failed));
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(
        std::numeric_limits<std::uint64_t>::max());  // none is a limit of 0 in Boost 1.74
    if (!failed)
      co_await http::async_read_header(line->socket, line->buffer, parser, caught(failed));
    if (failed && kept && !line->is_late && !parser.got_some()) co_return false;
    if (!failed) call.on_head(static_cast<int>(parser.get().result_int()));
    while (!failed && !parser.is_done()) {
      auto& body = parser.get().body();
      body.data = line->bytes.data();
      body.size = line->bytes.size();
      body.more = true;
      line->limit(patience_);
      co_await http::async_read_some(line->socket, line->buffer, parser, caught(failed));
      if (failed == http::error::need_buffer) failed = {};
      const std::size_t got = line->bytes.size() - body.size;
      if (got > 0) call.on_bytes({line->bytes.data(), got});
    }
    line->no_limit();
    if (failed) {
      call.on_end({line->is_late ? HttpEnd::Kind::kOutOfTime : HttpEnd::Kind::kBroken,
                   line->is_late ? "nothing came for " + std::to_string(patience_.count()) + " ms"
                                 : failed.message()});
      co_return true;
    }
    if (parser.keep_alive()) idle_.push_back(std::move(line));
    call.on_end({});
    co_return true;
  }

  const HttpUrl url_;
  const milliseconds patience_;
  asio::io_context io_;
  std::vector<tcp::endpoint> addresses_;
  std::vector<std::shared_ptr<Line>> idle_;
};

}  // namespace

Result<HttpUrl> parse_url(std::string_view text) {
  const auto refuse = [&] {
    return Status::error(Code::kInvalidArgument,
                         "the address is \"" + std::string(text) +
                             "\"; accepted is http://HOST:PORT, perhaps with a path behind it");
  };
  constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) return refuse();
  std::string_view rest = text.substr(kScheme.size());
  HttpUrl url;
  const auto slash = std::min(rest.find('/'), rest.size());
  url.base = rest.substr(slash);
  while (url.base.ends_with('/')) url.base.pop_back();
  rest = rest.substr(0, slash);
  if (rest.starts_with('[')) {
    const auto end = rest.find(']');
    if (end == std::string_view::npos) return refuse();
    url.host = rest.substr(1, end - 1);
    rest = rest.substr(end + 1);
  } else {
    const auto colon = std::min(rest.find(':'), rest.size());
    url.host = rest.substr(0, colon);
    rest = rest.substr(colon);
  }
  if (!rest.empty()) {
    url.port = rest.substr(1);
    if (rest[0] != ':' || url.port.empty() || url.port.size() > 5 ||
        url.port.find_first_not_of("0123456789") != std::string::npos)
      return refuse();
  }
  if (url.host.empty() || (url.base + url.host).find_first_of(" \t\r\n") != std::string::npos)
    return refuse();
  return url;
}

Result<std::unique_ptr<HttpClient>> HttpClient::make(const HttpUrl& url, milliseconds patience) {
  return guarded([&]() -> Result<std::unique_ptr<HttpClient>> {
    auto client = std::make_unique<BeastClient>(url, patience);
    TENON_TRY(client->resolve());
    return std::unique_ptr<HttpClient>(std::move(client));
  });
}

}  // namespace tenon::server
