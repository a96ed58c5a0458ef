// Where the elements of a model's weights come from.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

namespace tenon {

enum class LoadFormat : std::uint8_t {
  kSafetensors,  // the files of the checkpoint
  kDummy,        // made from the config alone: the sizes are right, the answers mean nothing
};
constexpr std::string_view name(LoadFormat format) {
  return format == LoadFormat::kDummy ? "dummy" : "safetensors";
}

struct WeightsFrom {
  LoadFormat format = LoadFormat::kSafetensors;
  std::uint64_t seed = 0;  // of made weights: another seed, other weights
};

// How far loading has come: bytes of this rank that are read, and all that it reads. At the end
// `limit` says what their rate was limited by; it is empty before, and where weights are made on
// the device.
using LoadProgress =
    std::function<void(std::int64_t done, std::int64_t total, std::string_view limit)>;

}  // namespace tenon
