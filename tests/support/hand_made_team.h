// A team without a communicator: mailbox regions, state, abort words and fault records on the heap,
// TeamViews filled in by hand. For tests that look into the memory of a protocol or break it.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"

namespace tenon::test {

class HandMadeTeam {
 public:
  HandMadeTeam(int size, std::size_t bytes, std::uint64_t deadline_ns, int max_blocks = 1)
      : ranks_(static_cast<std::size_t>(size)) {
    for (Rank& rank : ranks_) {
      rank.region.reset(
          static_cast<std::byte*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)));
      TENON_CHECK(rank.region != nullptr);
      std::memset(rank.region.get(), 0xff, bytes);
      rank.state.resize(kStateWords);
    }
    for (int r = 0; r < size; ++r) {
      ChannelView& view = rank(r).view;
      view.rank = r;
      view.size = size;
      view.max_blocks = max_blocks;
      view.bytes = bytes;
      view.state = rank(r).state.data();
      view.fault = &rank(r).fault;
      view.deadline_ns = deadline_ns;
      for (int peer = 0; peer < size; ++peer) {
        view.base[peer] = rank(peer).region.get();
        view.abort_word[peer] = &rank(peer).abort_word;
      }
    }
  }

  const ChannelView& view(int of) const { return ranks_[static_cast<std::size_t>(of)].view; }
  const FaultRecord& fault(int of) const { return ranks_[static_cast<std::size_t>(of)].fault; }

  // Whether a rank's region holds nothing: what a sound protocol leaves behind.
  bool is_empty(int of) const {
    const ChannelView& its = view(of);
    for (std::size_t i = 0; i < its.bytes; ++i)
      if (its.base[of][i] != std::byte{0xff}) return false;
    return true;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  struct Rank {
    std::unique_ptr<std::byte, Free> region;
    std::vector<std::uint32_t> state;
    std::uint32_t abort_word = 0;
    FaultRecord fault{};
    ChannelView view;
  };
  Rank& rank(int of) { return ranks_[static_cast<std::size_t>(of)]; }
  std::vector<Rank> ranks_;
};

}  // namespace tenon::test
