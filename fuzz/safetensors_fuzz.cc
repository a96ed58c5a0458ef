// The bytes of a safetensors file, any at all. Whatever is accepted lies inside the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "tenon/models/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A copy of its own on the heap: the sanitizer sees the end.
  const auto file = std::make_unique<std::byte[]>(size);
  for (std::size_t i = 0; i < size; ++i) file[i] = std::byte{data[i]};
  const auto tensors = tenon::parse_safetensors({file.get(), size}, size);
  if (!tensors) {
    if (tensors.status().message().empty()) std::abort();
    return 0;
  }
  for (const auto& [name, tensor] : *tensors) {
    if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
    if (tensor.bytes > 0 && tensor.dtype) {
      std::size_t bytes = tenon::size_of(*tensor.dtype);
      for (const std::int64_t extent : tensor.shape) bytes *= static_cast<std::size_t>(extent);
      if (bytes != tensor.bytes) std::abort();
    }
  }
  return 0;
}
