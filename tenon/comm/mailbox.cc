// Making a mailbox: one mapping, one set of state words, one label; taking the mappings away for a
// while.
#include "tenon/comm/mailbox.h"

#include <algorithm>
#include <iterator>

#include "tenon/comm/communicator.h"
#include "tenon/comm/state.h"
#include "tenon/comm/words.h"

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

const TeamView& Mailbox::team() const {
  static const TeamView none;
  return held_ ? held_->team : none;
}

Status Mailbox::ready() const {
  if (held_ == nullptr || held_->mapping != nullptr) return Status::ok();
  const Communicator::State& state = *held_->state;
  TENON_TRY(state.awake(), "channel \"" + held_->label + "\"");
  if (!state.transport->can().peer_pointers) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       "channel \"" + held_->label +
                           "\" was not resumed: another rank had destroyed its mailbox before");
}

Device Mailbox::device() const { return held_ ? held_->state->device : Device{}; }
std::string_view Mailbox::label() const { return held_ ? std::string_view(held_->label) : ""; }

Result<Mailbox> Communicator::mailbox(std::size_t bytes, std::string_view label) {
  const std::string purpose = "mailbox " + std::string(label);
  TENON_TRY(health(), purpose);
  TENON_TRY(state_->awake(), purpose);
  // The size travels in the label of the exchange: different sizes are found out and named.
  const std::string call = purpose + " of " + std::to_string(bytes) + " bytes";
  const auto make = [&]() -> Result<Mailbox> {
    auto held = std::make_shared<Mailbox::Held>();
    held->label = label;
    held->state = state_;
    auto words = zeroed_words(device());
    TENON_TRY(tenon::agree(*state_->bootstrap, words.status(), call, deadline()));
    held->words = *std::move(words);
    held->team = state_->bare_team();
    held->team.bytes = bytes;
    held->team.state = held->words.as<std::uint32_t>();
    TENON_TRY(held->map(call));
    {
      std::lock_guard lock(state_->mutex);
      held->team.channel = static_cast<std::uint32_t>(state_->labels.size());
      state_->labels.emplace_back(label);
      state_->channels.push_back(held);
    }
    return Mailbox(std::move(held));
  };
  auto made = make();
  if (!made) return state_->finish(made.status()).with(purpose);
  return made;
}

Status Mailbox::Held::map(const std::string& purpose) {
  if (!state->transport->can().peer_pointers) return Status::ok();
  TENON_ASSIGN(mapping, state->transport->map(Place::kDevice, std::max<std::size_t>(team.bytes, 1),
                                              0xff, purpose));
  for (int peer = 0; peer < team.size; ++peer) team.base[peer] = mapping->base[peer];
  return Status::ok();
}

void Mailbox::Held::unmap() {
  mapping.reset();
  std::fill(std::begin(team.base), std::end(team.base), nullptr);
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
  TENON_TRY(health(), "suspend");
  // When all are here, all streams are idle and nobody's kernel uses what goes away.
  TENON_TRY(
      state_->finish(tenon::agree(*state_->bootstrap, state_->awake(), "suspend", deadline())));
  state_->suspended = true;
  for (const auto& channel : state_->live_channels())
    if (channel != nullptr) channel->unmap();
  // When all have left, the memory is free.
  return state_->finish(tenon::agree(*state_->bootstrap, Status::ok(), "suspended", deadline()));
}

Status Communicator::resume() {
  TENON_TRY(health(), "resume");
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

std::vector<std::shared_ptr<Mailbox::Held>> Communicator::State::live_channels() const {
  std::lock_guard lock(mutex);
  std::vector<std::shared_ptr<Mailbox::Held>> found;
  for (const auto& channel : channels) found.push_back(channel.lock());
  return found;
}

}  // namespace tenon
