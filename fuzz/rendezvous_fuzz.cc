// What another process may send to a rank, tried with any bytes. The first byte says what the rest
// is: of a greeting which message, or frames, and in which pieces they arrive.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <tuple>
#include <vector>

#include "tenon/comm/bootstrap/frames.h"
#include "tenon/comm/bootstrap/greeting.h"

namespace {

// Frames that were read are written again to the same bytes.
void try_frames(std::span<const std::byte> bytes, std::size_t piece) {
  tenon::FrameReader reader;
  std::vector<tenon::Frame> frames;
  tenon::Status status;
  for (auto rest = bytes; !rest.empty() && status;) {
    const std::size_t count = std::min(piece, rest.size());
    status = reader.read(rest.first(count), frames);
    rest = rest.subspan(count);
  }
  for (const tenon::Frame& frame : frames) {
    const auto again =
        tenon::frame_bytes(frame.head.kind, frame.head.call, frame.label, frame.payload);
    if (again.size() > bytes.size() || !std::equal(again.begin(), again.end(), bytes.begin()))
      std::abort();
    bytes = bytes.subspan(again.size());
  }
}

using namespace tenon::greeting;
constexpr int kOwnRank = 1, kSize = 4;

// As much of a message as was sent. `sealed`: from somebody who knows the secret.
template <class Message>
Message message_from(std::span<const std::byte> bytes, const Key& key, const Challenge& challenge,
                     const Nonce& callers, bool sealed) {
  Message message;
  std::memcpy(&message, bytes.data(), std::min(bytes.size(), sizeof message));
  if (sealed) message.tag = tag_of(key, challenge, callers, message);
  return message;
}

template <std::size_t kBytes>
void must_be_a_text(const char (&text)[kBytes]) {
  if (text[kBytes - 1] != 0) std::abort();
  for (const char each : text)
    if (each != 0 && (each < ' ' || each > '~')) std::abort();
}

void try_hello(std::span<const std::byte> bytes, bool sealed) {
  const Key key("of the job");
  const Challenge challenge;
  Hello hello;
  std::memcpy(&hello, bytes.data(), std::min(bytes.size(), sizeof hello));
  if (sealed) hello.tag = tag_of(key, challenge, hello.nonce, hello);
  const Checked checked = check(key, challenge, hello, kOwnRank, kSize);
  const bool has_place = hello.rank > kOwnRank && hello.rank < kSize && hello.to == kOwnRank &&
                         hello.size == kSize && hello.port > 0 && hello.port < 65536;
  if (checked.verdict == Verdict::kAccepted && !(sealed && has_place)) std::abort();
  if (checked.verdict != Verdict::kAccepted && checked.why.empty()) std::abort();
}

void try_answers(std::span<const std::byte> bytes, bool sealed) {
  const Key key("of the job");
  const Hello sent;
  Challenge challenge;
  std::memcpy(&challenge, bytes.data(), std::min(bytes.size(), sizeof challenge));
  std::ignore = check(challenge);
  auto answer = message_from<Answer>(bytes, key, challenge, sent.nonce, sealed);
  if (check(key, challenge, sent, answer) && !sealed) std::abort();
  must_be_a_text(answer.why);
  auto welcome = message_from<Welcome>(bytes, key, challenge, sent.nonce, sealed);
  if (check(key, challenge, sent, welcome) && !sealed) std::abort();
  must_be_a_text(welcome.why);
  for (const auto& place : welcome.places) must_be_a_text(place.address);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const bool sealed = data[0] % 2 == 0;
  switch (data[0] % 8) {
    case 0:
    case 1: try_hello(bytes, sealed); break;
    case 2:
    case 3: try_answers(bytes, sealed); break;
    default: try_frames(bytes, data[0]);
  }
  return 0;
}
