#include "tenon/device/cuda_hip/sm90/tensor_map.h"

#include <cuda.h>

#include <array>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "tenon/device/cuda_hip/vendor.h"

namespace tenon::sm90 {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= 64);

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// The driver is asked through the runtime: nothing links to the driver's library. Null if it has no
// such function.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(found);
}

// what(): the matrix in words, for an error.
template <class What>
Result<TensorMap> make_map(const void* data, std::span<const cuuint64_t> extents,
                           std::span<const cuuint64_t> strides, std::span<const cuuint32_t> box,
                           const What& what) {
  static const Encode encode = find_encode();
  if (encode == nullptr)
    return Status::error(Code::kUnsupported, "the driver has no cuTensorMapEncodeTiled");
  const std::array<cuuint32_t, 4> steps{1, 1, 1, 1};
  CUtensorMap made;
  const CUresult error =
      encode(&made, CU_TENSOR_MAP_DATA_TYPE_UINT8, static_cast<cuuint32_t>(extents.size()),
             const_cast<void*>(data), extents.data(), strides.data(), box.data(), steps.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS)
    return Status::error(Code::kDevice, "cuTensorMapEncodeTiled refused " + what() + ": error " +
                                            std::to_string(static_cast<int>(error)));
  TensorMap map;
  std::memcpy(&map, &made, sizeof map);
  return map;
}

std::string describe_rows(std::int64_t rows, std::int64_t row_bytes, std::int64_t stride_bytes) {
  return std::to_string(rows) + " rows of " + std::to_string(row_bytes) + " bytes that lie " +
         std::to_string(stride_bytes) + " bytes apart";
}

cuuint64_t extent(std::int64_t value) { return static_cast<cuuint64_t>(value); }

}  // namespace

Result<TensorMap> tile_map(const void* data, std::int64_t rows, std::int64_t row_bytes,
                           std::int64_t stride_bytes, int tile_rows) {
  const std::array<cuuint64_t, 2> extents{extent(row_bytes), extent(rows)};
  const std::array<cuuint64_t, 1> strides{extent(stride_bytes)};
  const std::array<cuuint32_t, 2> box{128, static_cast<cuuint32_t>(tile_rows)};
  return make_map(data, extents, strides, box, [&] {
    return describe_rows(rows, row_bytes, stride_bytes) + ", in tiles of " +
           std::to_string(tile_rows) + " rows";
  });
}

Result<TensorMap> box_map(const void* data, std::int64_t rows, std::int64_t k,
                          std::int64_t stride_bytes, std::int64_t second_rows, int box_rows,
                          int box_blocks) {
  struct Dimension {
    cuuint64_t extent, stride;
    cuuint32_t box;
  };
  Dimension inner{extent(k / 128), 128, static_cast<cuuint32_t>(box_blocks)};
  Dimension outer{2, extent(second_rows * stride_bytes), 2};
  if (box_rows == 4) std::swap(inner, outer);
  const std::array<cuuint64_t, 4> extents{128, extent(rows), inner.extent, outer.extent};
  const std::array<cuuint64_t, 3> strides{extent(stride_bytes), inner.stride, outer.stride};
  const std::array<cuuint32_t, 4> box{128, static_cast<cuuint32_t>(box_rows), inner.box, outer.box};
  return make_map(data, extents, strides, box, [&] {
    return describe_rows(rows, k, stride_bytes) + ", in boxes of two times " +
           std::to_string(box_rows) + " rows " + std::to_string(second_rows) + " rows apart";
  });
}

}  // namespace tenon::sm90
