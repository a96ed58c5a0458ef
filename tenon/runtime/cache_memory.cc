#include "tenon/runtime/cache_memory.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "tenon/runtime/cache.h"
#include "tenon/runtime/memory_plan.h"
#include "tenon/runtime/scheduler.h"

namespace tenon {
namespace {

using Room = CacheMemory::Room;
using Per = CacheSpec::Per;

double bytes_of(const CacheLayout& layout, double blocks, double sequences) {
  return static_cast<double>(layout.block_bytes()) * blocks +
         static_cast<double>(layout.sequence_bytes()) * sequences;
}

double wanted_bytes(const CacheLayout& layout, const Room& room) {
  return bytes_of(layout, room.blocks(), room.slots());
}

Status no_room(const Room& room, double wanted, const std::string& found,
               const std::string& accepted) {
  std::string asked = "max_context " + std::to_string(room.max_context) + " with max_batch " +
                      std::to_string(room.max_batch);
  if (room.cache_tokens > 0) asked += ", cache_tokens " + std::to_string(room.cache_tokens);
  if (room.prefix_states > 0) asked += ", prefix_states " + std::to_string(room.prefix_states);
  return Status::error(Code::kOutOfMemory, asked + " asks for " + memory_text(wanted) +
                                               " of caches on each rank, " + found +
                                               "; accepted are " + accepted);
}

// What would fit into `has` bytes, each with the rest as it was asked for.
std::string accepted_in(double has, const CacheLayout& layout, const Room& room) {
  std::string accepted;
  const auto add = [&](const std::string& what, double most, double unit) {
    if (most < 1) return;
    accepted += (accepted.empty() ? "" : ", or ") + what + " of at most " +
                std::to_string(static_cast<std::int64_t>(most) * static_cast<std::int64_t>(unit));
  };
  const auto block = static_cast<double>(layout.block_bytes());
  const double for_blocks = has - bytes_of(layout, 0, room.slots());
  const double most_blocks = block > 0 ? for_blocks / block : 0;
  if (room.cache_tokens > 0) {
    add("cache_tokens", most_blocks, kBlockTokens);
  } else {
    add("contexts", most_blocks / room.max_batch, kBlockTokens);
    const double each = bytes_of(layout, Scheduler::blocks_per_sequence(room.max_context), 1);
    add("batches", (has - bytes_of(layout, 0, room.prefix_states)) / each, 1);
  }
  if (room.prefix_states > 0) {
    const double left = has - bytes_of(layout, room.blocks(), room.max_batch);
    add("prefix_states", left / static_cast<double>(layout.sequence_bytes()), 1);
  }
  return accepted.empty() ? "smaller contexts, batches and prefix_states together" : accepted;
}

// Host memory is promised before it is there: caches that cannot fit are refused, not touched.
Status check_bytes(const CacheLayout& layout, const Room& room, Device device) {
  TENON_ASSIGN(const DeviceProperties found, properties(device));
  const double has = static_cast<double>(found.total_bytes) / room.sharers;
  if (wanted_bytes(layout, room) <= has) return Status::ok();
  return no_room(room, wanted_bytes(layout, room), "which has " + memory_text(has),
                 accepted_in(has, layout, room));
}

}  // namespace

Status CacheMemory::check_left(const CacheLayout& layout, const Room& room, std::int64_t left) {
  const double wanted = wanted_bytes(layout, room), has = static_cast<double>(left);
  if (wanted <= has) return Status::ok();
  return no_room(room, wanted, "which has " + memory_text(has) + " left beside the model",
                 accepted_in(has, layout, room));
}

Result<int> CacheMemory::blocks_in(const CacheLayout& layout, const Room& room, std::int64_t left) {
  Room least = room;
  if (room.fits_context) least.cache_tokens = kBlockTokens;
  TENON_TRY(check_left(layout, least, left));
  const std::int64_t block = layout.block_bytes();
  if (block == 0) return room.blocks();
  constexpr std::int64_t kMostBlocks = INT32_MAX / kBlockTokens - 1;  // places are int32
  const std::int64_t for_blocks = left - layout.sequence_bytes() * room.slots();
  return static_cast<int>(std::min(for_blocks / block, kMostBlocks));
}

Result<std::int64_t> agree_on_cache_tokens(const Result<int>& blocks, Communicator& comm) {
  TENON_TRY(comm.agree(blocks.status(), "caches"));
  std::array<std::int32_t, 1> least{*blocks};
  TENON_TRY(comm.agree_min(least));
  return std::int64_t{least[0]} * kBlockTokens;
}

int CacheMemory::Room::blocks() const {
  if (cache_tokens > 0) return static_cast<int>((cache_tokens + kBlockTokens - 1) / kBlockTokens);
  return max_batch * Scheduler::blocks_per_sequence(max_context);
}

int CacheMemory::Room::context() const {
  return fits_context ? std::min(max_context, blocks() * kBlockTokens) : max_context;
}

Result<CacheMemory> CacheMemory::allocate(const CacheLayout& layout, const Room& room,
                                          Stream& stream) {
  if (layout.block_tokens != kBlockTokens)
    return Status::error(Code::kInternal, "the model wants cache blocks of " +
                                              std::to_string(layout.block_tokens) +
                                              " tokens; the engine has blocks of 64");
  TENON_TRY(check_bytes(layout, room, stream.device()));
  CacheMemory made;
  made.layout_ = layout;
  double had = 0;
  for (const CacheSpec& spec : layout.caches) {
    const int parts = spec.per == Per::kBlock ? room.blocks() : room.slots();
    const TensorView shape = spec.tensor(nullptr, stream.device(), parts);
    auto allocated = Buffer::allocate(stream.device(), shape.bytes());
    if (allocated.status().code() == Code::kOutOfMemory)
      return no_room(room, wanted_bytes(layout, room),
                     "of which " + memory_text(had) + " could be had",
                     "smaller contexts and batches");
    TENON_ASSIGN(Buffer memory, std::move(allocated), "allocate cache \"" + spec.name + "\"");
    had += static_cast<double>(memory.bytes());
    // Zero, so that nothing ever reads what was never written.
    TENON_TRY(stream.fill(memory.data(), 0, memory.bytes()));
    made.views_.push_back(spec.tensor(memory.data(), stream.device(), parts));
    made.memory_.push_back(std::move(memory));
  }
  return made;
}

std::int64_t CacheMemory::bytes() const {
  std::int64_t bytes = 0;
  for (const Buffer& each : memory_) bytes += static_cast<std::int64_t>(each.bytes());
  return bytes;
}

Status CacheMemory::fill(Stream& stream) const {
  constexpr std::uint8_t kByte = 0x3c;
  for (const Buffer& each : memory_) TENON_TRY(stream.fill(each.data(), kByte, each.bytes()));
  return Status::ok();
}

Status CacheMemory::clear(const HeldCaches& held, Stream& stream) const {
  for (std::size_t i = 0; i < views_.size(); ++i) {
    const auto bytes = static_cast<std::size_t>(layout_.caches[i].part_bytes());
    auto* memory = views_[i].as<std::byte>();
    const std::span<const std::int32_t> parts =
        layout_.caches[i].per == Per::kBlock ? held.blocks : std::span(&held.state_slot, 1);
    for (const std::int32_t part : parts)
      TENON_TRY(stream.fill(memory + static_cast<std::size_t>(part) * bytes, 0, bytes));
  }
  return Status::ok();
}

}  // namespace tenon
