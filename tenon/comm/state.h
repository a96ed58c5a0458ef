// What a Communicator consists of. Private to this folder.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/fault.h"
#include "tenon/comm/transport/host_wait.h"
#include "tenon/comm/transport/transport.h"

namespace tenon {

// One rank's part of the memory through which failures spread. Peer visible; zero at creation.
struct ControlBlock {
  alignas(64) std::uint32_t abort_word;
  // Two, since a device's atomics and its host's need not see each other: one that kernels claim,
  // one that hosts do. Either may be written, or both.
  alignas(64) FaultRecord kernel_fault;
  alignas(64) FaultRecord host_fault;
  alignas(64) std::uint32_t why_claimed;
  std::uint32_t why_ready;          // 1 (release) when `why` is complete
  char why[500];                    // what Communicator::abort() was given
  alignas(64) std::uint64_t place;  // Communicator::tell_place()
};

// What the copies of a Channel share.
struct Channel::Impl {
  ~Impl();
  std::shared_ptr<Communicator::State> state;  // the abort words and the fault record
  std::shared_ptr<Mapping> mapping;            // null while suspended
  Buffer words;
  std::string label;
  ChannelView view;

  Status map(const std::string& purpose);  // collective
  void unmap();
};

// An all_reduce or all_gather that runs on the host when its stream gets there.
struct HostCollective {
  Communicator::State* state = nullptr;
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  std::size_t bytes = 0;
  std::optional<DType> sum_as;  // empty: gather
};

struct Communicator::State {
  ~State();

  std::shared_ptr<Bootstrap> bootstrap;
  Device device{};
  int max_blocks = 1;
  bool shares_device = false;
  int concurrent_channels = 1;
  std::chrono::milliseconds deadline{};
  std::string transport_name;
  bool vendor_sum = false;
  std::vector<std::string> refusals;
  std::unique_ptr<Transport> transport;
  std::shared_ptr<Mapping> control_mapping;
  int watch_id = -1, question_id = -1;
  std::chrono::milliseconds load_deadline{};
  std::atomic<bool> told_bootstrap{false};  // the bootstrap, of a fault of this rank
  std::vector<Link> links;
  int slowest_link_gbs = 0;  // of all ranks
  std::atomic<bool> suspended{false};

  mutable std::mutex mutex;
  std::vector<std::string> labels;  // of the channels, by number; 0 is the host exchange
  std::vector<std::weak_ptr<Channel::Impl>> channels;  // by number
  const Bootstrap::Loss* loss_seen = nullptr;          // the bootstrap's
  Status first_failure;

  std::vector<std::byte> scratch;       // every rank's chunk, for host sums
  Buffer gathered;                      // the same on the device, where gathers run on streams
  std::deque<HostCollective> recorded;  // of captured graphs: addresses must not move

  // Where ranks are threads of one process, memory of a device is not freed at once: to free it
  // waits for the kernels of every device that can address it, those of peers, which may wait for
  // this rank. All ranks free what they have discarded when they meet.
  struct Discarded {
    std::shared_ptr<Mapping> mapping;
    Buffer memory;
  };
  bool frees_at_meetings = false;
  std::mutex discarded_mutex;
  std::vector<Discarded> discarded;
  void discard(std::shared_ptr<Mapping> mapping, Buffer memory) noexcept;
  void free_discarded();  // where a meeting follows that no rank leaves before all are there

  ControlBlock& control(int of_rank) const;
  std::vector<std::shared_ptr<Channel::Impl>> live_channels() const;  // null: destroyed
  bool may_start_early() const;
  ChannelView bare_team() const;  // no memory: for waits of the host
  void on_loss(const Bootstrap::Loss& loss);
  // The record of that rank's first wait that ended badly, or null while it is not complete.
  const FaultRecord* fault_of(int of_rank) const;
  std::string why_gave_up(int of_rank, int depth) const;
  std::string fault_text(int of_rank, int depth) const;
  std::string fault_sentence(int of_rank, std::string_view ending) const;
  std::string chain_text() const;
  Status health();
  // The same before something collective. A fault of this rank is told to all bootstraps, once:
  // where ranks share no memory nobody else would hear of it.
  Status healthy();
  Status awake() const;  // ok, or that the communicator is suspended
  void abort(std::string_view why);
  // A failure of this rank that has no fault record: what health() says from now on.
  void fail(const Status& status);
  Status given_up();  // health() as a question of the bootstrap
  // As Communicator::agree(). What a rank brought, a timeout say, is no failure of the exchange.
  Status agree(const Status& mine, std::string_view label, WaitBudget budget);
  // Gives up on behalf of everybody if `status` leaves the ranks out of step. Returns it.
  Status finish(Status status);
};

}  // namespace tenon
