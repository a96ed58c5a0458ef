#include "tenon/models/safetensors.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "tenon/core/file.h"
#include "tenon/core/json.h"

namespace tenon {
namespace {

using Json = nlohmann::json;

// The format's own limit on the length of a header.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

struct StoredType {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype;
};
constexpr std::array<StoredType, 16> kTypes{{
    {"F32", 4, DType::kF32},
    {"BF16", 2, DType::kBF16},
    {"F16", 2, DType::kF16},
    {"F8_E4M3", 1, DType::kE4M3},
    {"F8_E5M2", 1, DType::kE5M2},
    {"I32", 4, DType::kI32},
    {"I64", 8, DType::kI64},
    {"U8", 1, DType::kU8},
    {"BOOL", 1, std::nullopt},
    {"I8", 1, std::nullopt},
    {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},
    {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},
    {"F64", 8, std::nullopt},
    {"F8_E8M0", 1, std::nullopt},
}};

Status malformed(std::string why) { return Status::error(Code::kIo, std::move(why)); }

// A list of non-negative integers, or nothing.
std::optional<std::vector<std::uint64_t>> integers(const Json& entry, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array()) return std::nullopt;
  std::vector<std::uint64_t> values;
  for (const Json& each : *found) {
    if (!each.is_number_unsigned()) return std::nullopt;
    values.push_back(each.get<std::uint64_t>());
  }
  return values;
}

// Elements × size, or nothing when it passes any file's size.
std::optional<std::uint64_t> byte_count(const std::vector<std::uint64_t>& shape, std::size_t size) {
  constexpr std::uint64_t kTooMany = std::uint64_t{1} << 62;
  std::uint64_t bytes = size;
  for (std::uint64_t extent : shape) {
    if (extent > kTooMany || (extent != 0 && bytes > kTooMany / extent)) return std::nullopt;
    bytes *= extent;
  }
  return bytes;
}

// One entry of the header; `data` is the byte area behind it.
Result<StoredTensor> parse_entry(const Json& entry, const std::byte* data,
                                 std::uint64_t data_bytes) {
  if (!entry.is_object()) return malformed("its entry is not an object");
  const auto type = entry.find("dtype");
  if (type == entry.end() || !type->is_string()) return malformed("it has no \"dtype\" string");
  StoredTensor tensor;
  tensor.type = type->get<std::string>();
  const auto known = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const StoredType& each) { return each.name == tensor.type; });
  if (known == kTypes.end()) return malformed("its dtype \"" + tensor.type + "\" is not known");
  tensor.dtype = known->dtype;

  const auto shape = integers(entry, "shape");
  if (!shape) return malformed("its \"shape\" is not a list of non-negative integers");
  const auto wanted = byte_count(*shape, known->bytes);
  if (!wanted) return malformed("its shape has more bytes than any file");
  for (std::uint64_t extent : *shape) tensor.shape.push_back(static_cast<std::int64_t>(extent));

  const auto offsets = integers(entry, "data_offsets");
  if (!offsets || offsets->size() != 2)
    return malformed("its \"data_offsets\" are not two non-negative integers");
  const std::uint64_t begin = (*offsets)[0], end = (*offsets)[1];
  std::string range = std::to_string(begin);
  range.append(" to ").append(std::to_string(end));
  if (begin > end || end > data_bytes)
    return malformed("its data_offsets " + range + " do not lie in the file's " +
                     std::to_string(data_bytes) + " data bytes");
  if (end - begin != *wanted)
    return malformed("its data_offsets " + range + " hold " + std::to_string(end - begin) +
                     " bytes but " + describe(tensor) + " has " + std::to_string(*wanted));
  tensor.data = data + begin;
  tensor.bytes = static_cast<std::size_t>(end - begin);
  return tensor;
}

// Tensors must tile the data area: no overlap, no byte that nobody owns.
Status check_tiling(const StoredTensors& tensors, const std::byte* data, std::uint64_t data_bytes) {
  std::vector<std::pair<const StoredTensor*, const std::string*>> by_place;
  for (const auto& [name, tensor] : tensors) by_place.emplace_back(&tensor, &name);
  std::sort(by_place.begin(), by_place.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->data, a.first->bytes) < std::pair(b.first->data, b.first->bytes);
  });
  const std::byte* reached = data;
  for (const auto& [tensor, name] : by_place) {
    if (tensor->data < reached)
      return malformed("tensor \"" + *name + "\" overlaps the one before it");
    if (tensor->data > reached)
      return malformed("there are " + std::to_string(tensor->data - reached) +
                       " bytes that no tensor owns in front of \"" + *name + "\"");
    reached = tensor->data + tensor->bytes;
  }
  const auto rest = static_cast<std::uint64_t>(data + data_bytes - reached);
  if (rest != 0)
    return malformed("the last " + std::to_string(rest) + " bytes belong to no tensor");
  return Status::ok();
}

}  // namespace

std::string describe(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

std::string describe(const StoredTensor& tensor) {
  return tensor.type + " " + describe(tensor.shape);
}

Result<StoredTensors> parse_safetensors(const std::byte* file, std::size_t bytes) {
  if (bytes < 8)
    return malformed("the file has " + std::to_string(bytes) +
                     " bytes but a header length alone takes 8");
  std::uint64_t header_bytes = 0;
  for (int i = 8; i-- > 0;)
    header_bytes = header_bytes << 8 | std::to_integer<std::uint64_t>(file[i]);
  if (header_bytes > bytes - 8 || header_bytes > kMaxHeaderBytes)
    return malformed("the header claims " + std::to_string(header_bytes) +
                     " bytes but the file has " + std::to_string(bytes - 8) +
                     " after the length, and at most " + std::to_string(kMaxHeaderBytes) +
                     " are accepted");
  const auto* text = reinterpret_cast<const char*>(file + 8);
  TENON_ASSIGN(const Json header, parse_json({text, header_bytes}, JsonKeys::kUnique),
               "the header");
  if (!header.is_object()) return malformed("the header is JSON but not an object");

  const std::byte* data = file + 8 + header_bytes;
  const std::uint64_t data_bytes = bytes - 8 - header_bytes;
  StoredTensors tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    TENON_ASSIGN(StoredTensor tensor, parse_entry(entry, data, data_bytes),
                 "tensor \"" + name + "\"");
    tensors.emplace(name, std::move(tensor));
  }
  TENON_TRY(check_tiling(tensors, data, data_bytes));
  return tensors;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  TENON_ASSIGN(const InputFile opened, InputFile::open(path));  // the mapping outlives it
  SafetensorsFile file;
  file.bytes_ = static_cast<std::size_t>(opened.bytes());
  if (file.bytes_ > 0) {
    void* mapping = ::mmap(nullptr, file.bytes_, PROT_READ, MAP_PRIVATE, opened.descriptor(), 0);
    if (mapping == MAP_FAILED)
      return malformed(path + ": cannot be mapped: " + std::strerror(errno) + "; it takes " +
                       std::to_string(file.bytes_) + " bytes of address space (ulimit -v)");
    file.mapping_ = mapping;
  }
  TENON_ASSIGN(file.tensors_,
               parse_safetensors(static_cast<const std::byte*>(file.mapping_), file.bytes_), path);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept { *this = std::move(other); }

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(bytes_, other.bytes_);
  std::swap(tensors_, other.tensors_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) ::munmap(mapping_, bytes_);
}

}  // namespace tenon
