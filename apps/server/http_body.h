// The body of a request: what Beast reads it into, and what all bodies together may take. Private
// to http.cc.
#pragma once

#include <atomic>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http.hpp>
#include <boost/optional.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace tenon::server {

// A string, without room for what is only announced, which costs a client nothing.
struct HttpBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool is_request, class Fields>
    reader(boost::beast::http::header<is_request, Fields>&, std::string& body) : body_(body) {}
    void init(const boost::optional<std::uint64_t>&, boost::system::error_code& failed) {
      failed = {};
    }
    template <class Buffers>
    std::size_t put(const Buffers& come, boost::system::error_code& failed) {
      failed = {};
      const std::size_t before = body_.size();
      for (const boost::asio::const_buffer part : boost::beast::buffers_range_ref(come))
        body_.append(static_cast<const char*>(part.data()), part.size());
      return body_.size() - before;
    }
    void finish(boost::system::error_code& failed) { failed = {}; }

   private:
    std::string& body_;
  };
};

using HttpParser = boost::beast::http::request_parser<HttpBody>;

// A share of the bytes that all bodies together may have.
class BodyShare {
 public:
  explicit BodyShare(std::atomic<std::size_t>& taken) : taken_(taken) {}
  ~BodyShare() { give_back(); }
  BodyShare(const BodyShare&) = delete;
  BodyShare& operator=(const BodyShare&) = delete;
  // To hold `bytes`, no fewer than before. False where all together would have more than `most`.
  bool grow(std::size_t bytes, std::size_t most) {
    const std::size_t more = bytes - held_;
    if (taken_.fetch_add(more) + more > most) {
      taken_.fetch_sub(more);
      return false;
    }
    held_ = bytes;
    return true;
  }
  void give_back() { taken_.fetch_sub(std::exchange(held_, 0)); }

 private:
  std::atomic<std::size_t>& taken_;
  std::size_t held_ = 0;
};

}  // namespace tenon::server
