// What http.h says of requests and answers, without connections.
#include <utility>

#include "apps/server/http.h"

namespace tenon::server {

const std::string* HttpRequest::find(std::string_view name) const {
  for (const auto& [key, value] : fields)
    if (key == name) return &value;
  return nullptr;
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 200)) out += c >= ' ' && c < 0x7F && c != '"' ? c : '?';
  return out;
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 529: return "Overloaded";
    default: return "Unknown";
  }
}

namespace {

class WithFields final : public HttpExchange {
 public:
  WithFields(std::unique_ptr<HttpExchange> exchange, HttpFields fields)
      : exchange_(std::move(exchange)), fields_(std::move(fields)) {}
  void begin(std::function<void()> wake) override { exchange_->begin(std::move(wake)); }
  HttpPiece next() override {
    HttpPiece piece = exchange_->next();
    if (piece.head)
      piece.head->fields.insert(piece.head->fields.end(), fields_.begin(), fields_.end());
    return piece;
  }
  std::string note() const override { return exchange_->note(); }

 private:
  const std::unique_ptr<HttpExchange> exchange_;
  const HttpFields fields_;
};

class AtOnce final : public HttpExchange {
 public:
  AtOnce(HttpHead head, std::string body) : head_(std::move(head)), body_(std::move(body)) {}
  void begin(std::function<void()>) override {}
  HttpPiece next() override { return {std::move(head_), std::move(body_), true}; }

 private:
  HttpHead head_;
  std::string body_;
};

}  // namespace

std::unique_ptr<HttpExchange> answer_at_once(HttpHead head, std::string body) {
  return std::make_unique<AtOnce>(std::move(head), std::move(body));
}

std::unique_ptr<HttpExchange> with_fields(std::unique_ptr<HttpExchange> exchange,
                                          HttpFields fields) {
  return std::make_unique<WithFields>(std::move(exchange), std::move(fields));
}

}  // namespace tenon::server
