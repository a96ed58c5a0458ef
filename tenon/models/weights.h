// The tensors of a checkpoint. As Qwen publishes it they lie in a directory of safetensors shards
// with an index, or in one file; another source may stand behind the same interface. Every tensor
// is demanded by name, type and shape and taken exactly once; what is left over at the end is an
// error. Not here: slices and device memory (shard.h).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/models/safetensors.h"

namespace tenon {

// One thread's way to the bytes of tensors.
class TensorReader {
 public:
  virtual ~TensorReader() = default;
  // Writes bytes [begin, begin + count) of a tensor of the source to `to`: whole elements where its
  // type has a size.
  virtual Status read(const StoredTensor& tensor, std::size_t begin, std::size_t count,
                      std::byte* to) = 0;
  // Somebody will read these bytes soon: what has to be fetched for it may be on its way already.
  virtual void expect(const StoredTensor&, std::size_t, std::size_t) {}
  // To read so many bytes more that nobody wants costs less than a second read.
  virtual std::size_t cheap_gap_bytes() const { return 0; }
};

// What a checkpoint's tensors are read from: files, or a generator (dummy.h). Immutable: threads
// may share it.
class TensorSource {
 public:
  using Tensors = std::map<std::string, const StoredTensor*, std::less<>>;
  virtual ~TensorSource() = default;
  // By name; they live as long as the source.
  virtual const Tensors& tensors() const = 0;
  virtual std::unique_ptr<TensorReader> reader() const = 0;

  // Whether make() puts tensors onto a device without the host. It writes the rows and columns of
  // `to`, [rows, columns] on the stream's device, from this row and column of the tensor on, seen
  // as [product of leading dimensions, last dimension]: as they are, or bf16 and f32 as each other.
  // Launches only.
  virtual bool makes() const { return false; }
  virtual Status make(const StoredTensor&, std::int64_t, std::int64_t, const TensorView&,
                      Stream&) const {
    return Status::error(Code::kInternal, "this source of weights reads; it makes none");
  }
};

// A tensor that was asked for and found as asked. Lives as long as its Weights.
struct HostTensor {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<std::int64_t> shape;
  const StoredTensor* stored = nullptr;
  const TensorSource* source = nullptr;

  std::int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  std::int64_t rows() const;  // product of all dimensions but the last
};

class Weights {
 public:
  // Reads the header of every shard. Refuses an index that names a missing file, a tensor that is
  // not in the named file, and a shard with a tensor that the index does not know or places
  // elsewhere.
  static Result<Weights> open(const std::string& directory);
  explicit Weights(std::unique_ptr<const TensorSource> source);
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

  // The tensor as it is stored, or null. Nothing is taken.
  const StoredTensor* find(std::string_view name) const;
  // What tensors that find() or visit() gave are read from.
  const TensorSource& source() const;

  // The tensor, which nobody has taken yet and which has one of the accepted types and this shape.
  Result<HostTensor> take(std::string_view name, std::initializer_list<DType> accepted,
                          const std::vector<std::int64_t>& shape);

  // Ok when every tensor was taken or starts with one of the prefixes (parts of a checkpoint that
  // the model does not use). Otherwise names the first leftovers.
  Status finish(std::span<const std::string_view> skipped_prefixes) const;

  // As if nobody had taken anything yet.
  void take_back();

  std::int64_t bytes_taken() const;
  // Bytes of all tensors that do not start with one of the prefixes.
  std::int64_t bytes_wanted(std::span<const std::string_view> skipped_prefixes) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tenon
