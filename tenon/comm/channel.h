// The only peer-visible memory: one region per rank with the same layout everywhere, so that a
// peer's slot is base[peer] + offset. No buffer of the caller is ever exported or registered.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon {

// One channel: its own region, its own counters, its own label in fault reports. Two streams that
// communicate concurrently need two channels, and a communicator that was told so
// (CommOptions::concurrent_channels). Keeps its communicator's memory alive; must be
// destroyed on every rank, in any order and at any time (Communicator::discard). Made by
// Communicator::make_channel (collective).
class Channel {
 public:
  Channel() = default;
  // For kernels; valid as long as this object, but read it anew for every call: its addresses
  // change when the communicator is suspended and resumed. base[r] is null where there are no peer
  // pointers.
  const ChannelView& view() const;
  // Ok, or why no kernel may be given view() now: the communicator is suspended.
  Status ready() const;
  std::size_t bytes() const { return view().bytes; }
  std::string_view label() const;
  Device device() const;  // of its communicator
  explicit operator bool() const { return impl_ != nullptr; }

 private:
  friend class Communicator;
  struct Impl;
  explicit Channel(std::shared_ptr<Impl> held) : impl_(std::move(held)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace tenon
