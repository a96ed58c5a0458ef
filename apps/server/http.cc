// The server: one of the two files that see Beast. One strand for each connection: a
// coroutine reads, asks the handler and writes; while an answer is being made, a read is pending
// that tells when the client leaves.
#include "apps/server/http.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <random>
#include <unordered_set>
#include <utility>  // before Asio, which uses it and does not include it

#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "apps/server/http_body.h"
#include "apps/server/keep_alive.h"
#include "apps/server/needs_memory.h"
#include "apps/server/wakes.h"
#include "tenon/core/clock.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/core/thread.h"

namespace tenon::server {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Bytes of a next request that are taken while an answer is being made.
constexpr std::size_t kMaxAheadBytes = 64 << 10;
// What a client may still send of a request that was refused before it is cut off.
constexpr std::size_t kMaxLingerBytes = std::size_t{64} << 20;
constexpr milliseconds kLingerTime{2'000};
// Bounds what the system holds for a client that does not read.
constexpr int kSendBufferBytes = 128 << 10;

auto caught(error_code& failed) { return asio::redirect_error(asio::use_awaitable, failed); }

bool is_id(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

// What connections share.
struct Shared {
  HttpOptions options;
  HttpServer::Callbacks callbacks;
  std::atomic<std::size_t> body_bytes{0};
  std::atomic<std::int64_t> exchanges{0}, refused{0};
  std::atomic<bool> draining{false};
  Wakes* wakes = nullptr;
  std::atomic<std::uint64_t> next_id{1};
  std::uint64_t id_base = std::random_device{}();

  std::string make_id() {
    char text[40];
    std::snprintf(text, sizeof text, "%08llx%08llx",
                  static_cast<unsigned long long>(id_base & 0xffffffffu),
                  static_cast<unsigned long long>(next_id.fetch_add(1)));
    return text;
  }
};

class Connection final : public Wakes::Sleeper, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Shared& shared, tcp::socket socket)
      : shared_(shared),
        socket_(std::move(socket)),
        deadline_(socket_.get_executor()),
        bell_(std::make_shared<Bell>()),
        share_(shared.body_bytes) {
    deadline_.expires_at(Clock::time_point::max());
    error_code ignored;
    socket_.non_blocking(true, ignored);  // send() tries before it waits
  }
  ~Connection() { bell_->close(); }

  auto executor() { return socket_.get_executor(); }

  asio::awaitable<void> run() {
    error_code ignored;
    watch_peer(socket_.native_handle());
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    const auto peer = socket_.remote_endpoint(ignored);
    if (!ignored) peer_ = peer.address().to_string() + ":" + std::to_string(peer.port());
    for (bool first = true, more = true; more; first = false) more = co_await serve_one(first);
    finish();
  }

  // 503 for a connection that is one too many.
  asio::awaitable<void> turn_away() {
    co_await refuse(503, "too many connections; ask again later");
    finish();
  }

  void take_up() override {
    asio::dispatch(executor(), [self = shared_from_this()] { self->wake(); });
  }

  // On its strand, as the last thing.
  void finish() {
    bell_->close();
    deadline_.cancel();
    error_code ignored;
    if (socket_.is_open()) {
      socket_.shutdown(tcp::socket::shutdown_both, ignored);
      socket_.close(ignored);
    }
  }

  // Where no thread runs the loop any more: lets go of what waits, which holds this object.
  void abandon() {
    bell_->close();
    resume_.reset();
  }

  // Any thread.
  void close_if_idle() {
    asio::post(executor(), [self = shared_from_this()] {
      error_code ignored;
      if (self->idle_) self->socket_.cancel(ignored);
    });
  }
  void close_now() {
    asio::post(executor(), [self = shared_from_this()] {
      self->stopped_ = true;
      error_code ignored;
      self->socket_.close(ignored);
      self->wake();
    });
  }

 private:
  // Ends what the socket waits for when `budget` is over.
  void limit(milliseconds budget) {
    timed_out_ = false;
    deadline_.expires_after(budget);
    deadline_.async_wait([self = shared_from_this()](error_code failed) {
      if (failed || self->deadline_.expiry() > Clock::now()) return;
      self->timed_out_ = true;
      error_code ignored;
      self->socket_.cancel(ignored);
    });
  }
  void no_limit() { deadline_.expires_at(Clock::time_point::max()); }

  // The coroutine goes on at once, on the strand, where it waits to be woken.
  void wake() {
    was_woken_ = true;
    if (const auto resume = std::move(resume_)) resume->run();
  }
  asio::awaitable<void> wait_to_be_woken() {
    if (!was_woken_)
      co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(
          [this](auto handler) {
            resume_ = std::make_unique<ResumeBy<decltype(handler)>>(std::move(handler));
          },
          asio::use_awaitable);
    was_woken_ = false;
  }

  // True where the connection goes on.
  asio::awaitable<bool> serve_one(bool first) {
    error_code failed;
    share_.give_back();
    // Waiting for a request costs nothing, and may be ended by drain() at any time.
    idle_ = true;
    limit(first ? shared_.options.header_time : shared_.options.idle_time);
    while (!has_begun() && !failed && !shared_.draining) {
      const auto got = co_await socket_.async_read_some(buffer_.prepare(4096), caught(failed));
      buffer_.commit(got);
    }
    idle_ = false;
    if (!has_begun()) co_return false;

    HttpParser parser;
    parser.header_limit(static_cast<std::uint32_t>(shared_.options.max_header_bytes));
    parser.body_limit(shared_.options.max_body_bytes);
    limit(shared_.options.header_time);
    co_await http::async_read_header(socket_, buffer_, parser, caught(failed));
    if (failed) co_return co_await refuse_unread(failed, "its header");
    keep_alive_ = parser.get().keep_alive();
    chunks_ = parser.get().version() >= 11;
    HttpRequest request = request_of(parser.get());
    head_only_ = request.method == "HEAD";
    if (head_only_) request.method = "GET";
    if (const std::string* coding = unknown_coding(request))
      co_return co_await refuse(501, "the request's transfer-encoding is \"" + printable(*coding) +
                                         "\"; accepted is \"chunked\", or a content-length");
    if (!parser.is_done()) {
      std::unique_ptr<HttpExchange> known = screen(request);
      if (known != nullptr) {
        no_limit();
        keep_alive_ = false;
        co_await answer(std::move(request), std::move(known));
        if (!left_ && !stopped_) co_await linger();
        co_return false;
      }
    }
    limit(shared_.options.body_time);
    if (!parser.is_done() &&
        boost::beast::iequals(parser.get()[http::field::expect], "100-continue"))
      co_await asio::async_write(socket_, asio::buffer(kContinue), caught(failed));
    // What has come counts, not what was announced: that costs a client nothing.
    parser.eager(true);
    while (!failed && !parser.is_done()) {
      if (!take_in(parser, failed))
        co_return co_await refuse(503, "no memory for the request's body; ask again later");
      if (!share_.grow(parser.get().body().size(), shared_.options.max_all_bodies_bytes))
        co_return co_await refuse(503, "too many large requests at a time; ask again later");
      const bool is_cut = failed == http::error::need_more;
      if (is_cut) failed = {};
      if (is_cut && buffer_.size() > shared_.options.max_header_bytes)  // a header of a chunk
        failed = http::error::header_limit;
      if (failed || parser.is_done() || (!is_cut && buffer_.size() > 0)) continue;
      const std::size_t most = parser.content_length_remaining().value_or(kMaxAheadBytes);
      const auto got = co_await socket_.async_read_some(
          buffer_.prepare(std::clamp(most, std::size_t{512}, kMaxAheadBytes)), caught(failed));
      buffer_.commit(got);
      if (failed == asio::error::eof) parser.put_eof(failed);
    }
    if (failed) co_return co_await refuse_unread(failed, "its body");
    no_limit();
    request.body = std::move(parser.get().body());
    co_return co_await answer(std::move(request), nullptr);
  }

  // Whether more than empty lines has come of a next request. Those count as nothing: some clients
  // send one behind a body.
  bool has_begun() {
    for (;;) {
      const std::string_view come(static_cast<const char*>(buffer_.data().data()), buffer_.size());
      if (come.empty() || come == "\r") return false;
      if (!come.starts_with("\r\n")) return true;
      buffer_.consume(2);
    }
  }

  // Without its body.
  HttpRequest request_of(const http::request<HttpBody>& from) {
    HttpRequest request;
    request.method = std::string(from.method_string());
    std::string_view target(from.target().data(), from.target().size());
    // "http://host/path" is for proxies, and a server has to take it.
    if (target.starts_with("http://") || target.starts_with("https://")) {
      const auto path = target.find('/', target.find("://") + 3);
      target = path == std::string_view::npos ? "/" : target.substr(path);
    }
    const auto mark = target.find('?');
    request.path = target.substr(0, mark);
    if (mark != std::string_view::npos) request.query = target.substr(mark + 1);
    for (const auto& field : from) {
      std::string name(field.name_string());
      std::transform(name.begin(), name.end(), name.begin(), [](char c) {
        return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      });
      request.fields.emplace_back(std::move(name), std::string(field.value()));
    }
    request.peer = peer_;
    const std::string* id = request.find("x-request-id");
    request.id = id != nullptr && is_id(*id) ? *id : shared_.make_id();
    return request;
  }

  // Takes what has come of the body: false without the memory for it.
  bool take_in(HttpParser& parser, error_code& failed) {
    const Status taken = call_handler([&] { buffer_.consume(parser.put(buffer_.data(), failed)); });
    if (!taken) std::string().swap(parser.get().body());
    return static_cast<bool>(taken);
  }

  // A transfer coding that is not undone here. Beast passes over it: what it takes for the body is
  // compressed then, or it takes the body for a next request.
  static const std::string* unknown_coding(const HttpRequest& head) {
    for (const auto& [name, value] : head.fields)
      if (name == "transfer-encoding" && !boost::beast::iequals(value, "chunked")) return &value;
    return nullptr;
  }

  // Answers where a request could not be read. A client that left gets nothing.
  asio::awaitable<bool> refuse_unread(error_code failed, const char* what) {
    if (failed == http::error::body_limit)
      co_return co_await refuse(413, "the request's body is longer than " +
                                         std::to_string(shared_.options.max_body_bytes) + " bytes");
    if (failed == http::error::header_limit || failed == http::error::buffer_overflow)
      co_return co_await refuse(431, "the request's header is longer than " +
                                         std::to_string(shared_.options.max_header_bytes) +
                                         " bytes");
    if (timed_out_)
      co_return co_await refuse(408, std::string("the request took too long to send ") + what);
    if (failed == http::error::end_of_stream || failed == http::error::partial_message ||
        failed.category() != http::make_error_code(http::error::bad_method).category())
      co_return false;
    co_return co_await refuse(400, "the request is no HTTP/1.1: " + failed.message());
  }

  asio::awaitable<bool> refuse(int status, std::string why) {
    keep_alive_ = false;
    chunks_ = true;
    head_only_ = false;
    std::string body = shared_.callbacks.refuse(status, why);
    HttpHead head{status, "application/json", {}};
    if (status == 503) head.fields.emplace_back("retry-after", "1");
    HttpRecord record{peer_, "-", "-", "-", {}, status};
    HttpPiece piece{std::move(head), std::move(body), true};
    const Status sent = co_await send(std::move(piece), record.id);
    if (sent) co_await linger();
    shared_.callbacks.done(record);
    co_return false;
  }

  // Lets a client that is still sending read the answer first.
  asio::awaitable<void> linger() {
    error_code failed;
    socket_.shutdown(tcp::socket::shutdown_send, failed);
    limit(kLingerTime);
    for (std::size_t seen = 0; !failed && seen < kMaxLingerBytes;) {
      buffer_.clear();
      seen += co_await socket_.async_read_some(buffer_.prepare(64 << 10), caught(failed));
    }
  }

  // A read that is pending while an answer is being made.
  void watch() {
    watching_ = true;
    socket_.async_read_some(
        buffer_.prepare(4096), [self = shared_from_this()](error_code failed, std::size_t got) {
          self->watching_ = false;
          self->buffer_.commit(got);
          if (failed && !(failed == asio::error::operation_aborted && self->watch_ends_)) {
            self->left_ = true;
          } else if (!failed && !self->watch_ends_ && self->buffer_.size() < kMaxAheadBytes) {
            return self->watch();
          }
          self->wake();
        });
  }

  // The handler's answer, unless there is one from before.
  std::unique_ptr<HttpExchange> ask(HttpRequest request, std::unique_ptr<HttpExchange> exchange) {
    const Status asked = call_handler([&] {
      if (exchange == nullptr) exchange = shared_.callbacks.handle(std::move(request));
      exchange->begin([bell = bell_] { bell->ring(); });
    });
    if (asked) return exchange;
    return answer_at_once({500, "application/json", {}},
                          shared_.callbacks.refuse(500, asked.message()));
  }

  std::unique_ptr<HttpExchange> screen(const HttpRequest& head) {
    std::unique_ptr<HttpExchange> known;
    const Status asked = call_handler([&] { known = shared_.callbacks.screen(head); });
    if (asked) return known;
    return answer_at_once({500, "application/json", {}},
                          shared_.callbacks.refuse(500, asked.message()));
  }

  asio::awaitable<bool> answer(HttpRequest request, std::unique_ptr<HttpExchange> known) {
    const auto begin = Clock::now();
    HttpRecord record{peer_, request.method, request.path, request.id, {}, 0};
    const std::string id = request.id;
    shared_.exchanges.fetch_add(1);
    left_ = watch_ends_ = was_woken_ = false;
    bell_->open(*shared_.wakes, weak_from_this());
    watch();
    std::unique_ptr<HttpExchange> exchange = ask(std::move(request), std::move(known));
    begun_ = false;
    while (!left_ && !stopped_) {
      HttpPiece piece;
      const Status made = call_handler([&] { piece = exchange->next(); });
      if (!made) {
        log_failure("request " + id, made);
        if (begun_) break;
        piece = {HttpHead{500, "application/json", {}},
                 shared_.callbacks.refuse(500, made.message()), true};
      }
      if (!piece.head && piece.bytes.empty() && !piece.over) {
        co_await wait_to_be_woken();
        continue;
      }
      if (piece.head) record.status = piece.head->status;
      record.bytes += piece.bytes.size();
      const bool over = piece.over;
      if (!co_await send(std::move(piece), id)) break;
      if (!over) continue;
      record.whole = true;
      break;
    }
    bell_->close();
    if (!record.whole && record.status == 0) record.status = 499;
    record.note = exchange->note();
    exchange.reset();
    record.seconds = seconds_since(begin);
    watch_ends_ = true;
    error_code ignored;
    if (watching_) socket_.cancel(ignored);
    while (watching_) co_await wait_to_be_woken();
    shared_.exchanges.fetch_sub(1);
    shared_.callbacks.done(record);
    co_return record.whole&& keep_alive_ && !left_ && !stopped_;
  }

  // The error of a client that left or does not read.
  asio::awaitable<Status> send(HttpPiece piece, std::string id) {
    std::string bytes;
    if (piece.head) {
      if (shared_.draining) keep_alive_ = false;
      whole_at_once_ = piece.over;
      if (!chunks_ && !whole_at_once_) keep_alive_ = false;  // HTTP/1.0: the end is the end
      const int status = piece.head->status;
      bytes = "HTTP/1.1 " + std::to_string(status) + " " + std::string(reason_phrase(status)) +
              "\r\nx-request-id: " + id + "\r\n";
      const bool has_body = status != 204;
      if (has_body) bytes += "content-type: " + piece.head->content_type + "\r\n";
      for (const auto& [name, value] : piece.head->fields) bytes += name + ": " + value + "\r\n";
      if (whole_at_once_ && has_body)
        bytes += "content-length: " + std::to_string(piece.bytes.size()) + "\r\n";
      else if (chunks_ && has_body)
        bytes += "transfer-encoding: chunked\r\n";
      bytes += keep_alive_ ? "connection: keep-alive\r\n\r\n" : "connection: close\r\n\r\n";
      begun_ = true;
    }
    if (!head_only_) {
      if (whole_at_once_ || !chunks_) {
        bytes += piece.bytes;
      } else {
        if (!piece.bytes.empty()) {
          char size[24];
          std::snprintf(size, sizeof size, "%zx\r\n", piece.bytes.size());
          bytes += size;
          bytes += piece.bytes;
          bytes += "\r\n";
        }
        if (piece.over) bytes += "0\r\n\r\n";
      }
    }
    // Mostly the system has room for all of it, and nobody has to be waited for.
    error_code failed;
    const std::size_t sent = socket_.write_some(asio::buffer(bytes), failed);
    if (failed == asio::error::would_block || failed == asio::error::interrupted) failed = {};
    if (!failed && sent < bytes.size()) {
      limit(shared_.options.write_time);
      co_await asio::async_write(socket_, asio::buffer(bytes) + sent, caught(failed));
      no_limit();
    }
    if (failed) co_return Status::error(Code::kIo, failed.message());
    co_return Status::ok();
  }

  // What goes on when it is woken: a handler, whatever its type.
  struct Resume {
    virtual ~Resume() = default;
    virtual void run() = 0;
  };
  template <class Handler>
  struct ResumeBy final : Resume {
    explicit ResumeBy(Handler&& from) : handler(std::move(from)) {}
    void run() override { std::move(handler)(); }
    Handler handler;
  };

  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

  Shared& shared_;
  tcp::socket socket_;
  asio::steady_timer deadline_;
  std::unique_ptr<Resume> resume_;  // of the coroutine, while it waits to be woken
  const std::shared_ptr<Bell> bell_;
  BodyShare share_;
  boost::beast::flat_buffer buffer_;
  std::string peer_;
  // All on the connection's strand.
  bool idle_ = false, timed_out_ = false, stopped_ = false;
  bool watching_ = false, watch_ends_ = false, left_ = false, was_woken_ = false;
  bool keep_alive_ = false, chunks_ = true, head_only_ = false;  // of the present request
  bool begun_ = false, whole_at_once_ = false;                   // of the present answer
};

// Gives the acceptor its address; `begin` goes on with it. The address that it has then.
template <class Begin>
Result<tcp::endpoint> bind_to(tcp::acceptor& acceptor, const HttpOptions& options, Begin&& begin) {
  const std::string& host = options.host;
  error_code failed;
  const auto address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, failed);
  if (failed)
    return Status::error(Code::kInvalidArgument,
                         "the address is \"" + host +
                             "\"; accepted are localhost and addresses such as 127.0.0.1, "
                             "0.0.0.0 and ::1");
  const tcp::endpoint asked(address, static_cast<std::uint16_t>(options.port));
  tcp::endpoint found;
  acceptor.open(asked.protocol(), failed);
  if (!failed) acceptor.set_option(tcp::acceptor::reuse_address(true), failed);
  if (!failed) acceptor.bind(asked, failed);
  if (!failed) begin(failed);
  if (!failed) found = acceptor.local_endpoint(failed);
  if (!failed) return found;
  return Status::error(Code::kIo, "cannot listen on " + host + ":" + std::to_string(options.port) +
                                      ": " + failed.message());
}

