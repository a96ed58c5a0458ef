#include "tenon/models/safetensors.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "tenon/core/json.h"

namespace tenon {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLengthBytes = 8;  // of the header's length, in front of it
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

// One entry of the header; the bytes of tensors lie behind it, from `data` on.
Result<StoredTensor> parse_entry(const Json& entry, std::uint64_t data, std::uint64_t data_bytes) {
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
  tensor.offset = data + begin;
  tensor.bytes = static_cast<std::size_t>(end - begin);
  return tensor;
}

// Tensors must tile the data area: no overlap, no byte that nobody owns.
Status check_tiling(const StoredTensors& tensors, std::uint64_t data, std::uint64_t data_bytes) {
  std::vector<std::pair<const StoredTensor*, const std::string*>> by_place;
  for (const auto& [name, tensor] : tensors) by_place.emplace_back(&tensor, &name);
  std::sort(by_place.begin(), by_place.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->offset, a.first->bytes) < std::pair(b.first->offset, b.first->bytes);
  });
  std::uint64_t reached = data;
  for (const auto& [tensor, name] : by_place) {
    if (tensor->offset < reached)
      return malformed("tensor \"" + *name + "\" overlaps the one before it");
    if (tensor->offset > reached)
      return malformed("there are " + std::to_string(tensor->offset - reached) +
                       " bytes that no tensor owns in front of \"" + *name + "\"");
    reached = tensor->offset + tensor->bytes;
  }
  const std::uint64_t rest = data + data_bytes - reached;
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

Result<std::uint64_t> header_end(std::span<const std::byte> first, std::uint64_t file_bytes) {
  if (file_bytes < kLengthBytes)
    return malformed("the file has " + std::to_string(file_bytes) +
                     " bytes but a header length alone takes 8");
  std::uint64_t header_bytes = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;)
    header_bytes = header_bytes << 8 | std::to_integer<std::uint64_t>(first[i]);
  const std::uint64_t behind = file_bytes - kLengthBytes;
  if (header_bytes > behind || header_bytes > kMaxHeaderBytes)
    return malformed("the header claims " + std::to_string(header_bytes) +
                     " bytes but the file has " + std::to_string(behind) +
                     " after the length, and at most " + std::to_string(kMaxHeaderBytes) +
                     " are accepted");
  return kLengthBytes + header_bytes;
}

Result<StoredTensors> parse_safetensors(std::span<const std::byte> head, std::uint64_t file_bytes) {
  TENON_ASSIGN(const std::uint64_t data, header_end(head, file_bytes));
  TENON_CHECK(head.size() >= data);
  const auto* text = reinterpret_cast<const char*>(head.data() + kLengthBytes);
  TENON_ASSIGN(const Json header, parse_json({text, data - kLengthBytes}, JsonKeys::kUnique),
               "the header");
  if (!header.is_object()) return malformed("the header is JSON but not an object");

  const std::uint64_t data_bytes = file_bytes - data;
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

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path, std::size_t number) {
  TENON_ASSIGN(const InputFile opened, InputFile::open(path));
  SafetensorsFile file;
  file.path_ = path;
  file.id_ = opened.id();
  std::vector<std::byte> head(std::min<std::uint64_t>(kLengthBytes, opened.bytes()));
  TENON_TRY(opened.read(0, head.size(), head.data()));
  TENON_ASSIGN(const std::uint64_t end, header_end(head, opened.bytes()), path);
  head.resize(end);
  TENON_TRY(opened.read(0, end, head.data()));
  TENON_ASSIGN(file.tensors_, parse_safetensors(head, opened.bytes()), path);
  for (auto& [name, tensor] : file.tensors_) tensor.file = number;
  return file;
}

Result<InputFile> SafetensorsFile::reopen() const {
  TENON_ASSIGN(InputFile opened, InputFile::open(path_));
  if (!(opened.id() == id_))
    return malformed(path_ +
                     ": is not the file any more whose header was read; accepted: files "
                     "that stay while a model is loaded");
  return opened;
}

}  // namespace tenon
