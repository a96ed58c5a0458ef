#include "tenon/models/shard.h"

#include <algorithm>
#include <utility>

namespace tenon {
namespace {

constexpr std::int64_t kBlock = 128;  // fp8 weights carry one scale per 128 × 128 elements
constexpr std::size_t kComparedBytes = std::size_t{1} << 20;  // at a time

std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

std::string describe(const Range& range) {
  std::string text = std::to_string(range.begin);
  text.append(" to ").append(std::to_string(range.end()));
  return text;
}

// A matrix [1, out, in] as [out, in].
Matrix first_of(const Matrix& stacked) {
  const auto first = [](const TensorView& all) {
    return view(all.data, all.dtype, all.device, {all.shape[1], all.shape[2]});
  };
  return {first(stacked.weight),
          stacked.scale.data == nullptr ? TensorView{} : first(stacked.scale)};
}

// A range of fp8 elements as a range of scale blocks. A range must begin on a block and end on one,
// or at the end of the tensor.
Result<Range> blocks_of(const Range& range, std::int64_t extent, const std::string& what) {
  const bool whole_end = range.end() % kBlock == 0 || range.end() == extent;
  if (range.begin % kBlock != 0 || !whole_end)
    return Status::error(Code::kUnsupported,
                         what + ": elements " + describe(range) + " of " + std::to_string(extent) +
                             " cut a block of " + std::to_string(kBlock) +
                             " that shares one fp8 scale; slices must start and end on a multiple");
  return Range{range.begin / kBlock, ceil_div(range.count, kBlock)};
}

}  // namespace

Range even_slice(std::int64_t extent, int rank, int size) {
  TENON_CHECK(extent % size == 0);
  return {extent / size * rank, extent / size};
}

Range block_slice(std::int64_t extent, std::int64_t block, int rank, int size) {
  const std::int64_t blocks = ceil_div(extent, block);
  const std::int64_t begin = std::min(extent, blocks * rank / size * block);
  const std::int64_t end = std::min(extent, blocks * (rank + 1) / size * block);
  return {begin, end - begin};
}

ShardLoader::ShardLoader(Weights weights, std::vector<std::string_view> skipped_prefixes,
                         Stream& stream, LoadProgress progress)
    : weights_(std::move(weights)),
      skipped_prefixes_(std::move(skipped_prefixes)),
      device_(stream.device()),
      stream_(&stream),
      progress_(std::move(progress)),
      total_bytes_(weights_.bytes_wanted(skipped_prefixes_)) {
  if (progress_) progress_(0, total_bytes_, {});
}

ShardLoader::ShardLoader(Weights weights, std::vector<std::string_view> skipped_prefixes,
                         Device device)
    : weights_(std::move(weights)),
      skipped_prefixes_(std::move(skipped_prefixes)),
      device_(device) {}

ShardLoader::~ShardLoader() {
  if (stream_ != nullptr) static_cast<void>(stream_->synchronize());
}

// Weights are made on the device instead of read.
bool ShardLoader::makes() const { return !is_host(device_.target) && weights_.source().makes(); }

Status ShardLoader::finish() {
  TENON_TRY(weights_.finish(skipped_prefixes_));
  if (only_counts()) return Status::ok();
  const auto report = [this](std::int64_t done, std::int64_t total) {
    if (progress_) progress_(done, total, {});
  };
  TENON_ASSIGN(const TransferTimes times, transfer_.run(weights_.source(), *stream_, report));
  if (!progress_) return Status::ok();
  if (makes())
    progress_(total_bytes_, total_bytes_, {});
  else
    progress_(times.bytes, times.bytes, times.limit(weights_.source().makes()));
  return Status::ok();
}

Result<HostTensor> ShardLoader::take(std::string_view name, std::initializer_list<DType> accepted,
                                     const std::vector<std::int64_t>& shape) {
  TENON_ASSIGN(HostTensor tensor, weights_.take(name, accepted, shape));
  const std::int64_t taken = weights_.bytes_taken();
  if (progress_ && makes() && taken < total_bytes_) progress_(taken, total_bytes_, {});
  return tensor;
}

// The rows of the pieces, one below the other; launches only.
Status ShardLoader::make_slices(std::span<const Piece> pieces, const TensorView& to,
                                Stream& stream) {
  auto* at = to.as<std::byte>();
  for (const auto& [from, rows, columns] : pieces) {
    const TensorView part = view(at, to.dtype, to.device, {rows.count, columns.count});
    at += part.bytes();
    if (part.bytes() == 0) continue;
    TENON_TRY(from->source->make(*from->stored, rows.begin, columns.begin, part, stream));
  }
  return Status::ok();
}

Result<TensorView> ShardLoader::allocate(DType dtype, std::initializer_list<std::int64_t> shape) {
  TensorView tensor = view(nullptr, dtype, device_, shape);
  device_bytes_ += static_cast<std::int64_t>(tensor.bytes());
  if (only_counts()) {
    tensor.data = nowhere_.next(tensor.bytes());
    return tensor;
  }
  TENON_ASSIGN(Buffer memory, Buffer::allocate(device_, tensor.bytes()));
  tensor.data = memory.data();
  buffers_.push_back(std::move(memory));
  return tensor;
}

Result<TensorView> ShardLoader::upload(std::span<const Piece> pieces, DType as,
                                       std::initializer_list<std::int64_t> shape) {
  TENON_ASSIGN(const TensorView tensor, allocate(as, shape));
  std::int64_t elements = 0;
  for (const Piece& piece : pieces) elements += piece.rows.count * piece.columns.count;
  TENON_CHECK(elements == tensor.size());
  if (only_counts()) return tensor;
  if (makes()) {
    TENON_TRY(make_slices(pieces, tensor, *stream_));
    return tensor;
  }
  std::vector<StoredSlice> slices;
  slices.reserve(pieces.size());
  for (const auto& [from, rows, columns] : pieces)
    slices.push_back({from->stored, rows.begin * from->columns() + columns.begin, rows.count,
                      columns.count, from->columns()});
  transfer_.add(slices, as, tensor.as<std::byte>());
  return tensor;
}

Result<bool> ShardLoader::skip_copy(std::string_view name, std::string_view of, Range rows) {
  const StoredTensor *copy = weights_.find(name), *original = weights_.find(of);
  if (copy == nullptr || original == nullptr || copy->type != original->type ||
      copy->shape != original->shape || copy->shape.empty() || !copy->dtype)
    return false;
  const std::size_t height = static_cast<std::size_t>(copy->shape.front());
  if (height == 0 || rows.end() > copy->shape.front()) return false;
  const std::size_t row_bytes = copy->bytes / height;
  const auto begin = static_cast<std::size_t>(rows.begin) * row_bytes;
  const auto end = static_cast<std::size_t>(rows.end()) * row_bytes;
  const auto reader = weights_.source().reader(), other_reader = weights_.source().reader();
  std::vector<std::byte> some, other;
  for (std::size_t at = begin; at < end; at += some.size()) {
    some.resize(std::min(kComparedBytes, end - at));
    other.resize(some.size());
    TENON_TRY(reader->read(*copy, at, some.size(), some.data()));
    TENON_TRY(other_reader->read(*original, at, other.size(), other.data()));
    if (some != other) return false;
  }
  TENON_TRY(take(name, {*copy->dtype}, copy->shape));
  return true;
}

Result<TensorView> ShardLoader::values(std::span<const float> values,
                                       std::initializer_list<std::int64_t> shape) {
  TENON_ASSIGN(const TensorView tensor, allocate(DType::kF32, shape));
  TENON_CHECK(tensor.bytes() == values.size_bytes());
  if (only_counts()) return tensor;
  TENON_TRY(stream_->copy(tensor.data, values.data(), values.size_bytes()));
  TENON_TRY(stream_->synchronize());
  return tensor;
}

Result<TensorView> ShardLoader::rows(std::string_view name, std::initializer_list<DType> accepted,
                                     const std::vector<std::int64_t>& shape,
                                     const std::vector<Range>& rows, DType as,
                                     std::initializer_list<std::int64_t> result_shape) {
  TENON_ASSIGN(const HostTensor tensor, take(name, accepted, shape));
  std::vector<Piece> pieces;
  pieces.reserve(rows.size());
  for (const Range& each : rows) pieces.push_back({&tensor, each, {0, tensor.columns()}});
  return upload(pieces, as, result_shape);
}

Result<TensorView> ShardLoader::vector(std::string_view name, std::initializer_list<DType> accepted,
                                       std::int64_t length, Range taken, DType as) {
  TENON_ASSIGN(const HostTensor tensor, take(name, accepted, {length}));
  const Piece piece{&tensor, {0, 1}, taken};
  return upload({&piece, 1}, as, {taken.count});
}

// Weights of all parts, and their scales if they are fp8; all must be of one precision.
Status ShardLoader::take_parts(std::span<const LinearPart> parts, std::vector<HostTensor>* weights,
                               std::vector<HostTensor>* scales) {
  for (const LinearPart& part : parts) {
    const std::string name = part.module + ".weight";
    TENON_ASSIGN(HostTensor weight, take(name, {DType::kBF16, DType::kE4M3}, {part.out, part.in}));
    if (!weights->empty() && weights->front().dtype != weight.dtype)
      return Status::error(Code::kUnsupported,
                           "tensor \"" + name + "\" is " + std::string(tenon::name(weight.dtype)) +
                               " but \"" + weights->front().name +
                               "\", with which it is fused, is " +
                               std::string(tenon::name(weights->front().dtype)));
    weights->push_back(std::move(weight));
    if (weights->front().dtype != DType::kE4M3) continue;
    TENON_ASSIGN(HostTensor scale,
                 take(name + "_scale_inv", {DType::kBF16, DType::kF32, DType::kF16},
                      {ceil_div(part.out, kBlock), ceil_div(part.in, kBlock)}));
    scales->push_back(std::move(scale));
  }
  return Status::ok();
}

Result<Matrix> ShardLoader::linear(std::span<const LinearPart> parts, std::int64_t experts) {
  std::vector<HostTensor> weights, scales;  // same indices as parts
  TENON_TRY(take_parts(parts, &weights, &scales));
  std::vector<Piece> weight_pieces, scale_pieces;
  std::int64_t height = 0, scale_height = 0;
  const Range columns = parts.front().columns;
  Range scale_columns;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (const Range& rows : parts[i].rows) {
      weight_pieces.push_back({&weights[i], rows, columns});
      const std::int64_t above = std::exchange(height, height + rows.count);
      if (scales.empty()) continue;
      if (above % kBlock != 0)  // scales and rows would part ways
        return Status::error(Code::kUnsupported,
                             parts[i].module + ": is stacked below " + std::to_string(above) +
                                 " rows of fp8, which is not a multiple of 128");
      TENON_ASSIGN(const Range scale_rows, blocks_of(rows, parts[i].out, weights[i].name));
      TENON_ASSIGN(scale_columns, blocks_of(columns, parts[i].in, weights[i].name));
      scale_pieces.push_back({&scales[i], scale_rows, scale_columns});
      scale_height += scale_rows.count;
    }
  }
  const std::int64_t matrices = std::max<std::int64_t>(1, experts);
  const DType dtype = weights.front().dtype;
  Matrix matrix;
  matrix.weight.dtype = dtype;
  if (height == 0 || columns.count == 0) return matrix;  // this rank has no share
  TENON_ASSIGN(matrix.weight,
               upload(weight_pieces, dtype, {matrices, height / matrices, columns.count}));
  if (!scales.empty()) {
    TENON_ASSIGN(matrix.scale, upload(scale_pieces, DType::kF32,
                                      {matrices, scale_height / matrices, scale_columns.count}));
  }
  return experts > 0 ? matrix : first_of(matrix);
}

Result<Matrix> ShardLoader::fused_experts(std::string_view name,
                                          const std::vector<std::int64_t>& shape, Range experts,
                                          const std::vector<Range>& rows, Range columns) {
  TENON_ASSIGN(const HostTensor tensor, take(name, {DType::kBF16}, shape));
  std::vector<Piece> pieces;
  std::int64_t num_rows = 0;
  for (const Range& each : rows) num_rows += each.count;
  for (std::int64_t expert = experts.begin; expert < experts.end(); ++expert)
    for (const Range& each : rows)
      pieces.push_back({&tensor, {expert * shape[1] + each.begin, each.count}, columns});
  Matrix matrix;
  TENON_ASSIGN(matrix.weight,
               upload(pieces, DType::kBF16, {experts.count, num_rows, columns.count}));
  return matrix;
}

}  // namespace tenon
