// Communicator: ranks that can see each other. create → probe transports → agree on one → map.
// "Collective" means: every rank must call it, in the same order, with the same sizes.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tenon/comm/channel.h"
#include "tenon/comm/partial_rows.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"

namespace tenon {

class Bootstrap;  // comm/bootstrap/bootstrap.h: how ranks find each other
class Fields;     // comm/agreement.h: named values that ranks compare

struct CommOptions {
  int rank = 0, size = 1;
  // But for rank, size and bootstrap, all ranks must ask for the same: a difference is the same
  // error on all of them, which names it.
  std::string transport = "auto";              // or a name of comm/transport/transports.def
  std::chrono::milliseconds deadline{30'000};  // the longest any wait may last, also in kernels
  // The longest wait for a rank that is alive and loads; 0: TENON_LOAD_DEADLINE_MS, half an hour.
  std::chrono::milliseconds load_deadline{0};
  // The most channels of these devices that are in flight at once: of this communicator and of
  // others, one for each stream on which calls may run beside each other, whether eagerly or as
  // branches of a graph. Kernels of two channels that each fill the device may start in another
  // order on another rank, and then wait for each other until the deadline. So each takes its share
  // of the device only, and none starts before the kernel in front of it has ended. With 1, calls
  // of all channels must follow each other on one stream, or be ordered by events. All ranks must
  // agree; 1 to 16.
  int concurrent_channels = 1;
  // Where ranks share a device: no other kernel runs there while theirs wait for each other, so
  // those may fill it. Otherwise they leave most of it free: a rank whose kernel waits would hold
  // multiprocessors that another rank's work in front of its call needs, for a multiprocessor gives
  // a kernel the shared memory that it asks for only when no other kernel is on it.
  bool only_exchanges = false;
  // Null builds one from the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT:
  // the torchrun convention), and a lone rank where size is 1 and no launcher has set them all.
  // Ranks that share an address space take one handle each of local_bootstrap(size).
  std::shared_ptr<Bootstrap> bootstrap;
  // Transport ccl only: all_reduce is ncclAllReduce itself. With more than two ranks it then sums
  // in an order of NCCL's own, which may round differently and may differ between sizes, versions
  // and machines, so that boundaries of stage 3 no longer have the bits of the others. For
  // comparisons. All ranks must agree.
  bool vendor_sum = false;
};

// Calls visit(name, field) for every option that all ranks must have alike. It does not compile
// while a field of CommOptions is missing here.
template <class Options, class Visit>
requires std::same_as<std::remove_const_t<Options>, CommOptions>
void visit_equal_fields(Options& options, Visit&& visit) {
  auto& [rank, size, transport, deadline, load_deadline, concurrent_channels, only_exchanges,
         bootstrap, vendor_sum] = options;
  visit("transport", transport);
  visit("deadline", deadline);
  visit("concurrent_channels", concurrent_channels);
  visit("only_exchanges", only_exchanges);
  visit("vendor_sum", vendor_sum);
}

struct Capabilities {
  bool peer_pointers = false;  // kernels may address peers' mailboxes (stages 1 and 2)
  bool capturable = false;     // collectives may be recorded into a Graph
};

// From this rank to another through peer memory, as its kernels found it when the ranks met.
struct Link {
  double latency_us = 0;    // one way: half a round trip between two kernels
  double gbytes_per_s = 0;  // of a kernel that only writes, while the peer writes back
};

// What is known of a rank without asking it: it may be stuck.
struct RankSign {
  // What it told last (tell_place, tell_call); none where ranks share no memory (transport ccl).
  std::optional<std::uint64_t> place = {};
  // Since something was heard of its process, which sends a sign of life twice a second whatever
  // its threads do. 0: a rank of this process.
  std::chrono::milliseconds silence{0};
};

class Communicator {
 public:
  // On devices this also tries every pair of ranks, with data, before anybody relies on it.
  static Result<std::unique_ptr<Communicator>> create(const CommOptions& options,
                                                      Device device);  // collective
  ~Communicator();

  int rank() const;
  int size() const;
  Device device() const;
  // Blocks of a kernel that waits for peers: those that are resident together on every device of
  // the team, also where ranks share one and beside concurrent_channels - 1 others of their kind.
  // The same on all ranks.
  int max_blocks() const;
  // Whether ranks share a device anywhere in the team. False on host targets, whose blocks share
  // processors anyway.
  bool shares_device() const;
  // Whether a kernel may become resident while the one before it on its stream still runs. It would
  // take room that another rank's or another channel's kernel may need. Never with TENON_EARLY=0.
  // The same on all ranks.
  bool may_start_early() const;
  std::string_view transport() const;  // "threads", "shm", "ccl", "ccl with its own sum", …
  const std::vector<std::string>& refusals() const;  // "shm: …", for each line that was passed over
  Capabilities can() const;
  std::chrono::milliseconds deadline() const;
  // One for each rank, the own one zero. Empty on host targets and without peer pointers.
  std::span<const Link> links() const;
  // The slowest of all links of the team, in GB/s, rounded down; 0 where links() is empty. The same
  // on all ranks.
  int slowest_link_gbs() const;

