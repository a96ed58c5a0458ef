// Making a mailbox: one mapping, one set of state words, one label; taking the mappings away for a
// while.
#include "tenon/comm/channel.h"

#include <algorithm>
#include <iterator>

#include "tenon/comm/communicator.h"
#include "tenon/comm/messages.h"
#include "tenon/comm/state.h"

namespace tenon {

namespace {

Status zero(const Buffer& words) {
  TENON_ASSIGN(Stream stream, Stream::create(words.device()));
  TENON_TRY(stream.fill(words.data(), 0, words.bytes()));
  return stream.synchronize();
}

Result<Buffer> zeroed_words(Device device) {
  TENON_ASSIGN(Buffer words, Buffer::allocate(device, kStateWords * sizeof(std::uint32_t)));
  TENON_TRY(zero(words));
  return words;
}

}  // namespace

const ChannelView& Channel::view() const {
  static const ChannelView none;
  return impl_ ? impl_->view : none;
}

Status Channel::ready() const {
  if (impl_ == nullptr || impl_->mapping != nullptr) return Status::ok();
  const Communicator::State& state = *impl_->state;
  TENON_TRY(state.awake(), "channel \"" + impl_->label + "\"");
  if (!state.transport->can().peer_pointers) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       "channel \"" + impl_->label +
                           "\" was not resumed: another rank had destroyed its mailbox before");
}

Device Channel::device() const { return impl_ ? impl_->state->device : Device{}; }
std::string_view Channel::label() const { return impl_ ? std::string_view(impl_->label) : ""; }

Result<Channel> Communicator::make_channel(std::size_t bytes, std::string_view label) {
  const std::string purpose = "mailbox " + std::string(label);
  TENON_TRY(state_->healthy(), purpose);
  TENON_TRY(state_->awake(), purpose);
  state_->free_discarded();
  // The size travels in the label of the exchange: different sizes are found out and named.
  const std::string call = purpose + " of " + std::to_string(bytes) + " bytes";
  const auto make = [&]() -> Result<Channel> {
    auto held = std::make_shared<Channel::Impl>();
    held->label = label;
    held->state = state_;
    auto words = zeroed_words(device());
    TENON_TRY(tenon::agree(*state_->bootstrap, words.status(), call, deadline()));
    held->words = *std::move(words);
    held->view = state_->bare_team();
    held->view.fault = &state_->control(rank()).kernel_fault;
    held->view.bytes = bytes;
    held->view.state = held->words.as<std::uint32_t>();
    TENON_TRY(held->map(call));
    {
      std::lock_guard lock(state_->mutex);
      held->view.channel = static_cast<std::uint32_t>(state_->labels.size());
      state_->labels.emplace_back(label);
      state_->channels.push_back(held);
    }
    return Channel(std::move(held));
  };
  auto made = make();
  if (!made) return state_->finish(made.status()).with(purpose);
  return made;
}

Channel::Impl::~Impl() { state->discard(std::move(mapping), std::move(words)); }

Status Channel::Impl::map(const std::string& purpose) {
  if (!state->transport->can().peer_pointers) return Status::ok();
  TENON_ASSIGN(mapping, state->transport->map(MemoryKind::kDevice,
                                              std::max<std::size_t>(view.bytes, 1), 0xff, purpose));
  for (int peer = 0; peer < view.size; ++peer) view.base[peer] = mapping->base[peer];
  return Status::ok();
}

void Channel::Impl::unmap() {
  mapping.reset();
  std::fill(std::begin(view.base), std::end(view.base), nullptr);
}

// --- suspend and resume
// ---------------------------------------------------------------------------

Status Communicator::State::awake() const {
  if (!suspended) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       "the communicator is suspended; call resume() on every rank first");
}

bool Communicator::suspended() const { return state_->suspended; }

Status Communicator::suspend() {
  TENON_TRY(state_->healthy(), "suspend");
  // When all are here, all streams are idle and nobody's kernel uses what goes away.
  TENON_TRY(state_->agree(state_->awake(), "suspend", deadline()));
  state_->free_discarded();
  state_->suspended = true;
  for (const auto& channel : state_->live_channels())
    if (channel != nullptr) channel->unmap();
  // When all have left, the memory is free.
  return state_->agree(Status::ok(), "suspended", deadline());
}

Status Communicator::resume() {
  TENON_TRY(state_->healthy(), "resume");
  if (!state_->suspended)
    return Status::error(Code::kInvalidArgument, "resume: the communicator is not suspended");
  const auto channels = state_->live_channels();
  // A mailbox that some rank has destroyed meanwhile can serve nobody any more.
  std::vector<std::int32_t> alive;
  alive.reserve(channels.size());
  for (const auto& channel : channels) alive.push_back(channel == nullptr ? 0 : 1);
  TENON_TRY(agree_min(alive), "resume");
  const auto map_all = [&]() -> Status {
    Status zeroed;
    for (std::size_t i = 0; i < channels.size(); ++i) {
      if (alive[i] == 0) continue;
      TENON_TRY(channels[i]->map("resume mailbox " + channels[i]->label));
      if (zeroed) zeroed = zero(channels[i]->words);
    }
    return tenon::agree(*state_->bootstrap, zeroed, "resume", deadline());
  };
  Status mapped = map_all();
  state_->suspended = !mapped;
  if (mapped) return mapped;
  for (const auto& channel : channels)
    if (channel != nullptr) channel->unmap();
  return state_->finish(mapped).with("resume");
}

std::vector<std::shared_ptr<Channel::Impl>> Communicator::State::live_channels() const {
  std::lock_guard lock(mutex);
  std::vector<std::shared_ptr<Channel::Impl>> found;
  for (const auto& channel : channels) found.push_back(channel.lock());
  return found;
}

}  // namespace tenon
