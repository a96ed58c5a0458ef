// Where the elements of a model's weights come from.
#pragma once

#include <cstdint>
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

}  // namespace tenon
