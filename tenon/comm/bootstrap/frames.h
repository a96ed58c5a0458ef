// Frames: what travels over a connection once two ranks have met. Bytes to frames and back, without
// a socket, so that any bytes can be tried. Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

// kLoss passes on what the sender knows of a third rank, whose number stands in `call`. kAlive says
// nothing else.
enum class FrameKind : std::uint32_t {
  kExchange = 1,
  kAbort = 2,
  kGoodbye = 3,
  kLoss = 4,
  kAlive = 5
};

struct FrameHead {
  std::uint32_t magic = kFrameMagic;
  FrameKind kind = FrameKind::kExchange;
  std::uint64_t call = 0;
  std::uint64_t label_bytes = 0, payload_bytes = 0;
  static constexpr std::uint32_t kFrameMagic = 0x4652414d;  // "FRAM"
};
inline constexpr std::uint64_t kMaxLabelBytes = 4096;
// What ranks exchange are infos, votes and addresses: kilobytes.
inline constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{16} << 20;
inline constexpr std::size_t kMaxFrameBytes = sizeof(FrameHead) + kMaxLabelBytes + kMaxPayloadBytes;

struct Frame {
  FrameHead head;
  std::string label;
  std::vector<std::byte> payload;
  std::size_t held_bytes() const { return sizeof(Frame) + label.size() + payload.size(); }
};

// A label that is too long loses its end.
std::vector<std::byte> frame_bytes(FrameKind kind, std::uint64_t call, std::string_view label,
                                   std::span<const std::byte> payload);

// Puts frames together from the bytes of one connection, whatever they are and however they are
// cut. Holds at most one frame that is not complete.
class FrameReader {
 public:
  // Appends to `frames` what `bytes` complete. After an error, which says what was wrong, nothing
  // more can be read.
  Status read(std::span<const std::byte> bytes, std::vector<Frame>& frames);

 private:
  std::vector<std::byte> held_;  // of a frame that is not complete yet
};

}  // namespace tenon
