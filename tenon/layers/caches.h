// The caches of a model as data: the models say what they need, the runtime allocates, counts,
// clears and refuses without knowing what lies in them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tenon/core/tensor.h"

namespace tenon {

// One cache of one layer on one rank.
struct CacheSpec {
  enum class Per : std::uint8_t {
    kBlock,     // a part for each block of tokens: sequences hold as many blocks as they are long
    kSequence,  // a part for each sequence that runs
  };
  std::string name;  // "layer 3 k": for messages
  DType dtype = DType::kBF16;
  Per per = Per::kBlock;
  std::vector<std::int64_t> shape;  // of one part; at most three dimensions

  std::int64_t part_bytes() const;
  // [parts, shape…] at `data`.
  TensorView tensor(void* data, Device device, std::int64_t parts) const;
};

// All of them, in the order in which the model wants to see them. Zero bytes are a valid content of
// every cache.
struct CacheLayout {
  int block_tokens = 64;
  std::vector<CacheSpec> caches;

  std::int64_t block_bytes() const { return part_bytes(CacheSpec::Per::kBlock); }
  std::int64_t sequence_bytes() const { return part_bytes(CacheSpec::Per::kSequence); }
  std::int64_t token_bytes() const { return block_bytes() / block_tokens; }

 private:
  std::int64_t part_bytes(CacheSpec::Per per) const;
};

// One tensor per CacheSpec, by its index.
using CacheViews = std::span<const TensorView>;

}  // namespace tenon
