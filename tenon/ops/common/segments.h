// Where the sum over k of a matrix product is cut, so that several workers may share it: one answer
// for fp8_gemm and bf16_gemm, every variant and every target. It depends on n and k alone: not on
// the number of rows, not on the device. What a worker makes of a segment is added in order,
// ((segment 0 + segment 1) + segment 2) + …, by whoever adds it.
#pragma once

namespace tenon {

inline constexpr int kProductBlock = 128;  // elements of k: a block, which shares a scale in fp8
inline constexpr int kMaxSegments = 8;
inline constexpr int kMinSegmentSize = 512;  // elements of k

// A decode step should have about one piece of work for each of 132 multiprocessors, where a piece
// is a segment of 64 columns; 96 pieces are enough.
inline constexpr int kPieceColumns = 64;
inline constexpr int kEnoughPieces = 96;

struct Segments {
  int count = 1;
  int num_blocks = 0;  // of k, the last one perhaps short

  // The first element of a segment, 0 <= segment <= count; a multiple of kProductBlock. For `count`
  // it is k rounded up.
  constexpr int begin(int segment) const { return num_blocks * segment / count * kProductBlock; }
};

// n: columns of the output, at least 1. k: length of the sum.
constexpr Segments segments_of(int n, int k) {
  const int column_tiles = (n + kPieceColumns - 1) / kPieceColumns;
  Segments found{1, (k + kProductBlock - 1) / kProductBlock};
  while (found.count < kMaxSegments && column_tiles * found.count < kEnoughPieces &&
         k / (2 * found.count) >= kMinSegmentSize)
    found.count *= 2;
  return found;
}

}  // namespace tenon
