// Making a mailbox: one mapping, one set of state words, one label.
#include "tenon/comm/mailbox.h"

#include <algorithm>

#include "tenon/comm/communicator.h"
#include "tenon/comm/state.h"
#include "tenon/comm/words.h"

namespace tenon {

namespace {

Result<Buffer> zeroed_words(Device device) {
  TENON_ASSIGN(Buffer words, Buffer::allocate(device, kStateWords * sizeof(std::uint32_t)));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  TENON_TRY(stream.fill(words.data(), 0, words.bytes()));
  TENON_TRY(stream.synchronize());
  return words;
}

}  // namespace

struct Mailbox::Held {
  std::shared_ptr<Communicator::State> state;  // the abort words and the fault record
  std::shared_ptr<Mapping> mapping;
  Buffer words;
  std::string label;
  TeamView team;
};

const TeamView& Mailbox::team() const {
  static const TeamView none;
  return held_ ? held_->team : none;
}

std::string_view Mailbox::label() const { return held_ ? std::string_view(held_->label) : ""; }

Result<Mailbox> Communicator::mailbox(std::size_t bytes, std::string_view label) {
  const std::string purpose = "mailbox " + std::string(label);
  TENON_TRY(health(), purpose);
  // The size travels in the label of the exchange: different sizes are found out and named.
  const std::string call = purpose + " of " + std::to_string(bytes) + " bytes";
  const auto make = [&]() -> Result<Mailbox> {
    auto held = std::make_shared<Mailbox::Held>();
    held->label = label;
    auto words = zeroed_words(device());
    TENON_TRY(tenon::agree(*state_->bootstrap, words.status(), call, deadline()));
    held->words = *std::move(words);
    held->team = state_->bare_team();
    held->team.bytes = bytes;
    held->team.state = held->words.as<std::uint32_t>();
    if (can().peer_pointers) {
      TENON_ASSIGN(held->mapping, state_->transport->map(
                                      Place::kDevice, std::max<std::size_t>(bytes, 1), 0xff, call));
      for (int peer = 0; peer < size(); ++peer) held->team.base[peer] = held->mapping->base[peer];
    }
    held->state = state_;
    {
      std::lock_guard lock(state_->mutex);
      held->team.channel = static_cast<std::uint32_t>(state_->labels.size());
      state_->labels.emplace_back(label);
    }
    return Mailbox(std::move(held));
  };
  auto made = make();
  if (!made) return state_->finish(made.status()).with(purpose);
  return made;
}

}  // namespace tenon
