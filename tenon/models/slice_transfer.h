// Slices of stored tensors on their way to a device. First all of them are named; then several
// threads read them in the order in which they lie in their files, prepare them, and send them:
// on devices through pinned memory, on host targets straight to where they belong. Not here: which
// slices a rank takes (shard.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tenon/core/dtype.h"
#include "tenon/core/status.h"
#include "tenon/device/runtime.h"
#include "tenon/models/weights.h"

namespace tenon {

// Rows of a tensor, or of a part of each: `columns` elements from the element `first` on, and as
// many `stride` elements behind, so many `rows` times.
struct StoredSlice {
  const StoredTensor* from = nullptr;
  std::int64_t first = 0, rows = 0, columns = 0, stride = 0;
};

// What a transfer's threads did: seconds are sums over them.
struct TransferTimes {
  int readers = 0;
  double read_s = 0;            // in reads of the source, or asking for them
  double prepare_s = 0;         // taking columns out of rows, converting
  double send_s = 0;            // waiting for copies to the device
  std::int64_t bytes = 0;       // read
  std::int64_t disk_bytes = 0;  // fetched from a disk meanwhile, by all threads of this process

  // What took the most of it: "the disk, 97 % of the time of 16 readers". `makes`: the source is no
  // file.
  std::string limit(bool makes) const;
};

class SliceTransfer {
 public:
  using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

  // Slices that shall lie one behind the other from `to` on, of the type `as`: the one that they
  // are stored as, f32 for any float, or bf16 for f32. Nothing is read yet.
  void add(std::span<const StoredSlice> stacked, DType as, std::byte* to);

  // Everything that was added, to memory of the stream's device; it is there when this returns.
  // Slices belong to `source`. `progress`, which may be empty, is called on this thread, with the
  // bytes that were read and those that there are. After an error some of the memory is written.
  Result<TransferTimes> run(const TensorSource& source, Stream& stream, const Progress& progress);

 private:
  class Reader;
  struct Run;
  // What is sent at once: some slices, to lie one behind the other.
  struct Chunk {
    DType as = DType::kBF16;
    std::byte* to = nullptr;
    std::size_t bytes = 0;           // there
    std::size_t begin = 0, end = 0;  // of slices_
    std::int64_t stored_bytes = 0;   // of the slices
  };
  void append(StoredSlice slice, Chunk& chunk);
  void close(Chunk& chunk);

  std::vector<StoredSlice> slices_;
  std::vector<Chunk> chunks_;
  std::int64_t stored_bytes_ = 0;
};

}  // namespace tenon
