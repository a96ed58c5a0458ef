// One safetensors file, memory-mapped and checked: every tensor's name, type, shape and bytes.
// A file that lies (lengths, offsets, shapes, duplicate names) is refused with a sentence; no input
// can make a reader look outside the file. Not here: which tensors a model wants (weights.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/dtype.h"
#include "tenon/core/status.h"

namespace tenon {

// A tensor as it lies in the file. `data` has no alignment beyond one byte.
struct StoredTensor {
  std::string type;            // as the file spells it: "BF16", "F8_E4M3"
  std::optional<DType> dtype;  // absent for types that no model here reads ("BOOL", "F64")
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;

// "BF16 [4, 5120]": for messages.
std::string describe(const StoredTensor& tensor);
std::string describe(const std::vector<std::int64_t>& shape);

// Checks the bytes of a whole file and lists its tensors, whose data point into `file`.
Result<StoredTensors> parse_safetensors(const std::byte* file, std::size_t bytes);

// A mapped file and its tensors. Movable; the tensors stay valid as long as the object.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  const StoredTensors& tensors() const { return tensors_; }

 private:
  SafetensorsFile() = default;
  void* mapping_ = nullptr;
  std::size_t bytes_ = 0;
  StoredTensors tensors_;
};

}  // namespace tenon
