// The memory of all caches of one rank, as the model's CacheLayout lists them: allocated, counted
// and cleared without a look at what lies in it. Who holds which part is runtime/cache.h's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/caches.h"

namespace tenon {

// Caches of a sequence.
struct HeldCaches {
  std::span<const std::int32_t> blocks;
  std::int32_t state_slot = -1;
};

class CacheMemory {
 public:
  struct Room {
    int max_context = 0, max_batch = 0;
    int sharers = 1;  // ranks that live in the same memory
    // Tokens of all sequences together; 0: every sequence can be as long as max_context.
    std::int64_t cache_tokens = 0;
    int prefix_states = 0;  // parts per sequence, beyond those of max_batch sequences
    // A sequence may be as long as max_context only where the blocks hold that.
    bool fits_context = false;

    int blocks() const;
    int context() const;  // the longest sequence
    int slots() const { return max_batch + prefix_states; }
  };
  CacheMemory() = default;
  // Whether `left` bytes have the room; a refusal says what would fit.
  static Status check_left(const CacheLayout& layout, const Room& room, std::int64_t left);
  // The most blocks that fit into `left` bytes beside the states of room.slots(). Refuses, as
  // check_left() does, where those of the room itself do not, or with fits_context not one.
  static Result<int> blocks_in(const CacheLayout& layout, const Room& room, std::int64_t left);
  // room.blocks() parts of what blocks have and room.slots() of what sequences have; all bytes are
  // zero. Refuses what cannot fit before it touches any memory, and says what would.
  static Result<CacheMemory> allocate(const CacheLayout& layout, const Room& room, Stream& stream);

  CacheViews views() const { return views_; }
  std::int64_t bytes() const;  // of all caches
  // The same made number everywhere: as bf16 and as f32 it is about 0.0115, and finite as any type.
  Status fill(Stream& stream) const;
  // Zeros in these parts.
  Status clear(const HeldCaches& held, Stream& stream) const;

 private:
  CacheLayout layout_;
  std::vector<TensorView> views_;
  std::vector<Buffer> memory_;
};

// Tokens of the fewest blocks that any rank has, or the first rank's reason. Collective.
Result<std::int64_t> agree_on_cache_tokens(const Result<int>& blocks, Communicator& comm);

}  // namespace tenon
