#include "tenon/models/slice_transfer.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "tenon/core/clock.h"
#include "tenon/core/env.h"
#include "tenon/core/fp8.h"
#include "tenon/core/guard.h"
#include "tenon/models/reader_threads.h"

namespace tenon {
namespace {

using Clock = std::chrono::steady_clock;

// Small enough that readers keep a disk busy and a device's copies overlap with reads, large enough
// that a copy's start costs nothing.
constexpr std::size_t kChunkBytes = std::size_t{2} << 20;
constexpr std::size_t kScratchBytes = std::size_t{512} << 10;  // stays in a core's cache
// A disk wants several at a time even where there are few cores.
constexpr int kLeastReaders = 4, kMostReaders = 16;
constexpr std::chrono::microseconds kSentPoll{50};

// Bytes that this process had fetched from disks so far.
std::int64_t disk_bytes_so_far() {
  constexpr std::int64_t kUnit = 512;
  struct rusage used {};
  return ::getrusage(RUSAGE_SELF, &used) == 0 ? kUnit * used.ru_inblock : 0;
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

// The types are equal, `as` is f32, or f32 is rounded to bf16.
void convert(const std::byte* from, DType dtype, std::int64_t count, DType as, std::byte* to) {
  const std::size_t size = size_of(dtype), wide = size_of(as);
  const auto elements = static_cast<std::size_t>(count);
  if (dtype == as) {
    std::memcpy(to, from, elements * size);
    return;
  }
  for (std::size_t i = 0; i < elements; ++i) {
    const float value = load_float(from + i * size, dtype);
    const bf16 rounded = to_bf16(value);
    std::memcpy(to + i * wide, as == DType::kF32 ? static_cast<const void*>(&value) : &rounded,
                wide);
  }
}

std::string text_of(const TransferTimes& times, double seconds) {
  std::array<char, 240> text{};
  std::snprintf(
      text.data(), text.size(),
      "weights: %.3f GB in %.3f s, %.3f GB of this process from a disk; %d readers: %.3f s "
      "reading, %.3f s preparing, %.3f s waiting for copies",
      1e-9 * static_cast<double>(times.bytes), seconds,
      1e-9 * static_cast<double>(times.disk_bytes), times.readers, times.read_s, times.prepare_s,
      times.send_s);
  return text.data();
}

// Pinned memory, and the last copy out of it.
struct Staging {
  HostBuffer memory;
  std::optional<Event> sent;
};

}  // namespace

// What all readers of a run share.
struct SliceTransfer::Run {
  Run(const SliceTransfer& transfer, Stream& on) : all(transfer), stream(on) {}
  const SliceTransfer& all;
  Stream& stream;
  std::size_t readers = 1;
  std::size_t most_bytes = 0;  // of a chunk
  std::mutex sending;          // a stream is used by one thread at a time
  std::atomic<std::size_t> next{0};
  std::atomic<std::int64_t> done_bytes{0};
  std::atomic<bool> failed{false};
};

// One thread of a run. While one of its chunks is on its way to the device it reads the next.
class SliceTransfer::Reader {
 public:
  Reader(Run& run, const TensorSource& source)
      : run_(run), source_(source.reader()), gap_bytes_(source_->cheap_gap_bytes()) {}

  // Chunks as long as there are any; after_each() behind every one.
  template <class AfterEach>
  Status bring_all(AfterEach&& after_each) {
    const auto begin = Clock::now();
    const std::vector<Chunk>& chunks = run_.all.chunks_;
    while (!run_.failed) {
      const std::size_t index = run_.next++;
      if (index >= chunks.size()) break;
      if (index + run_.readers < chunks.size()) expect(chunks[index + run_.readers]);
      TENON_TRY(bring(chunks[index]));
      run_.done_bytes += chunks[index].stored_bytes;
      after_each();
    }
    for (Staging& each : staging_) TENON_TRY(wait_for(each));
    busy_s_ = seconds_since(begin);
    return Status::ok();
  }

  void add_to(TransferTimes& times) const {
    times.read_s += read_s_;
    times.send_s += send_s_;
    times.prepare_s += std::max(0.0, busy_s_ - read_s_ - send_s_);
  }

 private:
  std::span<const StoredSlice> slices_of(const Chunk& chunk) const {
    return std::span(run_.all.slices_).subspan(chunk.begin, chunk.end - chunk.begin);
  }

  void expect(const Chunk& chunk) {
    const auto begin = Clock::now();
    for (const StoredSlice& each : slices_of(chunk)) {
      const auto size = static_cast<std::int64_t>(size_of(*each.from->dtype));
      const std::int64_t count = (each.rows - 1) * each.stride + each.columns;
      source_->expect(*each.from, static_cast<std::size_t>(each.first * size),
                      static_cast<std::size_t>(count * size));
    }
    read_s_ += seconds_since(begin);  // a disk that has enough to do lets even this wait
  }

