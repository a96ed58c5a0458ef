#include "tenon/models/shard.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "tenon/core/fp8.h"
#include "tenon/core/guard.h"
#include "tenon/core/thread.h"

namespace tenon {
namespace {

constexpr std::int64_t kBlock = 128;  // fp8 weights carry one scale per 128 × 128 elements
constexpr std::int64_t kBytesPerThread = 4 << 20;             // less is not worth a thread
constexpr std::size_t kStagingBytes = std::size_t{64} << 20;  // of each of the two

std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

std::string describe(const Range& range) {
  std::string text = std::to_string(range.begin);
  text.append(" to ").append(std::to_string(range.end()));
  return text;
}

// Element of any stored float type as f32; `from` has no alignment.
float load_float(const std::byte* from, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return dtype == DType::kF16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

// Copies `count` elements from the element `first` on. The types are equal, `as` is f32, or f32 is
// rounded to bf16.
void copy_elements(const HostTensor& from, std::int64_t first, std::size_t count, DType as,
                   std::byte* to) {
  if (from.dtype == as) return from.read(first, count, to);
  std::vector<std::byte> stored(count * size_of(from.dtype));
  from.read(first, count, stored.data());
  const bool to_f32 = as == DType::kF32;
  TENON_CHECK(to_f32 || (from.dtype == DType::kF32 && as == DType::kBF16));
  for (std::size_t i = 0; i < count; ++i) {
    const float value = load_float(stored.data() + i * size_of(from.dtype), from.dtype);
    const bf16 rounded = to_bf16(value);
    std::memcpy(to + i * size_of(as), to_f32 ? static_cast<const void*>(&value) : &rounded,
                size_of(as));
  }
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
                         Stream& stream, Progress progress)
    : weights_(std::move(weights)),
      skipped_prefixes_(std::move(skipped_prefixes)),
      device_(stream.device()),
      stream_(&stream),
      progress_(std::move(progress)),
      total_bytes_(weights_.bytes_wanted(skipped_prefixes_)) {}

ShardLoader::ShardLoader(Weights weights, std::vector<std::string_view> skipped_prefixes,
                         Device device)
    : weights_(std::move(weights)),
      skipped_prefixes_(std::move(skipped_prefixes)),
      device_(device) {}

ShardLoader::~ShardLoader() {
  if (stream_ != nullptr) static_cast<void>(stream_->synchronize());
}

Status ShardLoader::finish() {
  TENON_TRY(weights_.finish(skipped_prefixes_));
  return stream_ == nullptr ? Status::ok() : stream_->synchronize();
}

Result<HostTensor> ShardLoader::take(std::string_view name, std::initializer_list<DType> accepted,
                                     const std::vector<std::int64_t>& shape) {
  TENON_ASSIGN(HostTensor tensor, weights_.take(name, accepted, shape));
  if (progress_) progress_(weights_.bytes_taken(), total_bytes_);
  return tensor;
}

// Rows [begin, end) of the stack that the pieces are, the first of them to `to`. Rows that lie one
// behind the other are copied together.
void ShardLoader::copy_rows(std::span<const Piece> pieces, DType as, std::int64_t begin,
                            std::int64_t end, std::byte* to) {
  std::int64_t above = 0;  // rows of the pieces before
  for (const auto& [from, rows, columns] : pieces) {
    const std::int64_t first = std::max(begin, above), last = std::min(end, above + rows.count);
    const std::int64_t step = columns.count == from->columns() ? last - first : 1;
    for (std::int64_t row = first; row < last; row += step)
      copy_elements(*from, (rows.begin + row - above) * from->columns() + columns.begin,
                    static_cast<std::size_t>(columns.count * step), as,
                    to + static_cast<std::size_t>((row - begin) * columns.count) * size_of(as));
    above += rows.count;
  }
}

// Some rows of the stack that the pieces are one below the other; all have one width. The first of
// them goes to `to`. Large ones by all cores.
Status ShardLoader::copy_slices(std::span<const Piece> pieces, DType as, Range taken,
                                std::byte* to) {
  const std::int64_t rows = taken.count;
  if (rows == 0) return Status::ok();
  const std::int64_t row_bytes =
      pieces.front().columns.count * static_cast<std::int64_t>(size_of(as));
  const std::int64_t bytes = rows * row_bytes;
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  const std::int64_t parts =
      std::max<std::int64_t>(1, std::min({cores, bytes / kBytesPerThread, rows}));
  std::vector<Status> ended(static_cast<std::size_t>(parts));
  {
    std::vector<Thread> helpers;                              // joined at the end of the block
    for (std::int64_t part = parts - 1; part >= 0; --part) {  // part 0 by this thread
      const auto work = [=, &ended] {
        ended[static_cast<std::size_t>(part)] = guarded([&] {  // a copy that converts needs memory
          const std::int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
          copy_rows(pieces, as, taken.begin + begin, taken.begin + end, to + begin * row_bytes);
          return Status::ok();
        });
      };
      if (part > 0) {
        if (auto helper = start_thread("load", work)) {
          helpers.push_back(*std::move(helper));
          continue;
        }
      }
      work();
    }
  }
  for (const Status& each : ended) TENON_TRY(each);
  return Status::ok();
}

// The same on the device.
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

std::int64_t ShardLoader::rows_of(std::span<const Piece> pieces) {
  std::int64_t rows = 0;
  for (const Piece& each : pieces) rows += each.rows.count;
  return rows;
}

Result<TensorView> ShardLoader::upload(std::span<const Piece> pieces, DType as,
                                       std::initializer_list<std::int64_t> shape) {
  TENON_ASSIGN(const TensorView tensor, allocate(as, shape));
  std::int64_t elements = 0;
  for (const Piece& piece : pieces) elements += piece.rows.count * piece.columns.count;
  TENON_CHECK(elements == tensor.size());
  if (only_counts()) return tensor;
  if (is_host(tensor.device.target)) {
    TENON_TRY(copy_slices(pieces, as, {0, rows_of(pieces)}, tensor.as<std::byte>()));
    return tensor;
  }
  if (!pieces.empty() && pieces.front().from->source->makes()) {
    TENON_TRY(make_slices(pieces, tensor, *stream_));
    return tensor;
  }
  TENON_TRY(stream_slices(pieces, tensor));
  return tensor;
}

// Rows of files to a device: as many as fit are read by all cores into pinned memory while those
// before are on their way.
Status ShardLoader::stream_slices(std::span<const Piece> pieces, const TensorView& to) {
  const std::int64_t rows = rows_of(pieces);
  if (rows == 0 || to.bytes() == 0) return Status::ok();
  const std::size_t row_bytes = to.bytes() / static_cast<std::size_t>(rows);
  const auto most = static_cast<std::int64_t>(std::max<std::size_t>(kStagingBytes / row_bytes, 1));
  for (std::int64_t row = 0; row < rows; row += most) {
    const Range taken{row, std::min(most, rows - row)};
    const std::size_t bytes = static_cast<std::size_t>(taken.count) * row_bytes;
    TENON_ASSIGN(const auto staging, next_staging(bytes));
    TENON_TRY(copy_slices(pieces, to.dtype, taken, staging.data()));
    TENON_TRY(stream_->copy(to.as<std::byte>() + static_cast<std::size_t>(row) * row_bytes,
                            staging.data(), bytes));
    TENON_TRY(staging_[next_staging_].sent->record(*stream_));
    next_staging_ = 1 - next_staging_;
  }
  return Status::ok();
}

// Pinned memory that nothing is copied from any more, of at least so many bytes.
Result<std::span<std::byte>> ShardLoader::next_staging(std::size_t least_bytes) {
  Staging& staging = staging_[next_staging_];
  if (!staging.sent) {
    TENON_ASSIGN(staging.sent, Event::create(device_));
  }
  for (;;) {
    TENON_ASSIGN(const bool sent, staging.sent->has_happened());
    if (sent) break;
    std::this_thread::yield();
  }
  if (staging.memory.bytes().size() < least_bytes) {
    const std::size_t bytes = std::max(least_bytes, kStagingBytes);
    TENON_ASSIGN(staging.memory, HostBuffer::allocate(device_, bytes));
  }
  return staging.memory.bytes();
}

Result<bool> ShardLoader::skip_copy(std::string_view name, std::string_view of, Range rows) {
  const StoredTensor *copy = weights_.find(name), *original = weights_.find(of);
  if (copy == nullptr || original == nullptr || copy->type != original->type ||
      copy->shape != original->shape || copy->shape.empty() || !copy->dtype)
    return false;
  const std::size_t height = static_cast<std::size_t>(copy->shape.front());
  if (height == 0 || rows.end() > copy->shape.front()) return false;
  const std::size_t row_bytes = copy->bytes / height;
  const std::size_t begin = static_cast<std::size_t>(rows.begin) * row_bytes;
  std::vector<std::byte> row(row_bytes), other(row_bytes);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::size_t at = begin + static_cast<std::size_t>(i) * row_bytes;
    weights_.read(*copy, at, row_bytes, row.data());
    weights_.read(*original, at, row_bytes, other.data());
    if (row != other) return false;
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
