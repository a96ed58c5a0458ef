// The memory of all caches of one rank, as the model's CacheLayout lists them: allocated, counted
// and cleared without a look at what lies in it. Who holds which part is runtime/cache.h's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tenon/device/runtime.h"
#include "tenon/layers/caches.h"

namespace tenon {

// The caches that a sequence holds.
struct HeldCaches {
  std::span<const std::int32_t> blocks;
  std::int32_t state_slot = -1;
};

class CacheMemory {
 public:
  struct Room {
    int max_context = 0, max_batch = 0;
    int sharers = 1;  // ranks that live in the same memory
  };
  CacheMemory() = default;
  // Whole blocks for max_batch sequences of max_context tokens, and a part for each sequence; all
  // bytes are zero. Refuses what cannot fit before it touches any memory, and says what would.
  static Result<CacheMemory> allocate(const CacheLayout& layout, const Room& room, Stream& stream);

  CacheViews views() const { return views_; }
  // The same made number everywhere: as bf16 and as f32 it is about 0.0115, and finite as any type.
  Status fill(Stream& stream) const;
  // Zeros in the parts of one sequence.
  Status clear(const HeldCaches& held, Stream& stream) const;

 private:
  CacheLayout layout_;
  std::vector<TensorView> views_;
  std::vector<Buffer> memory_;
};

}  // namespace tenon
