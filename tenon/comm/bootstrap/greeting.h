// Greeting: how two processes find out that they are ranks of one job before they believe each
// other. Who is called sends a number that was never used before; the caller answers with its place
// and a tag over both that only the job's key makes; who is called proves the same. Messages, tags
// and checks, without a socket (rendezvous.cc). Private to this folder.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "tenon/comm/device/channel_view.h"
#include "tenon/comm/messages.h"
#include "tenon/core/status.h"

namespace tenon::greeting {

inline constexpr std::uint32_t kMagic = 0x4e4e4554;  // "TENN"
inline constexpr std::uint32_t kVersion = 2;

using Nonce = std::array<std::byte, 16>;
using Tag = std::array<std::byte, 32>;

// Drawn by the operating system.
Result<Nonce> fresh_nonce();

// What ranks of one job share. Of no secret comes a key too: it keeps nobody out who means it.
class Key {
 public:
  explicit Key(std::string_view secret) : secret_(secret) {}
  // HMAC-SHA256 over `purpose` and `parts`, whose sizes must follow from the purpose.
  Tag tag(std::string_view purpose, std::initializer_list<std::span<const std::byte>> parts) const;
  // Another key, for those only who have been told `session`.
  Key of_session(const Nonce& session) const;

 private:
  std::string secret_;
};

// Takes the same time wherever they differ.
bool same(const Tag& a, const Tag& b);

// 1. Who is called.
struct Challenge {
  std::uint32_t magic = kMagic, version = kVersion;
  Nonce nonce{};
};

// 2. The caller.
struct Hello {
  std::uint32_t magic = kMagic, version = kVersion;
  std::int32_t rank = 0, size = 0;
  std::int32_t to = 0;    // the rank that it calls
  std::int32_t port = 0;  // where it listens itself
  Nonce nonce{};
  Tag tag{};
};

enum class Verdict : std::uint32_t {
  kAccepted = 1,
  kNotNow = 2,  // another process has that place just now, or the tag is not right
  kNever = 3,   // of this job, but no such place
};

// 3. Who is called, at once.
struct Answer {
  std::uint32_t magic = kMagic;
  Verdict verdict = Verdict::kNotNow;
  char why[400] = "";
  Tag tag{};
};

// 4. Rank 0 alone, when everybody is there or when it gives up.
struct Welcome {
  std::uint32_t magic = kMagic, complete = 0;
  Nonce session{};
  char why[400] = "";
  struct Place {
    char address[64];
    std::int32_t port;
  } places[kMaxRanks] = {};
  Tag tag{};
};

// The tag that `message` must carry between the two that sent these nonces.
template <class Message>
Tag tag_of(const Key& key, const Challenge& challenge, const Nonce& callers,
           const Message& message) {
  static_assert(sizeof(Message) == offsetof(Message, tag) + sizeof(Tag));
  constexpr std::string_view kPurposes[] = {"hello", "answer", "welcome"};
  constexpr int kPurpose = std::is_same_v<Message, Hello>    ? 0
                           : std::is_same_v<Message, Answer> ? 1
                                                             : 2;
  return key.tag(kPurposes[kPurpose],
                 {challenge.nonce, callers, bytes_of(message).first(offsetof(Message, tag))});
}

// Whether what was received may be believed. Texts in them end within their fields afterwards. The
// sentence begins where "a process at … " ends.
Status check(const Challenge& challenge);
struct Checked {
  Verdict verdict = Verdict::kAccepted;
  std::string why;
};
Checked check(const Key& key, const Challenge& sent, const Hello& hello, int own_rank, int size);
Status check(const Key& key, const Challenge& challenge, const Hello& sent, Answer& answer);
Status check(const Key& key, const Challenge& challenge, const Hello& sent, Welcome& welcome);

}  // namespace tenon::greeting