class BeastServer final : public HttpServer {
 public:
  BeastServer(const HttpOptions& options, Callbacks callbacks)
      : acceptor_(asio::make_strand(io_)), pause_(acceptor_.get_executor()) {
    shared_.options = options;
    shared_.wakes = &wakes_;
    shared_.callbacks = std::move(callbacks);
  }
  ~BeastServer() override {
    stop_now();
    if (!wait_until_empty(milliseconds(5'000)))
      log(LogLevel::kError, "connections did not end within 5 s of being closed");
    work_.reset();
    io_.stop();
    threads_.clear();  // joins
    for_each([](Connection& each) { each.abandon(); });
    connections_.clear();  // their sockets belong to the loop
  }

  Status open() {
    TENON_ASSIGN(endpoint_, bind_to(acceptor_, shared_.options, [this](error_code& failed) {
                   acceptor_.listen(1024, failed);
                 }));
    asio::co_spawn(
        acceptor_.get_executor(), accept(), [](const std::exception_ptr& thrown) noexcept {
          if (thrown) std::rethrow_exception(thrown);  // the end: nobody would be answered any more
        });
    threads_.reserve(
        static_cast<std::size_t>(shared_.options.threads));  // one without a place is joined
    for (int i = 0; i < shared_.options.threads; ++i) {
      TENON_ASSIGN(Thread thread,
                   start_thread("tenon http " + std::to_string(i), [this] { serve(); }));
      threads_.push_back(std::move(thread));
    }
    return Status::ok();
  }

  std::string host() const override { return endpoint_.address().to_string(); }
  int port() const override { return endpoint_.port(); }
  HttpCounts counts() const override {
    const std::scoped_lock lock(mutex_);
    return {static_cast<std::int64_t>(connections_.size()), shared_.refused, shared_.exchanges};
  }

  void drain() override {
    shared_.draining = true;
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      acceptor_.close(ignored);
      pause_.cancel();
    });
    for_each([](Connection& each) { each.close_if_idle(); });
  }
  void stop_now() override {
    drain();
    for_each([](Connection& each) { each.close_now(); });
  }
  bool wait_until_empty(milliseconds budget) override {
    std::unique_lock lock(mutex_);
    return empty_.wait_for(lock, budget, [this] { return connections_.empty(); });
  }

 private:
  // An exception that reaches the loop is the end of one handler, not of the thread.
  void serve() {
    const NeedsMemory needed(true);
    for (bool again = true; again;) {
      const Status done = guarded([&] {
        io_.run();
        again = false;
      });
      if (!done) log_failure("http", done);
    }
  }

  asio::awaitable<void> accept() {
    while (acceptor_.is_open()) {
      error_code failed;
      tcp::socket socket(asio::make_strand(io_));
      co_await acceptor_.async_accept(socket, caught(failed));
      if (!acceptor_.is_open()) co_return;
      if (failed) {  // out of descriptors, or a client that left at once
        log(LogLevel::kWarning, "accept: " + failed.message());
        pause_.expires_after(milliseconds(100));
        co_await pause_.async_wait(caught(failed));
        continue;
      }
      begin(std::move(socket));
    }
  }

  void begin(tcp::socket socket) {
    auto connection = std::make_shared<Connection>(shared_, std::move(socket));
    bool room = true;
    {
      const std::scoped_lock lock(mutex_);
      // Some more, to be told that there is no room; beyond that they are closed.
      const auto most = static_cast<std::size_t>(shared_.options.max_connections);
      room = connections_.size() < most;
      if (!room) shared_.refused.fetch_add(1);
      if (connections_.size() >= most + 64) return;
      connections_.insert(connection);
    }
    asio::co_spawn(
        connection->executor(),
        [connection, room] { return room ? connection->run() : connection->turn_away(); },
        [this, connection](const std::exception_ptr& thrown) {
          if (thrown) {
            log_failure("a connection", call_handler([&] { std::rethrow_exception(thrown); }));
            connection->finish();
          }
          end(connection);
        });
  }

  void end(const std::shared_ptr<Connection>& connection) {
    const std::scoped_lock lock(mutex_);
    connections_.erase(connection);
    if (connections_.empty()) empty_.notify_all();
  }

  void for_each(void (*what)(Connection&)) {
    std::vector<std::shared_ptr<Connection>> all;
    {
      const std::scoped_lock lock(mutex_);
      all.assign(connections_.begin(), connections_.end());
    }
    for (const auto& each : all) what(*each);
  }

  Shared shared_;
  mutable std::mutex mutex_;
  std::condition_variable empty_;
  std::unordered_set<std::shared_ptr<Connection>> connections_;
  tcp::endpoint endpoint_;
  asio::io_context io_;
  Wakes wakes_{io_};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::vector<Thread> threads_;
};

}  // namespace

Status HttpServer::check(const HttpOptions& options) {
  return guarded([&] {
    asio::io_context io;
    tcp::acceptor acceptor(io);
    return bind_to(acceptor, options, [](error_code&) {}).status();
  });
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpOptions& options,
                                                      Callbacks callbacks) {
  return guarded([&]() -> Result<std::unique_ptr<HttpServer>> {
    auto server = std::make_unique<BeastServer>(options, std::move(callbacks));
    TENON_TRY(server->open());
    return std::unique_ptr<HttpServer>(std::move(server));
  });
}

}  // namespace tenon::server
