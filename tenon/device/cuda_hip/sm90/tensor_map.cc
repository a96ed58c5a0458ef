#include "tenon/device/cuda_hip/sm90/tensor_map.h"

#include <cuda.h>

#include <cstring>
#include <string>

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

}  // namespace

Result<TensorMap> tile_map(const void* data, std::int64_t rows, std::int64_t row_bytes,
                           std::int64_t stride_bytes, int tile_rows) {
  static const Encode encode = find_encode();
  if (encode == nullptr)
    return Status::error(Code::kUnsupported, "the driver has no cuTensorMapEncodeTiled");
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride_bytes)};
  const cuuint32_t tile[] = {128, static_cast<cuuint32_t>(tile_rows)}, steps[] = {1, 1};
  CUtensorMap made;
  const CUresult error =
      encode(&made, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), extents, strides,
             tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS)
    return Status::error(Code::kDevice, "cuTensorMapEncodeTiled refused " + std::to_string(rows) +
                                            " rows of " + std::to_string(row_bytes) +
                                            " bytes that lie " + std::to_string(stride_bytes) +
                                            " bytes apart, in tiles of " +
                                            std::to_string(tile_rows) + " rows: error " +
                                            std::to_string(static_cast<int>(error)));
  TensorMap map;
  std::memcpy(&map, &made, sizeof map);
  return map;
}

}  // namespace tenon::sm90
