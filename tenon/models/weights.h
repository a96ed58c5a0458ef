// A checkpoint directory as Qwen publishes it: safetensors shards with an index, or one file.
// Every tensor is demanded by name, type and shape and taken exactly once; what is left over at the
// end is an error. Not here: slices and device memory (shard.h).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/models/safetensors.h"

namespace tenon {

// A tensor that was asked for and found as asked. Points into the mapped file.
struct HostTensor {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;  // no alignment beyond one byte

  std::int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  std::int64_t rows() const;  // product of all dimensions but the last
};

class Weights {
 public:
  // Maps every shard. Refuses an index that names a missing file, a tensor that is not in the named
  // file, and a shard with a tensor that the index does not know or places elsewhere.
  static Result<Weights> open(const std::string& directory);
  Weights(Weights&&) noexcept;
  Weights& operator=(Weights&&) noexcept;
  ~Weights();

  bool has(std::string_view name) const;
  // The element type of a tensor, or nothing if there is none of that name or its type is exotic.
  std::optional<DType> dtype(std::string_view name) const;

  // Every tensor in the order of names, those with one of the prefixes aside.
  void visit(std::span<const std::string_view> skipped_prefixes,
             const std::function<void(const std::string& name, const StoredTensor&)>& see) const;

  // Whether any tensor has this element type, those with one of the prefixes aside.
  bool holds(DType dtype, std::span<const std::string_view> skipped_prefixes) const;

  // The tensor as it lies in its file, or null. Nothing is taken.
  const StoredTensor* find(std::string_view name) const;

  // The tensor, which nobody has taken yet and which has one of the accepted types and this shape.
  Result<HostTensor> take(std::string_view name, std::initializer_list<DType> accepted,
                          const std::vector<std::int64_t>& shape);

  // Ok when every tensor was taken or starts with one of the prefixes (parts of a checkpoint that
  // the model does not use). Otherwise names the first leftovers.
  Status finish(std::span<const std::string_view> skipped_prefixes) const;

  std::int64_t bytes_taken() const;
  // Bytes of all tensors that do not start with one of the prefixes.
  std::int64_t bytes_wanted(std::span<const std::string_view> skipped_prefixes) const;

 private:
  struct State;
  explicit Weights(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tenon