  Status bring(const Chunk& chunk) {
    if (is_host(run_.stream.device().target)) return fill(chunk, chunk.to);
    Staging& staging = staging_[turn_];
    turn_ = 1 - turn_;
    TENON_TRY(make_free(staging));
    TENON_TRY(fill(chunk, staging.memory.bytes().data()));
    const std::lock_guard lock(run_.sending);
    TENON_TRY(run_.stream.copy(chunk.to, staging.memory.bytes().data(), chunk.bytes));
    return staging.sent->record(run_.stream);
  }

  // There is memory, and nothing is copied out of it any more.
  Status make_free(Staging& staging) {
    if (staging.sent) return wait_for(staging);
    const Device device = run_.stream.device();
    TENON_ASSIGN(staging.memory, HostBuffer::allocate(device, run_.most_bytes));
    TENON_ASSIGN(staging.sent, Event::create(device));
    return Status::ok();
  }

  // Event::await() may spin, and cores are wanted for reads.
  Status wait_for(Staging& staging) {
    if (!staging.sent) return Status::ok();
    const auto begin = Clock::now();
    for (;;) {
      TENON_ASSIGN(const bool sent, staging.sent->has_happened());
      if (sent) break;
      std::this_thread::sleep_for(kSentPoll);
    }
    send_s_ += seconds_since(begin);
    return Status::ok();
  }

  Status fill(const Chunk& chunk, std::byte* to) {
    for (const StoredSlice& each : slices_of(chunk)) {
      TENON_TRY(read(each, chunk.as, to));
      to += static_cast<std::size_t>(each.rows * each.columns) * size_of(chunk.as);
    }
    return Status::ok();
  }

  Status read_stored(const StoredTensor& from, std::int64_t first, std::size_t bytes,
                     std::byte* to) {
    const auto begin = Clock::now();
    const Status done =
        source_->read(from, static_cast<std::size_t>(first) * size_of(*from.dtype), bytes, to);
    read_s_ += seconds_since(begin);
    return done;
  }

  Status read(const StoredSlice& slice, DType as, std::byte* to) {
    const DType dtype = *slice.from->dtype;
    const std::size_t size = size_of(dtype);
    const auto columns = static_cast<std::size_t>(slice.columns);
    if (slice.rows == 1) return read_row(*slice.from, slice.first, slice.columns, as, to);
    const std::size_t row_bytes = columns * size;
    const std::size_t step = static_cast<std::size_t>(slice.stride) * size;
    if (step - row_bytes > gap_bytes_ || row_bytes > kScratchBytes) {  // row by row
      for (std::int64_t row = 0; row < slice.rows; ++row, to += columns * size_of(as))
        TENON_TRY(read_row(*slice.from, slice.first + row * slice.stride, slice.columns, as, to));
      return Status::ok();
    }
    const auto most = static_cast<std::int64_t>((kScratchBytes - row_bytes) / step + 1);
    for (std::int64_t row = 0; row < slice.rows; row += most) {
      const std::int64_t rows = std::min(most, slice.rows - row);
      const std::size_t bytes = static_cast<std::size_t>(rows - 1) * step + row_bytes;
      TENON_TRY(read_stored(*slice.from, slice.first + row * slice.stride, bytes, scratch(bytes)));
      for (std::int64_t each = 0; each < rows; ++each, to += columns * size_of(as))
        convert(scratch_.data() + static_cast<std::size_t>(each) * step, dtype, slice.columns, as,
                to);
    }
    return Status::ok();
  }

  Status read_row(const StoredTensor& from, std::int64_t first, std::int64_t count, DType as,
                  std::byte* to) {
    const DType dtype = *from.dtype;
    const std::size_t size = size_of(dtype);
    if (dtype == as) return read_stored(from, first, static_cast<std::size_t>(count) * size, to);
    const auto most = static_cast<std::int64_t>(kScratchBytes / size);
    for (std::int64_t at = 0; at < count; at += most) {
      const std::int64_t part = std::min(most, count - at);
      const std::size_t bytes = static_cast<std::size_t>(part) * size;
      TENON_TRY(read_stored(from, first + at, bytes, scratch(bytes)));
      convert(scratch_.data(), dtype, part, as, to + static_cast<std::size_t>(at) * size_of(as));
    }
    return Status::ok();
  }

  std::byte* scratch(std::size_t bytes) {
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }

