// This rank's slices of a checkpoint, on the device: row and column ranges, the fp8 scales that go
// with them, projections fused by stacking rows. Not here: which slices a model takes (its folder).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/layers.h"
#include "tenon/models/load_format.h"
#include "tenon/models/slice_transfer.h"
#include "tenon/models/weights.h"

namespace tenon {

// Elements [begin, begin + count) of one dimension.
struct Range {
  std::int64_t begin = 0, count = 0;
  std::int64_t end() const { return begin + count; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Rank's share of `extent` items when every rank gets as many; extent must be a multiple of size.
Range even_slice(std::int64_t extent, int rank, int size);

// Rank's share of `extent` items dealt in whole blocks, as evenly as possible; the last block may
// be ragged. A rank may get none.
Range block_slice(std::int64_t extent, std::int64_t block, int rank, int size);

// What one linear of the checkpoint gives to a fused matrix of this rank.
struct LinearPart {
  std::string module;  // its tensors are module + ".weight" and ".weight_scale_inv"
  std::int64_t out = 0, in = 0;
  std::vector<Range> rows;  // taken output features, stacked in this order; none: only taken
  Range columns;            // taken input features, the same for all parts
};

// Takes tensors from a checkpoint, slices them and brings them to the device. The memory of what
// was asked for has its contents when finish() returns, and may have any before.
class ShardLoader {
 public:
  ShardLoader(Weights weights, std::vector<std::string_view> skipped_prefixes, Stream& stream,
              LoadProgress progress);
  // Only counts: does everything but allocating and copying; the views on this device are nowhere.
  ShardLoader(Weights weights, std::vector<std::string_view> skipped_prefixes, Device device = {});

  ~ShardLoader();  // waits for what is on its way
  ShardLoader(const ShardLoader&) = delete;
  ShardLoader& operator=(const ShardLoader&) = delete;

  bool only_counts() const { return stream_ == nullptr; }
  const Weights& weights() const { return weights_; }
  Weights release() { return std::move(weights_); }

  // Rows `rows` of a tensor seen as [product of leading dimensions, last dimension], as `as`:
  // unchanged, widened to f32, or f32 rounded to bf16. The view has the given shape.
  Result<TensorView> rows(std::string_view name, std::initializer_list<DType> accepted,
                          const std::vector<std::int64_t>& shape, const std::vector<Range>& rows,
                          DType as, std::initializer_list<std::int64_t> result_shape);

  // A vector, whole or in part.
  Result<TensorView> vector(std::string_view name, std::initializer_list<DType> accepted,
                            std::int64_t length, Range taken, DType as);

  // The parts' rows stacked into one matrix: bf16, or fp8 with scales if the parts are fp8. All
  // must be of one precision. With experts > 0 the matrix is seen as [experts, rows / experts,
  // columns].
  Result<Matrix> linear(std::span<const LinearPart> parts, std::int64_t experts = 0);

  // Rows `rows` and columns `columns` of each taken expert of a fused tensor [experts, out, in].
  Result<Matrix> fused_experts(std::string_view name, const std::vector<std::int64_t>& shape,
                               Range experts, const std::vector<Range>& rows, Range columns);

  // Takes a tensor whose rows `rows` have the bytes of another's, and leaves it where it is. False,
  // and nothing is taken, when it is another one.
  Result<bool> skip_copy(std::string_view name, std::string_view of, Range rows);

  // Values computed by the caller.
  Result<TensorView> values(std::span<const float> values,
                            std::initializer_list<std::int64_t> shape);

  // Refuses leftovers; then reads what was asked for, and it is on the device.
  Status finish();

  std::int64_t device_bytes() const { return device_bytes_; }
  std::vector<Buffer> take_buffers() { return std::move(buffers_); }

 private:
  struct Piece {
    const HostTensor* from;
    Range rows, columns;
  };
  Result<HostTensor> take(std::string_view name, std::initializer_list<DType> accepted,
                          const std::vector<std::int64_t>& shape);
  Status take_parts(std::span<const LinearPart> parts, std::vector<HostTensor>* weights,
                    std::vector<HostTensor>* scales);
  Result<TensorView> upload(std::span<const Piece> pieces, DType as,
                            std::initializer_list<std::int64_t> shape);
  bool makes() const;
  static Status make_slices(std::span<const Piece> pieces, const TensorView& to, Stream& stream);
  Result<TensorView> allocate(DType dtype, std::initializer_list<std::int64_t> shape);

  Weights weights_;
  std::vector<std::string_view> skipped_prefixes_;
  Device device_{Target::kCpu, 0};
  Stream* stream_ = nullptr;
  LoadProgress progress_;
  std::int64_t total_bytes_ = 0, device_bytes_ = 0;
  Nowhere nowhere_;
  std::vector<Buffer> buffers_;
  SliceTransfer transfer_;
};

}  // namespace tenon
