#include "bindings/c/meeting.h"

#include <cxxabi.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tenon/comm/bootstrap/tcp.h"
#include "tenon/comm/messages.h"

namespace tenon::c {
namespace {

constexpr std::size_t kMaxExchangeBytes = std::size_t{16} << 20;

// What ranks tell each other in front of every exchange, so that those that are out of step say so
// instead of reading each other's bytes as something else.
struct Head {
  std::uint64_t call = 0, bytes = 0;
  char label[112] = {};
};

class ExchangeBootstrap final : public Bootstrap {
 public:
  ExchangeBootstrap(tenon_exchange tell, void* context, int rank, int num_ranks)
      : exchange_(tell), context_(context), rank_(rank), size_(num_ranks) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  WaitBudget budget) override {
    TENON_CHECK(all.size() == mine.size() * static_cast<std::size_t>(size_));
    const std::lock_guard lock(mutex_);
    TENON_TRY(failed_);
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, std::string(label) + ": " + lost->why);
    TENON_TRY(given_up());
    if (mine.size() > kMaxExchangeBytes)
      return Status::error(Code::kInvalidArgument,
                           std::string(label) + ": " + std::to_string(mine.size()) +
                               " bytes; accepted: " + std::to_string(kMaxExchangeBytes));
    failed_ = exchange_both(mine, all, label, budget);
    ++num_calls_;
    return failed_;
  }

  void abort(std::string_view why) override {
    report({rank_, "rank " + std::to_string(rank_) + " gave up: " + std::string(why)});
  }

 private:
  Status exchange_both(std::span<const std::byte> mine, std::span<std::byte> all,
                       std::string_view label, WaitBudget budget) {
    Head own;
    own.call = num_calls_;
    own.bytes = mine.size();
    copy_text(label, own.label);
    std::vector<Head> heads(static_cast<std::size_t>(size_));
    TENON_TRY(call(bytes_of(own), std::as_writable_bytes(std::span(heads)), own.label, budget));
    for (int peer = 0; peer < size_; ++peer) {
      const Head& theirs = heads[static_cast<std::size_t>(peer)];
      const std::string_view their_label(theirs.label, strnlen(theirs.label, sizeof theirs.label));
      if (theirs.call != own.call || theirs.bytes != own.bytes || their_label != own.label)
        return different_call(rank_, own.label, own.bytes, peer, their_label, theirs.bytes,
                              num_calls_);
    }
    if (mine.empty()) return Status::ok();
    return call(mine, all, own.label, budget);
  }

  Status call(std::span<const std::byte> mine, std::span<std::byte> all, const char* label,
              WaitBudget budget) {
    std::int32_t code = 0;
    try {
      code = exchange_(context_, mine.data(), all.data(), mine.size(), label,
                       static_cast<std::uint64_t>(budget.deadline.count()));
    } catch (const abi::__forced_unwind&) {  // the thread is cancelled
      throw;
    } catch (...) {
      return Status::error(Code::kPeerLost, std::string("the caller's exchange threw in bootstrap "
                                                        "call ") +
                                                std::to_string(num_calls_) + " \"" + label + "\"");
    }
    if (code == 0) return Status::ok();
    return Status::error(Code::kPeerLost, "the caller's exchange returned " + std::to_string(code) +
                                              " in bootstrap call " + std::to_string(num_calls_) +
                                              " \"" + label + "\"; accepted: 0");
  }

  const tenon_exchange exchange_;
  void* const context_;
  const int rank_, size_;
  std::mutex mutex_;
  Status failed_;
  std::uint64_t num_calls_ = 0;
};

// --- ids ------------------------------------------------------------------------------------

struct Id {
  char magic[8];
  std::uint32_t port;
  char secret[36];  // hexadecimal, ends with a zero
  char address[80];
};
static_assert(sizeof(Id) == sizeof(tenon_unique_id));
constexpr char kMagic[8] = {'t', 'e', 'n', 'o', 'n', 'i', 'd', '1'};

struct Ports {
  std::mutex mutex;
  std::map<std::uint32_t, tcp::Socket> held;
};
Ports& ports() {
  static Ports& once = *new Ports;
  return once;
}

Id id_of(const tenon_unique_id& bytes) {
  Id id;
  std::memcpy(&id, bytes.bytes, sizeof id);
  return id;
}

}  // namespace

std::shared_ptr<Bootstrap> exchange_bootstrap(tenon_exchange exchange, void* context, int rank,
                                              int num_ranks) {
  return std::make_shared<ExchangeBootstrap>(exchange, context, rank, num_ranks);
}

Result<tenon_unique_id> make_id(const char* address) {
  Id id{};
  std::copy(std::begin(kMagic), std::end(kMagic), id.magic);
  const std::string_view where = address == nullptr ? "127.0.0.1" : address;
  if (where.empty() || where.size() >= sizeof id.address)
    return Status::error(Code::kInvalidArgument, "an address of " + std::to_string(where.size()) +
                                                     " characters; accepted: 1 to " +
                                                     std::to_string(sizeof id.address - 1) +
                                                     ", or null for 127.0.0.1");
  copy_text(where, id.address);
  unsigned char random[(sizeof id.secret - 1) / 2] = {};
  if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random))
    return Status::error(Code::kIo, std::string("draw random bytes: ") + std::strerror(errno));
  for (std::size_t i = 0; i < sizeof random; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    id.secret[2 * i] = kDigits[random[i] >> 4];
    id.secret[2 * i + 1] = kDigits[random[i] & 15];
  }
  TENON_ASSIGN(tcp::Socket socket, tcp::hold_port(id.address),
               "keep a port at \"" + std::string(where) + "\"");
  TENON_ASSIGN(const int port, tcp::port_of(socket));
  id.port = static_cast<std::uint32_t>(port);
  {
    const std::lock_guard lock(ports().mutex);
    ports().held.insert_or_assign(id.port, std::move(socket));
  }
  tenon_unique_id made;
  std::memcpy(made.bytes, &id, sizeof id);
  return made;
}

Result<Launch> launch_of(const tenon_unique_id& bytes, int rank, int num_ranks) {
  const Id id = id_of(bytes);
  const auto ends = [](const auto& text) {
    return text[0] != 0 && std::ranges::count(text, 0) > 0;
  };
  if (!std::equal(std::begin(kMagic), std::end(kMagic), id.magic) || id.port < 1 ||
      id.port > 65535 || !ends(id.secret) || !ends(id.address))
    return Status::error(Code::kInvalidArgument,
                         "the id is none that tenon_unique_id_make() made: all of its " +
                             std::to_string(sizeof bytes) + " bytes must travel unchanged");
  Launch launch;
  launch.rank = rank;
  launch.size = num_ranks;
  launch.local_rank = rank;
  launch.address = id.address;
  launch.port = static_cast<int>(id.port);
  launch.secret = id.secret;
  return launch;
}

void release_id(const tenon_unique_id& bytes) {
  const std::lock_guard lock(ports().mutex);
  ports().held.erase(id_of(bytes).port);
}

}  // namespace tenon::c