  Run& run_;
  const std::unique_ptr<TensorReader> source_;
  const std::size_t gap_bytes_;
  std::vector<std::byte> scratch_;
  std::array<Staging, 2> staging_;
  std::size_t turn_ = 0;
  double read_s_ = 0, send_s_ = 0, busy_s_ = 0;
};

std::string TransferTimes::limit(bool makes) const {
  constexpr std::int64_t kFromDisk = 4;  // a fourth of the bytes: the rest waited for it
  const double all = read_s + prepare_s + send_s, most = std::max({read_s, prepare_s, send_s});
  std::string text = most == send_s                   ? "copies to the device"
                     : most == prepare_s              ? "preparing"
                     : makes                          ? "making them"
                     : disk_bytes > bytes / kFromDisk ? "the disk"
                                                      : "copies out of the page cache";
  const long percent = all > 0 ? std::lround(100 * most / all) : 100;
  return text.append(", ")
      .append(std::to_string(percent))
      .append(" % of the time of ")
      .append(std::to_string(readers))
      .append(readers == 1 ? " reader" : " readers");
}

void SliceTransfer::close(Chunk& chunk) {
  chunk.end = slices_.size();
  if (chunk.bytes > 0) chunks_.push_back(chunk);
  chunk = {chunk.as, chunk.to + chunk.bytes, 0, slices_.size(), slices_.size(), 0};
}

// A slice whose rows fit into a chunk, or that is one row.
void SliceTransfer::append(StoredSlice slice, Chunk& chunk) {
  const auto size = static_cast<std::int64_t>(size_of(chunk.as));
  const auto stored = static_cast<std::int64_t>(size_of(*slice.from->dtype));
  while (slice.rows * slice.columns > 0) {
    const std::int64_t room = static_cast<std::int64_t>(kChunkBytes - chunk.bytes) / size;
    StoredSlice part = slice;
    if (slice.rows == 1) {
      part.columns = std::min(slice.columns, room);
      slice.first += part.columns;
      slice.columns -= part.columns;
    } else {
      part.rows = std::min(slice.rows, room / slice.columns);
      slice.first += part.rows * slice.stride;
      slice.rows -= part.rows;
    }
    const std::int64_t elements = part.rows * part.columns;
    if (elements > 0) slices_.push_back(part);
    chunk.bytes += static_cast<std::size_t>(elements * size);
    chunk.stored_bytes += elements * stored;
    if (slice.rows * slice.columns > 0) close(chunk);
  }
}

void SliceTransfer::add(std::span<const StoredSlice> stacked, DType as, std::byte* to) {
  Chunk chunk{as, to, 0, slices_.size(), slices_.size(), 0};
  for (StoredSlice slice : stacked) {
    const DType dtype = *slice.from->dtype;
    TENON_CHECK(dtype == as || as == DType::kF32 || (dtype == DType::kF32 && as == DType::kBF16));
    stored_bytes_ += slice.rows * slice.columns * static_cast<std::int64_t>(size_of(dtype));
    if (slice.columns == slice.stride) slice.columns *= std::exchange(slice.rows, 1);
    const bool wide = static_cast<std::size_t>(slice.columns) * size_of(as) > kChunkBytes;
    if (slice.rows == 1 || !wide) {
      append(slice, chunk);
      continue;
    }
    for (std::int64_t row = 0; row < slice.rows; ++row)
      append({slice.from, slice.first + row * slice.stride, 1, slice.columns, slice.stride}, chunk);
  }
  close(chunk);
}

Result<TransferTimes> SliceTransfer::run(const TensorSource& source, Stream& stream,
                                         const Progress& progress) {
  // As they lie in the files: disks and what reads ahead like that best.
  std::stable_sort(chunks_.begin(), chunks_.end(), [this](const Chunk& a, const Chunk& b) {
    const auto place = [this](const Chunk& each) {
      const StoredSlice& first = slices_[each.begin];
      return std::pair(first.from->file,
                       first.from->offset +
                           static_cast<std::uint64_t>(first.first) * size_of(*first.from->dtype));
    };
    return place(a) < place(b);
  });
  const auto begin = Clock::now();
  TransferTimes times;
  times.bytes = stored_bytes_;
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  const std::size_t useful = 1 + static_cast<std::size_t>(stored_bytes_) / kChunkBytes;
  Run shared(*this, stream);
  shared.readers =
      std::min(useful, static_cast<std::size_t>(std::clamp(cores, kLeastReaders, kMostReaders)));
  for (const Chunk& each : chunks_) shared.most_bytes = std::max(shared.most_bytes, each.bytes);
  const std::int64_t disk_bytes = disk_bytes_so_far();
  std::vector<std::unique_ptr<Reader>> readers;
  for (std::size_t i = 0; i < shared.readers; ++i)
    readers.push_back(std::make_unique<Reader>(shared, source));
  std::vector<Status> ended(shared.readers);
  times.readers = run_on_threads(static_cast<int>(shared.readers), [&](int at) {
    const auto index = static_cast<std::size_t>(at);
    ended[index] = guarded([&] {
      return readers[index]->bring_all([&] {
        const std::int64_t done = shared.done_bytes;
        if (at == 0 && progress && done < stored_bytes_) progress(done, stored_bytes_);
      });
    });
    if (!ended[index]) shared.failed = true;
  });
  // Also after an error: what is on its way leaves memory of the readers.
  const Status sent = stream.synchronize();
  for (const Status& each : ended) TENON_TRY(each);
  TENON_TRY(sent);
  for (const auto& each : readers) each->add_to(times);
  times.disk_bytes = disk_bytes_so_far() - disk_bytes;
  log(LogLevel::kInfo, text_of(times, seconds_since(begin)));
  chunks_.clear();
  slices_.clear();
  stored_bytes_ = 0;
  return times;
}

}  // namespace tenon
