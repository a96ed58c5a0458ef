// What another process may send to a rank, tried with any bytes. The first byte says where to cut
// the rest: frames arrive in pieces.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "tenon/comm/bootstrap/frames.h"

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  try_frames(bytes, std::max<std::size_t>(data[0], 1));
  return 0;
}
