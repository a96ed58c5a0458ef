#include "tenon/comm/bootstrap/frames.h"

#include <algorithm>
#include <cstring>

namespace tenon {
namespace {

Status check(const FrameHead& head) {
  const auto kind = static_cast<std::uint32_t>(head.kind);
  if (head.magic != FrameHead::kFrameMagic || kind < 1 ||
      kind > static_cast<std::uint32_t>(FrameKind::kAlive))
    return Status::error(Code::kIo, "it sent something that is no message of a rank");
  if (head.label_bytes > kMaxLabelBytes || head.payload_bytes > kMaxPayloadBytes)
    return Status::error(
        Code::kIo, "it sent a message of " + std::to_string(head.label_bytes) + " + " +
                       std::to_string(head.payload_bytes) + " bytes; accepted: at most " +
                       std::to_string(kMaxLabelBytes) + " + " + std::to_string(kMaxPayloadBytes));
  return Status::ok();
}

}  // namespace

std::vector<std::byte> frame_bytes(FrameKind kind, std::uint64_t call, std::string_view label,
                                   std::span<const std::byte> payload) {
  label = label.substr(0, kMaxLabelBytes);
  FrameHead head;
  head.kind = kind;
  head.call = call;
  head.label_bytes = label.size();
  head.payload_bytes = payload.size();
  std::vector<std::byte> bytes(sizeof head + label.size() + payload.size());
  std::memcpy(bytes.data(), &head, sizeof head);
  label.copy(reinterpret_cast<char*>(bytes.data() + sizeof head), label.size());
  if (!payload.empty())
    std::memcpy(bytes.data() + sizeof head + label.size(), payload.data(), payload.size());
  return bytes;
}

Status FrameReader::read(std::span<const std::byte> bytes, std::vector<Frame>& frames) {
  // Never more than one frame is held: what follows it waits in `bytes`.
  const auto hold_up_to = [&](std::size_t wanted) {
    const std::size_t count = std::min(bytes.size(), wanted - held_.size());
    held_.insert(held_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
    bytes = bytes.subspan(count);
    return held_.size() == wanted;
  };
  for (;;) {
    Frame frame;
    if (held_.size() < sizeof(FrameHead) && !hold_up_to(sizeof(FrameHead))) return Status::ok();
    std::memcpy(&frame.head, held_.data(), sizeof(FrameHead));
    TENON_TRY(check(frame.head));
    const std::size_t label_end = sizeof(FrameHead) + frame.head.label_bytes;
    if (!hold_up_to(label_end + frame.head.payload_bytes)) return Status::ok();
    const std::span<const std::byte> whole(held_);
    const auto text = whole.subspan(sizeof(FrameHead), frame.head.label_bytes);
    frame.label.assign(reinterpret_cast<const char*>(text.data()), text.size());
    const auto payload = whole.subspan(label_end);
    frame.payload.assign(payload.begin(), payload.end());
    frames.push_back(std::move(frame));
    held_.clear();
  }
}

}  // namespace tenon
