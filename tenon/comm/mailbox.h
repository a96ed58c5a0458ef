// The only peer-visible memory: one region per rank with the same layout everywhere, so that a
// peer's slot is base[peer] + offset. No buffer of the caller is ever exported or registered.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "tenon/comm/device.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon {

// One channel: its own region, its own counters, its own label in fault reports. Two streams that
// communicate concurrently need two channels, and a communicator that was told so
// (CommOptions::concurrent_channels). Keeps its communicator's memory alive; must be
// destroyed on every rank, in any order. Made by Communicator::mailbox (collective).
class Mailbox {
 public:
  Mailbox() = default;
  // For kernels; valid as long as this object, but read it anew for every call: its addresses
  // change when the communicator is suspended and resumed. base[r] is null where there are no peer
  // pointers.
  const TeamView& team() const;
  // Ok, or why no kernel may be given team() now: the communicator is suspended.
  Status ready() const;
  std::size_t bytes() const { return team().bytes; }
  std::string_view label() const;
  Device device() const;  // of its communicator
  explicit operator bool() const { return held_ != nullptr; }

 private:
  friend class Communicator;
  struct Held;
  explicit Mailbox(std::shared_ptr<Held> held) : held_(std::move(held)) {}
  std::shared_ptr<Held> held_;
};

}  // namespace tenon
