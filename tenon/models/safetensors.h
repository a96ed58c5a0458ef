// One safetensors file, its header read and checked: every tensor's name, type, shape and place.
// A file that lies (lengths, offsets, shapes, duplicate names) is refused with a sentence; no input
// can make a reader look outside the file. Not here: which tensors a model wants (weights.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/dtype.h"
#include "tenon/core/file.h"
#include "tenon/core/status.h"

namespace tenon {

// A tensor as it lies in a file.
struct StoredTensor {
  std::string type;            // as the file spells it: "BF16", "F8_E4M3"
  std::optional<DType> dtype;  // absent for types that no model here reads ("BOOL", "F64")
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of its first byte in the file; any number
  std::size_t bytes = 0;
  std::size_t file = 0;  // which of the files that were opened together
};

using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;

// "BF16 [4, 5120]": for messages.
std::string describe(const StoredTensor& tensor);
std::string describe(const std::vector<std::int64_t>& shape);

// Where the header ends in a file of `file_bytes` bytes, of which `first` are the first 8 or, of a
// shorter file, all. Refuses what no header can be.
Result<std::uint64_t> header_end(std::span<const std::byte> first, std::uint64_t file_bytes);

// Checks the header of a file of `file_bytes` bytes and lists its tensors. `head` has the file's
// first bytes, at least up to header_end() if there is one.
Result<StoredTensors> parse_safetensors(std::span<const std::byte> head, std::uint64_t file_bytes);

// A file whose header was read. It is not held open: a checkpoint may have more files than a
// process may have open. Movable; the tensors stay valid as long as the object.
class SafetensorsFile {
 public:
  // `number` becomes the tensors' `file`.
  static Result<SafetensorsFile> open(const std::string& path, std::size_t number = 0);

  const StoredTensors& tensors() const { return tensors_; }

  // Opens it again, to read tensors from. Refused where another file has its name by now.
  Result<InputFile> reopen() const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  FileId id_;
  StoredTensors tensors_;
};

}  // namespace tenon
