#include "tenon/comm/bootstrap/greeting.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace tenon::greeting {
namespace {

// What a stranger may send ends within its field and moves no cursor.
template <std::size_t kSize>
void end_text(char (&text)[kSize]) {
  text[kSize - 1] = 0;
  for (char& each : text)
    if (each != 0 && (each < ' ' || each > '~')) each = '?';
}

Status not_a_rank() { return Status::error(Code::kIo, "says what no rank of this program says"); }

Status check_version(std::uint32_t magic, std::uint32_t version) {
  if (magic != kMagic) return not_a_rank();
  if (version != kVersion)
    return Status::error(Code::kIo, "greets in version " + std::to_string(version) +
                                        "; accepted: " + std::to_string(kVersion));
  return Status::ok();
}

Status another_secret() {
  return Status::error(Code::kIo,
                       "does not know this job's secret (TENON_SECRET or the launcher's job id, "
                       "which must be the same on all ranks)");
}

}  // namespace

Result<Nonce> fresh_nonce() {
  Nonce nonce{};
  if (getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size()))
    return Status::error(Code::kIo, std::string("draw random bytes: ") + std::strerror(errno));
  return nonce;
}

Tag Key::tag(std::string_view purpose,
             std::initializer_list<std::span<const std::byte>> parts) const {
  std::vector<std::byte> text;
  const auto append = [&](std::span<const std::byte> bytes) {
    text.insert(text.end(), bytes.begin(), bytes.end());
  };
  append(std::as_bytes(std::span(purpose)));
  append(bytes_of('\0'));  // no purpose is the beginning of another
  for (const auto& part : parts) append(part);
  Tag tag{};
  unsigned int bytes = 0;
  const auto* made = HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
                          reinterpret_cast<const unsigned char*>(text.data()), text.size(),
                          reinterpret_cast<unsigned char*>(tag.data()), &bytes);
  TENON_CHECK(made != nullptr && bytes == tag.size());
  return tag;
}

Key Key::of_session(const Nonce& session) const {
  const Tag derived = tag("session", {session});
  return Key({reinterpret_cast<const char*>(derived.data()), derived.size()});
}

bool same(const Tag& a, const Tag& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

Status check(const Challenge& challenge) {
  return check_version(challenge.magic, challenge.version);
}

Checked check(const Key& key, const Challenge& sent, const Hello& hello, int own_rank, int size) {
  if (const Status known = check_version(hello.magic, hello.version); !known)
    return {Verdict::kNotNow, std::string(known.message())};
  const std::string claim =
      "says it is rank " + std::to_string(hello.rank) + " of " + std::to_string(hello.size);
  if (!same(hello.tag, tag_of(key, sent, hello.nonce, hello)))
    return {Verdict::kNotNow, claim + " but " + std::string(another_secret().message())};
  const bool right_place = hello.size == size && hello.to == own_rank && hello.rank > own_rank &&
                           hello.rank < size && hello.port > 0 && hello.port <= 65535;
  if (!right_place)
    return {Verdict::kNever, claim + "; rank " + std::to_string(own_rank) + " of " +
                                 std::to_string(size) + " accepts the ranks above it, once each"};
  return {};
}

Status check(const Key& key, const Challenge& challenge, const Hello& sent, Answer& answer) {
  const bool proven = same(answer.tag, tag_of(key, challenge, sent.nonce, answer));
  end_text(answer.why);
  if (answer.magic != kMagic) return not_a_rank();
  if (!proven) {
    Status doubt = another_secret();
    if (answer.verdict == Verdict::kAccepted || answer.why[0] == 0) return doubt;
    return Status::error(Code::kIo, std::string(doubt.message()) + " and says: " + answer.why);
  }
  return Status::ok();
}

Status check(const Key& key, const Challenge& challenge, const Hello& sent, Welcome& welcome) {
  const bool proven = same(welcome.tag, tag_of(key, challenge, sent.nonce, welcome));
  end_text(welcome.why);
  for (Welcome::Place& place : welcome.places) end_text(place.address);
  if (welcome.magic != kMagic) return not_a_rank();
  return proven ? Status::ok() : another_secret();
}

}  // namespace tenon::greeting
