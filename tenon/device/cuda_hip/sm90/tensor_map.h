// What the copy engine of sm_90 is told of a matrix in global memory. Made on the host, without a
// call that could allocate or wait, so a launch may make it; kernels take it as an argument by
// value. CUDA builds only.
#pragma once

#include <cstdint>

#include "tenon/core/status.h"

namespace tenon::sm90 {

// The driver's CUtensorMap, opaque.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

// A matrix [rows, row_bytes] whose rows lie `stride_bytes` apart, copied in tiles of `tile_rows`
// rows and 128 bytes of each. A tile lies in shared memory as sm90/wgmma.cuh wants its operands.
// What of a tile lies outside of the matrix arrives as zeros. The address and the stride are
// multiples of 16 bytes, rows and row_bytes at least 1, tile_rows at most 256. An error: the driver
// has no such function, or refuses these numbers.
Result<TensorMap> tile_map(const void* data, std::int64_t rows, std::int64_t row_bytes,
                           std::int64_t stride_bytes, int tile_rows);

// A matrix as above, k bytes a row in blocks of 128, copied in boxes: `box_rows` rows, four or
// eight, from any row on and as many that lie `second_rows` rows below them, `box_blocks` blocks of
// each. In shared memory twice four rows share the atom of a block, and atoms of the blocks follow
// each other; of twice eight rows the first eight have an atom for each block, then the second
// eight. Blocks past the end of a row arrive as zeros. k is a multiple of 128, and the second rows
// of a box lie in the matrix.
Result<TensorMap> box_map(const void* data, std::int64_t rows, std::int64_t k,
                          std::int64_t stride_bytes, std::int64_t second_rows, int box_rows,
                          int box_blocks);

}  // namespace tenon::sm90
