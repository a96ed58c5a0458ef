#include "tenon/core/tensor.h"

#include <charconv>

namespace tenon {
namespace {

std::string join_shape(const TensorView& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.num_dims; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.shape[static_cast<std::size_t>(i)]);
  }
  return text + "]";
}

std::string join_names(std::initializer_list<std::string_view> names) {
  std::string text = "[";
  for (std::string_view each : names) {
    if (text.size() > 1) text += ", ";
    text += each;
  }
  return text + "]";
}

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr std::array<std::pair<DType, std::string_view>, 9> kDTypeNames{{
    {DType::kF32, "f32"},
    {DType::kBF16, "bf16"},
    {DType::kF16, "f16"},
    {DType::kE4M3, "e4m3fn"},
    {DType::kE4M3Fnuz, "e4m3fnuz"},
    {DType::kE5M2, "e5m2"},
    {DType::kI32, "i32"},
    {DType::kI64, "i64"},
    {DType::kU8, "u8"},
}};

constexpr std::array<std::pair<ScaleLayout, std::string_view>, 3> kLayoutNames{{
    {ScaleLayout::kRow, "row"},
    {ScaleLayout::kMnMajor, "mn_major"},
    {ScaleLayout::kUe8m0Packed, "ue8m0_packed"},
}};

constexpr std::array<std::string_view, kNumTargets> kTargetNames{
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) #space,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
};

template <class Table>
auto find_named(const Table& table, std::string_view wanted)
    -> std::optional<typename Table::value_type::first_type> {
  for (const auto& [value, text] : table)
    if (text == wanted) return value;
  return std::nullopt;
}

template <class Table, class Value>
std::string_view find_name(const Table& table, Value wanted) {
  for (const auto& [value, text] : table)
    if (value == wanted) return text;
  return "?";
}

}  // namespace

std::string_view name(DType dtype) { return find_name(kDTypeNames, dtype); }
std::optional<DType> dtype_named(std::string_view name) { return find_named(kDTypeNames, name); }
std::string_view name(ScaleLayout layout) { return find_name(kLayoutNames, layout); }
std::optional<ScaleLayout> scale_layout_named(std::string_view name) {
  return find_named(kLayoutNames, name);
}

std::string_view name(Target target) { return kTargetNames[static_cast<std::size_t>(target)]; }
std::optional<Target> target_named(std::string_view name) {
  for (std::size_t i = 0; i < kTargetNames.size(); ++i)
    if (kTargetNames[i] == name) return static_cast<Target>(i);
  return std::nullopt;
}

std::int64_t TensorView::size() const {
  std::int64_t count = 1;
  for (int i = 0; i < num_dims; ++i) count *= shape[static_cast<std::size_t>(i)];
  return count;
}

bool TensorView::contiguous() const {
  std::int64_t expected = 1;
  for (int i = num_dims; i-- > 0;) {
    const auto at = static_cast<std::size_t>(i);
    if (shape[at] != 1 && stride[at] != expected) return false;
    expected *= shape[at];
  }
  return true;
}

bool TensorView::rows_contiguous() const {
  if (num_dims == 0) return true;
  const auto last = static_cast<std::size_t>(num_dims - 1);
  return shape[last] <= 1 || stride[last] == 1;
}

TensorView TensorView::rows(std::int64_t begin, std::int64_t count) const {
  TensorView part = *this;
  part.data =
      static_cast<std::byte*>(data) + static_cast<std::size_t>(begin * stride[0]) * size_of(dtype);
  part.shape[0] = count;
  return part;
}

TensorView view(void* data, DType dtype, Device device, std::initializer_list<std::int64_t> shape) {
  TENON_CHECK(shape.size() <= 4);
  TensorView tensor;
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.device = device;
  for (std::int64_t extent : shape)
    tensor.shape[static_cast<std::size_t>(tensor.num_dims++)] = extent;
  std::int64_t stride = 1;
  for (int i = tensor.num_dims; i-- > 0;) {
    tensor.stride[static_cast<std::size_t>(i)] = stride;
    stride *= tensor.shape[static_cast<std::size_t>(i)];
  }
  return tensor;
}

std::string describe(const TensorView& tensor) {
  return std::string(name(tensor.dtype)) + " " + join_shape(tensor) + " on " +
         std::string(name(tensor.device.target)) + ":" + std::to_string(tensor.device.index);
}

std::array<std::int64_t, 2> scale_shape(ScaleLayout layout, std::int64_t rows, std::int64_t hidden,
                                        int group) {
  const std::int64_t groups = hidden / group;
  switch (layout) {
    case ScaleLayout::kRow: return {rows, groups};
    case ScaleLayout::kMnMajor: return {groups, round_up(rows, 4)};
    case ScaleLayout::kUe8m0Packed: return {round_up(groups, 4) / 4, round_up(rows, 4)};
  }
  return {0, 0};
}

DType scale_dtype(ScaleLayout layout) {
  return layout == ScaleLayout::kUe8m0Packed ? DType::kI32 : DType::kF32;
}

Status match(std::string_view what, const TensorView& tensor,
             std::initializer_list<std::string_view> names, Dims& dims) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (tensor.num_dims != static_cast<int>(names.size()))
    return Status::error(Code::kInvalidArgument, found + " but must be " + join_names(names));
  std::size_t at = 0;
  for (std::string_view dim : names) {
    const std::int64_t extent = tensor.shape[at++];
    std::int64_t wanted = 0;
    const auto parsed = std::from_chars(dim.data(), dim.data() + dim.size(), wanted);
    if (parsed.ec != std::errc() || parsed.ptr != dim.data() + dim.size()) {
      const auto [entry, fresh] = dims.try_emplace(std::string(dim), extent);
      wanted = entry->second;
    }
    if (extent != wanted)
      return Status::error(Code::kInvalidArgument, found + " but must be " + join_names(names) +
                                                       " with " + std::string(dim) + " = " +
                                                       std::to_string(wanted));
  }
  if (tensor.data == nullptr && tensor.size() > 0)
    return Status::error(Code::kInvalidArgument, found + " but its data pointer is null");
  return Status::ok();
}

Status match(std::string_view what, const TensorView& tensor, std::initializer_list<DType> accepted,
             std::initializer_list<std::string_view> names, Dims& dims) {
  std::string list;
  for (DType each : accepted) {
    if (each == tensor.dtype) return match(what, tensor, names, dims);
    list += (list.empty() ? "" : " or ") + std::string(name(each));
  }
  return Status::error(Code::kInvalidArgument, std::string(what) + " is " + describe(tensor) +
                                                   " but must be of type " + list);
}

}  // namespace tenon