  // Gives the memory of every mailbox back to the devices, the communicator's own included, until
  // resume() maps them again: fresh, as after creation, at other addresses. Channel objects stay
  // what they are; graphs captured before are void. In between the host functions work, and
  // whatever needs a mailbox is refused. Collective, between calls: every stream must be idle. An
  // error of resume() leaves the communicator suspended on every rank.
  Status suspend();
  Status resume();
  bool suspended() const;

  // Of this rank's memory, what the collectives below hold: their mailboxes.
  std::int64_t mailbox_bytes() const;

  // A new channel. Collective. Filled with kNotArrived; state words are zero.
  Result<Channel> make_channel(std::size_t bytes, std::string_view label);

  // out = sum over ranks of `in`, summed in rank order 0 … n−1 in fp32 and rounded once
  // (docs/boundary.md steps 1 and 2), so that every rank and every transport gets the same bits.
  // bf16 or f16, contiguous; out may be the addend itself. Any size. Collective; errors surface in
  // health(). With CommOptions::vendor_sum the order is NCCL's.
  Status all_reduce(const PartialRows& in, const TensorView& out, Stream& stream);

  // out[r] = rank r's `in`: out is [size, …in]. Any dtype, contiguous. Collective.
  Status all_gather(const TensorView& in, const TensorView& out, Stream& stream);

  // Rows of the first dimension, dealt to the ranks (comm/collectives/collectives.h):
  // out[r] = of rank r's `in` [rows, …] those dealt to this rank; and back, where they lie. Only
  // where can().peer_pointers, else kUnsupported. Any dtype, contiguous. Collective.
  Status deal_rows(const TensorView& in, const TensorView& out, Stream& stream);
  Status collect_rows(const TensorView& rows, Stream& stream);

  // Host: every rank ends with the element-wise minimum. Collective, blocks at most the deadline.
  Status agree_min(std::span<std::int32_t> values);
  // Host: ok if every rank brought the same values, otherwise the same kInvalidArgument on every
  // rank, which names each value that differs and the ranks that brought it (comm/agreement.h).
  // `where` stands in front. After a difference the communicator is what it was. Collective, blocks
  // at most the deadline.
  Status agree_equal(const Fields& fields, std::string_view where);
  // Host: one status for all: ok if every rank brought ok, otherwise the first failure in rank
  // order with that rank's number in front. What may fail on one rank alone goes before a
  // collective and through here. Collective, blocks at most the deadline.
  Status agree(const Status& mine, std::string_view label);
  // The same after work that may take much longer on one rank than on another, such as loading:
  // waits up to the load deadline for a rank that is alive, and for one that died or of which
  // nothing is heard for a deadline no longer.
  Status agree_after_load(const Status& mine, std::string_view label);
  // Host: rank 0's bytes reach everybody. Collective, blocks at most the deadline.
  Status broadcast(std::span<std::byte> bytes);

  // Host: how far this rank is, for peers that wonder whom they wait for. Places are numbers that
  // grow as it goes on, 0 at creation; a collective, and a boundary (tell_call), adds one when it
  // is called. A store, waits for nobody.
  void tell_place(std::uint64_t place);
  void tell_call();
  // Of every rank, by rank. Any thread; waits for nobody.
  std::vector<RankSign> signs() const;

  // Ok, or the first fault of this rank as kTimeout or kPeerLost: "rank 1 waited for rank 0 in …".
  // Does not block, but for the first time after a fault, when it may wait 200 ms or a tenth of the
  // deadline for the records of other ranks. Once it is not ok it stays so, and every later wait of
  // any rank ends at once.
  Status health() const;
  // Tells every rank to give up: their waits end with kPeerLost that names this rank.
  void abort(std::string_view why);

  // Frees memory of this rank's device: at once, or where ranks are threads of one process at their
  // next meeting (agree, agree_equal, make_channel, suspend), since to free it waits for kernels of
  // peers there, which may wait for this rank. Local.
  void discard(Buffer memory);

  // Another handle of this communicator: what they stand for ends with the last of them. Local.
  std::unique_ptr<Communicator> share() const;

  struct State;  // for this folder; shared with the mailboxes, which may live longer

 private:
  explicit Communicator(std::shared_ptr<State> state);
  Communicator(const Communicator&) = default;
  Status try_links();         // collective
  Status open_collectives();  // collective
  Status check_deals(std::string_view what) const;
  std::shared_ptr<State> state_;
  Channel gather_channel_;  // where there are peer pointers
  Channel reduce_channel_;  // where the host cannot read the device's memory, besides
};

}  // namespace tenon
