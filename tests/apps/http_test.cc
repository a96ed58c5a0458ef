// The server's connections and the client of loads against each other: what is rung for arrives.
#include "apps/server/http.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "apps/server/http_client.h"

namespace tenon::server {
namespace {

constexpr int kTicks = 40;

// Rings for all exchanges that there are, again and again, as a step of an engine does.
class Ticker {
 public:
  class Exchange final : public HttpExchange {
   public:
    explicit Exchange(Ticker& ticker) : ticker_(ticker) { ++ticker_.made; }
    ~Exchange() override {
      const std::scoped_lock lock(ticker_.mutex_);
      ticker_.wakes_.erase(this);
      ++ticker_.ended;
    }
    void begin(std::function<void()> wake) override {
      const std::scoped_lock lock(ticker_.mutex_);
      ticker_.wakes_[this] = {std::move(wake), 0};
    }
    HttpPiece next() override {
      const std::scoped_lock lock(ticker_.mutex_);
      HttpPiece piece;
      for (const int due = ticker_.wakes_[this].ticks; told_ < due; ++told_)
        piece.bytes += std::to_string(told_) + " ";
      if (!piece.bytes.empty() && !std::exchange(begun_, true)) piece.head = HttpHead{};
      piece.over = told_ == kTicks;
      return piece;
    }

   private:
    Ticker& ticker_;
    int told_ = 0;
    bool begun_ = false;
  };

  ~Ticker() {
    stopped_ = true;
    thread_.join();
  }
  std::atomic<int> made{0}, ended{0};

