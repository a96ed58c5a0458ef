// Views of memory that own nothing: Device, TensorView, QuantView, NormedRows, and match(), which
// checks shapes by named dimensions. fp8 data never travels without its scales.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "tenon/core/dtype.h"
#include "tenon/core/status.h"

namespace tenon {

enum class Target : std::uint8_t {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) k##enumerator,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
};
inline constexpr int kNumTargets = 0
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) +1
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
    ;

std::string_view name(Target target);                       // "cpu", "cuda", …
std::optional<Target> target_named(std::string_view name);  // the inverse
constexpr bool is_host(Target target) { return target != Target::kCuda && target != Target::kHip; }

struct Device {
  Target target = Target::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

// A strided view of at most four dimensions. Strides count elements. Owns nothing.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kBF16;
  Device device{};
  std::array<std::int64_t, 4> shape{}, stride{};
  int num_dims = 0;

  std::int64_t size() const;  // elements
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * size_of(dtype); }
  bool contiguous() const;       // row-major with no gaps
  bool rows_contiguous() const;  // the last dimension has stride 1
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Rows [begin, begin + count) of the first dimension.
  TensorView rows(std::int64_t begin, std::int64_t count) const;
};

// A contiguous row-major view.
TensorView view(void* data, DType dtype, Device device, std::initializer_list<std::int64_t> shape);

// "bf16 [4, 5120] on cpu:0": for messages.
std::string describe(const TensorView& tensor);

// Where the scale of (row, group) lies. The values are the same in every layout.
enum class ScaleLayout : std::uint8_t {
  kRow,          // fp32 [rows, groups]
  kMnMajor,      // fp32 [groups, round_up(rows, 4)]: token index contiguous; padding is 0
  kUe8m0Packed,  // int32 [ceil(groups / 4), round_up(rows, 4)]: four exponents of consecutive
                 // groups, little endian; padding (rows and missing groups) is 0
};
std::string_view name(ScaleLayout layout);
std::optional<ScaleLayout> scale_layout_named(std::string_view name);

// fp8 codes and their scales. scale has the shape that `layout` says.
struct QuantView {
  TensorView data;  // [rows, hidden], e4m3 or e4m3fnuz
  TensorView scale;
  int group = 128;  // consecutive elements that share a scale
  ScaleLayout layout = ScaleLayout::kRow;
};

// What a boundary hands on: bf16 (or fp16) rows, fp8 rows, or both.
struct NormedRows {
  std::optional<TensorView> bf16;  // [rows, hidden] of the element type
  std::optional<QuantView> fp8;    // [rows, hidden]
};

// The shape of the scale tensor for rows × hidden in groups.
std::array<std::int64_t, 2> scale_shape(ScaleLayout layout, std::int64_t rows, std::int64_t hidden,
                                        int group);
DType scale_dtype(ScaleLayout layout);

// Named dimensions seen so far: match() binds a name at its first use and demands it afterwards.
using Dims = std::map<std::string, std::int64_t, std::less<>>;

// Checks that `tensor` has exactly the named dimensions, in order. A name that parses as a number
// is a fixed extent. The error names `what`, the tensor found and the dimension that differs.
Status match(std::string_view what, const TensorView& tensor,
             std::initializer_list<std::string_view> names, Dims& dims);

// As above, and the element type must be one of `accepted`.
Status match(std::string_view what, const TensorView& tensor, std::initializer_list<DType> accepted,
             std::initializer_list<std::string_view> names, Dims& dims);

}  // namespace tenon
