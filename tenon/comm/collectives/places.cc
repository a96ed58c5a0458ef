#include "tenon/comm/collectives/places.h"

#include <functional>
#include <string>

namespace tenon::collectives {

Status check_place(std::string_view what, const TensorView& in, const TensorView& out,
                   bool in_place, Device device, const Stream& stream) {
  const auto refuse = [&](std::string_view why) {
    return Status::error(Code::kInvalidArgument, std::string(what) + ": in is " + describe(in) +
                                                     " and out is " + describe(out) +
                                                     std::string(why));
  };
  if (in.device != device || out.device != device || stream.device() != device) [[unlikely]]
    return refuse(", the stream is on " + std::string(name(stream.device().target)) + ":" +
                  std::to_string(stream.device().index) +
                  "; accepted: " + std::string(name(device.target)) + ":" +
                  std::to_string(device.index) + ", the device of the communicator");
  if (in.bytes() == 0) return Status::ok();
  if (in.data == nullptr || out.data == nullptr) [[unlikely]]
    return refuse(", but a data pointer is null");
  const auto* const from = in.as<const std::byte>();
  const auto* const to = out.as<const std::byte>();
  const bool apart =
      !std::less<>()(from, to + out.bytes()) || !std::less<>()(to, from + in.bytes());
  if (!apart && !(in_place && from == to)) [[unlikely]]
    return refuse(in_place ? "; they overlap, but out must be the addend itself or lie apart"
                           : "; they overlap, but must lie apart");
  return Status::ok();
}

}  // namespace tenon::collectives