 private:
  struct Told {
    std::function<void()> wake;
    int ticks = 0;
  };
  void run() {
    while (!stopped_) {
      {
        const std::scoped_lock lock(mutex_);
        for (auto& [who, told] : wakes_) {
          if (told.ticks == kTicks) continue;
          ++told.ticks;
          told.wake();
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }

  std::mutex mutex_;
  std::map<Exchange*, Told> wakes_;
  std::atomic<bool> stopped_{false};
  std::thread thread_{[this] { run(); }};
};

// A server on a free port, whose requests go to `handle`.
std::unique_ptr<HttpServer> serve(
    HttpServer::Handler handle, std::function<void(const HttpRecord&)> done = [](auto&) {}) {
  HttpServer::Callbacks callbacks;
  callbacks.handle = std::move(handle);
  callbacks.screen = [](const HttpRequest&) { return nullptr; };
  callbacks.refuse = [](int, std::string_view why) { return std::string(why); };
  callbacks.done = std::move(done);
  auto server = HttpServer::start({}, callbacks);
  EXPECT_TRUE(server) << server.status().to_string();
  return server ? *std::move(server) : nullptr;
}
HttpServer::Handler exchanges_of(Ticker& ticker) {
  return [&](HttpRequest) { return std::make_unique<Ticker::Exchange>(ticker); };
}
std::unique_ptr<HttpClient> client_of(const HttpServer& server, std::chrono::milliseconds limit) {
  auto client = HttpClient::make({"127.0.0.1", std::to_string(server.port()), ""}, limit);
  EXPECT_TRUE(client) << client.status().to_string();
  return client ? *std::move(client) : nullptr;
}

TEST(HttpServer, EveryStreamGetsWhatIsRungFor) {
  Ticker ticker;
  std::atomic<int> whole{0};
  auto server =
      serve(exchanges_of(ticker), [&](const HttpRecord& record) { whole += record.whole ? 1 : 0; });
  ASSERT_NE(server, nullptr);

  constexpr int kStreams = 60, kRounds = 3;  // connections are kept from round to round
  const auto client = client_of(*server, std::chrono::seconds(30));
  ASSERT_NE(client, nullptr);
  std::string expected;
  for (int tick = 0; tick < kTicks; ++tick) expected += std::to_string(tick) + " ";
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::string> got(kStreams);
    int ends = 0;
    for (std::string& each : got) {
      HttpCall call;
      call.method = "POST";
      call.path = "/";
      call.body = "{}";
      call.on_head = [](int status) { EXPECT_EQ(status, 200); };
      call.on_bytes = [&each](std::string_view bytes) { each += bytes; };
      call.on_end = [&ends](const HttpEnd& end) {
        EXPECT_EQ(end.kind, HttpEnd::Kind::kWhole) << end.why;
        ++ends;
      };
      client->ask(std::move(call));
    }
    const Status ran = client->run([] { return false; });
    EXPECT_TRUE(ran) << ran.to_string();
    EXPECT_EQ(ends, kStreams);
    for (const std::string& each : got) EXPECT_EQ(each, expected);
  }
  EXPECT_EQ(server->counts().connections, kStreams);
  server = nullptr;
  EXPECT_EQ(ticker.ended, kRounds * kStreams);
  EXPECT_EQ(whole, kRounds * kStreams);
}

// A server that ends while streams wait leaves none behind.
TEST(HttpServer, EndsWhileStreamsWait) {
  Ticker ticker;
  auto server = serve(exchanges_of(ticker));
  ASSERT_NE(server, nullptr);
  const auto client = client_of(*server, std::chrono::seconds(30));
  ASSERT_NE(client, nullptr);
  constexpr int kStreams = 20;
  std::atomic<int> begun{0}, ends{0};
  for (int i = 0; i < kStreams; ++i) {
    HttpCall call;
    call.method = "GET";
    call.path = "/";
    call.on_head = [&](int) { ++begun; };
    call.on_bytes = [](std::string_view) {};
    call.on_end = [&](const HttpEnd&) { ++ends; };
    client->ask(std::move(call));
  }
  std::thread ending([&] {
    while (begun == 0) std::this_thread::yield();
    server = nullptr;
  });
  const Status ran = client->run([] { return false; });
  ending.join();
  EXPECT_TRUE(ran) << ran.to_string();
  EXPECT_EQ(ends, kStreams);
  EXPECT_GT(ticker.made, 0);  // who came too late was never answered
  EXPECT_EQ(ticker.ended, ticker.made);
}

// The limit of a client is for the next piece, not for all of them.
TEST(HttpClient, WaitsForEachPieceAnew) {
  class Slow final : public HttpExchange {
   public:
    explicit Slow(std::chrono::milliseconds pause) : pause_(pause) {}
    ~Slow() override { thread_.join(); }
    void begin(std::function<void()> wake) override {
      thread_ = std::thread([this, wake = std::move(wake)] {
        for (int i = 0; i < 4; ++i) {
          std::this_thread::sleep_for(pause_);
          ++due_;
          wake();
        }
      });
    }
    HttpPiece next() override {
      HttpPiece piece;
      for (; told_ < due_; ++told_) piece.bytes += "x";
      if (!piece.bytes.empty() && !std::exchange(begun_, true)) piece.head = HttpHead{};
      piece.over = told_ == 4;
      return piece;
    }

   private:
    const std::chrono::milliseconds pause_;
    std::thread thread_;
    std::atomic<int> due_{0};
    int told_ = 0;
    bool begun_ = false;
  };
  const auto server = serve([](HttpRequest request) {
    return std::make_unique<Slow>(std::chrono::milliseconds(request.path == "/slow" ? 1500 : 400));
  });
  ASSERT_NE(server, nullptr);
  const auto client = client_of(*server, std::chrono::milliseconds(1'000));
  ASSERT_NE(client, nullptr);
  std::map<std::string, HttpEnd::Kind> ends;
  for (const char* path : {"/", "/slow"}) {
    HttpCall call;
    call.method = "GET";
    call.path = path;
    call.on_head = [](int) {};
    call.on_bytes = [](std::string_view) {};
    call.on_end = [&ends, path](const HttpEnd& end) { ends[path] = end.kind; };
    client->ask(std::move(call));
  }
  EXPECT_TRUE(client->run([] { return false; }));
  EXPECT_EQ(ends["/"], HttpEnd::Kind::kWhole);  // 1.6 s in all
  EXPECT_EQ(ends["/slow"], HttpEnd::Kind::kOutOfTime);
}

}  // namespace
}  // namespace tenon::server
