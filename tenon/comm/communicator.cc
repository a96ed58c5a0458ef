// Bootstrap → choice of a transport → mapping; mailboxes; agreement; faults and how they spread.
// Not here: the all-reduce and all-gather themselves (collectives.cc, comm/collectives).
#include "tenon/comm/communicator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#include "tenon/comm/agreement.h"
#include "tenon/comm/collectives/probe/probe.h"
#include "tenon/comm/messages.h"
#include "tenon/comm/state.h"
#include "tenon/core/env.h"

namespace tenon {
namespace {

constexpr int kMaxConcurrentChannels = 16;

const char* environment_variable(const char* name) { return std::getenv(name); }

Result<std::shared_ptr<Bootstrap>> find_bootstrap(const CommOptions& options) {
  if (options.bootstrap != nullptr) return options.bootstrap;
  if (options.size == 1 && !was_launched(environment_variable)) return local_bootstrap(1).front();
  TENON_ASSIGN(const Launch launch, read_launch(environment_variable));
  return socket_bootstrap(launch, options.deadline);
}

// Options left at "one rank" follow the bootstrap; anything else must agree with it.
Status check_place(const CommOptions& options, const Bootstrap& bootstrap) {
  const bool unspecified = options.rank == 0 && options.size == 1;
  if (!unspecified && (options.rank != bootstrap.rank() || options.size != bootstrap.size()))
    return Status::error(Code::kInvalidArgument,
                         "the options say rank " + std::to_string(options.rank) + " of " +
                             std::to_string(options.size) + ", the bootstrap says rank " +
                             std::to_string(bootstrap.rank()) + " of " +
                             std::to_string(bootstrap.size()));
  if (bootstrap.size() < 1 || bootstrap.size() > kMaxRanks)
    return Status::error(
        Code::kInvalidArgument,
        std::to_string(bootstrap.size()) + " ranks; accepted: 1 to " + std::to_string(kMaxRanks));
  if (options.deadline.count() <= 0)
    return Status::error(
        Code::kInvalidArgument,
        "a deadline of " + std::to_string(options.deadline.count()) + " ms; accepted: more than 0");
  if (options.concurrent_channels < 1 || options.concurrent_channels > kMaxConcurrentChannels)
    return Status::error(Code::kInvalidArgument, std::to_string(options.concurrent_channels) +
                                                     " concurrent channels; accepted: 1 to " +
                                                     std::to_string(kMaxConcurrentChannels));
  return Status::ok();
}

// Every rank has the same infos, so all fail or none does.
Status check_cards(std::span<const RankInfo> infos) {
  for (std::size_t rank = 0; rank < infos.size(); ++rank) {
    if (infos[rank].max_blocks == 0)
      return Status::error(Code::kUnsupported, "rank " + std::to_string(rank) + " has no device " +
                                                   std::string(name(infos[rank].device.target)) +
                                                   ":" + std::to_string(infos[rank].device.index));
    if (infos[rank].device.target != infos[0].device.target)
      return Status::error(Code::kInvalidArgument,
                           "rank 0 runs on " + std::string(name(infos[0].device.target)) +
                               " and rank " + std::to_string(rank) + " on " +
                               std::string(name(infos[rank].device.target)) +
                               "; all must run on the same target");
  }
  return Status::ok();
}

int fewest_blocks(std::span<const RankInfo> infos) {
  return std::min_element(
             infos.begin(), infos.end(),
             [](const RankInfo& a, const RankInfo& b) { return a.max_blocks < b.max_blocks; })
      ->max_blocks;
}

// The most ranks that have something in common: a device, or a process.
template <class Share>
int most_that(std::span<const RankInfo> infos, const Share& share) {
  std::ptrdiff_t most = 1;
  for (const RankInfo& each : infos)
    most = std::max(most, std::ranges::count_if(
                              infos, [&](const RankInfo& other) { return share(each, other); }));
  return static_cast<int>(most);
}

bool share_process(const RankInfo& a, const RankInfo& b) {
  return a.host == b.host && a.process == b.process;
}

// "to rank 1 0.7 us, 350 GB/s".
std::string link_text(int peer, std::span<const Link> links) {
  const Link& link = links[static_cast<std::size_t>(peer)];
  char text[80];
  std::snprintf(text, sizeof text, "to rank %d %.2f us, %.0f GB/s", peer, link.latency_us,
                link.gbytes_per_s);
  return text;
}

}  // namespace

Communicator::State::~State() {
  free_discarded();
  if (bootstrap != nullptr) bootstrap->unwatch(watch_id);
  if (bootstrap != nullptr) bootstrap->unask(question_id);
  transport.reset();  // it may still have had something to tell this object
}

void Communicator::State::discard(std::shared_ptr<Mapping> mapping, Buffer memory) noexcept {
  if (!frees_at_meetings) return;
  try {
    const std::lock_guard lock(discarded_mutex);
    discarded.reserve(discarded.size() + 1);
    discarded.push_back({std::move(mapping), std::move(memory)});
  } catch (const std::bad_alloc&) {  // then it is freed at once
  }
}

void Communicator::State::free_discarded() {
  std::vector<Discarded> freed;
  const std::lock_guard lock(discarded_mutex);
  freed.swap(discarded);
}

ControlBlock& Communicator::State::control(int of_rank) const {
  return *reinterpret_cast<ControlBlock*>(control_mapping->base[of_rank]);
}

ChannelView Communicator::State::bare_team() const {
  ChannelView team;
  team.rank = bootstrap->rank();
  team.size = bootstrap->size();
  team.max_blocks = max_blocks;
  team.may_start_early = may_start_early();
  for (int peer = 0; peer < team.size; ++peer) team.abort_word[peer] = &control(peer).abort_word;
  team.fault = &control(team.rank).host_fault;
  team.deadline_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(deadline).count());
  return team;
}

bool Communicator::State::may_start_early() const {
  return env().early && !shares_device && concurrent_channels == 1;
}

void Communicator::State::on_loss(const Bootstrap::Loss& loss) {
  {
    std::lock_guard lock(mutex);
    loss_seen = &loss;
  }
  std::uint32_t none = 0;
  std::atomic_ref(control(bootstrap->rank()).abort_word)
      .compare_exchange_strong(none, 1u + static_cast<std::uint32_t>(loss.rank));
}

const FaultRecord* Communicator::State::fault_of(int of_rank) const {
  const ControlBlock& block = control(of_rank);
  const FaultRecord* found = nullptr;
  for (const FaultRecord* fault : {&block.kernel_fault, &block.host_fault}) {
    if (load_word(&fault->ready) == 0) continue;
    // A wait that an abort ended came after another.
    const bool was_aborted = static_cast<FaultReason>(fault->reason) == FaultReason::kAborted;
    if (found == nullptr || !was_aborted) found = fault;
    if (!was_aborted) break;
  }
  return found;
}

std::string Communicator::State::why_gave_up(int of_rank, int depth) const {
  std::string who = "rank " + std::to_string(of_rank) + " gave up";
  const ControlBlock& block = control(of_rank);
  if (load_word(&block.why_ready) != 0) return who + ": " + block.why;
  if (loss_seen && loss_seen->rank == of_rank) return loss_seen->why;
  if (depth > 0 && fault_of(of_rank) != nullptr)
    return who + " (" + fault_text(of_rank, depth - 1) + ")";
  return who;
}

std::string Communicator::State::fault_sentence(int of_rank, std::string_view ending) const {
  const FaultRecord& fault = *fault_of(of_rank);
  const std::string_view label =
      fault.channel < labels.size() ? std::string_view(labels[fault.channel]) : "?";
  const auto deadline_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(deadline).count());
  return describe(fault, label, deadline_ns, ending);
}

std::string Communicator::State::fault_text(int of_rank, int depth) const {
  const std::uint32_t word = load_word(&control(of_rank).abort_word);
  std::string ending = "it gave up";
  if (word != 0) ending = why_gave_up(static_cast<int>(word - 1), depth);
  return fault_sentence(of_rank, ending);
}

// The rank whose deadline passed may have waited for one that waited itself: whom that one awaited,
// and so on, up to the rank that is missing. Empty when the failure has another cause.
std::string Communicator::State::chain_text() const {
  // A waiting rank that is told to give up records its wait at once, unless it has lost its core:
  // on a busy host, where ranks are threads, for more than 70 ms.
  const auto patience_for_others = std::min(deadline / 4, std::chrono::milliseconds(500));
  const auto is_waiter = [&](int rank, std::chrono::milliseconds budget) {
    const auto end = std::chrono::steady_clock::now() + budget;
    while (fault_of(rank) == nullptr) {
      if (std::chrono::steady_clock::now() >= end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return true;
  };
  const auto is_late = [&](int rank) {
    const FaultRecord* fault = fault_of(rank);
    return fault != nullptr && static_cast<FaultReason>(fault->reason) == FaultReason::kDeadline;
  };
  const int own = bootstrap->rank();
  const std::uint32_t word = load_word(&control(own).abort_word);
  int at = own;
  if (!is_late(at) && word != 0) at = static_cast<int>(word - 1);
  if (!is_late(at)) return {};
  std::string text;
  std::uint32_t visited = 1u << at;
  const std::uint32_t told = visited | 1u << own;  // by the sentence that this one follows
  for (;;) {
    const std::uint32_t next = fault_of(at)->awaited_rank;
    if (next >= static_cast<std::uint32_t>(bootstrap->size()) || (visited >> next & 1u) != 0)
      return text;
    at = static_cast<int>(next);
    visited |= 1u << next;
    if (!is_waiter(at, patience_for_others)) return text;
    if ((told >> next & 1u) == 0) text += "; " + fault_sentence(at, "others gave up");
  }
}

Status Communicator::State::health() {
  const int rank = bootstrap->rank();
  const ControlBlock& own = control(rank);
  const std::uint32_t word = load_word(&own.abort_word);
  const bool claimed =
      load_word(&own.kernel_fault.claimed) != 0 || load_word(&own.host_fault.claimed) != 0;
  const FaultRecord* fault = fault_of(rank);
  if (word == 0 && !claimed) return Status::ok();
  std::lock_guard lock(mutex);
  if (!first_failure) return first_failure;
  Status failure;
  if (fault != nullptr) {
    const auto reason = static_cast<FaultReason>(fault->reason);
    const Code code = reason == FaultReason::kDeadline   ? Code::kTimeout
                      : reason == FaultReason::kMismatch ? Code::kInvalidArgument
                                                         : Code::kPeerLost;
    failure = Status::error(code, fault_text(rank, bootstrap->size()) + chain_text());
  } else if (claimed) {
    // The failing wait is writing its record at this moment: say less, and look again next time.
    return Status::error(Code::kTimeout, "a wait of rank " + std::to_string(rank) + " failed");
  } else {
    failure = Status::error(
        Code::kPeerLost, why_gave_up(static_cast<int>(word - 1), bootstrap->size()) + chain_text());
  }
  first_failure = failure;
  return failure;
}

Status Communicator::State::healthy() {
  Status status = health();
  // Who only heard of another's fault has nothing to add.
  const bool is_own = !status && status.code() != Code::kPeerLost;
  if (is_own && !told_bootstrap.exchange(true)) bootstrap->abort(status.message());
  return status;
}

void Communicator::State::abort(std::string_view why) {
  const ChannelView team = bare_team();
  ControlBlock& own = control(team.rank);
  std::uint32_t unclaimed = 0;
  if (std::atomic_ref(own.why_claimed).compare_exchange_strong(unclaimed, 1u)) {
    copy_text(why, own.why);
    store_word(&own.why_ready, 1u);
  }
  spread_abort(team, team.rank);
  bootstrap->abort(why);
}

void Communicator::State::fail(const Status& status) {
  {
    std::lock_guard lock(mutex);
    if (first_failure) first_failure = status;
  }
  abort(status.message());
}

Status Communicator::State::finish(Status status) {
  if (is_fatal(status)) abort(status.message());
  return status;
}

Status Communicator::State::agree(const Status& mine, std::string_view label, WaitBudget budget) {
  Agreement votes = exchange_votes(*bootstrap, mine, label, budget);
  TENON_TRY(finish(std::move(votes.exchanged)));
  return votes.agreed;
}

Status Communicator::State::given_up() {
  const ControlBlock& own = control(bootstrap->rank());
  const bool claimed =
      load_word(&own.kernel_fault.claimed) != 0 || load_word(&own.host_fault.claimed) != 0;
  // A record that is being written says more when it is complete.
  if (claimed && fault_of(bootstrap->rank()) == nullptr) return Status::ok();
  return health();
}

Communicator::Communicator(std::shared_ptr<State> state) : state_(std::move(state)) {}
Communicator::~Communicator() = default;

Result<std::unique_ptr<Communicator>> Communicator::create(const CommOptions& options,
                                                           Device device) {
  TENON_ASSIGN(const auto bootstrap, find_bootstrap(options), "communicator");
  const auto open = [&]() -> Result<std::unique_ptr<Communicator>> {
    // One that is not accepted must not keep this rank from hearing so together with the others.
    const auto deadline = options.deadline.count() > 0 ? options.deadline : CommOptions().deadline;
    Fields fields;
    visit_equal_fields(options, fields);
    fields("TENON_EARLY", env().early);
    TENON_TRY(tenon::agree_equal(*bootstrap, fields, "options", deadline));
    TENON_TRY(tenon::agree(*bootstrap, check_place(options, *bootstrap), "communicator options",
                           deadline));
    const RankInfo info = own_card(device);
    std::vector<RankInfo> infos(static_cast<std::size_t>(bootstrap->size()));
    TENON_TRY(bootstrap->exchange(bytes_of(info), std::as_writable_bytes(std::span(infos)),
                                  "rank infos", deadline));
    TENON_TRY(check_cards(infos));
    const TransportContext context{*bootstrap, device, infos, deadline};
    TENON_ASSIGN(auto chosen, choose_transport(context, options.transport));
    if (options.vendor_sum && chosen.transport->on_streams() == nullptr)
      return Status::error(Code::kInvalidArgument,
                           "vendor_sum was asked for, but transport " + std::string(chosen.name) +
                               " has no sum of its own; accepted: transport ccl");

    auto state = std::make_shared<State>();
    state->bootstrap = bootstrap;
    state->device = device;
    const int sharing = is_host(device.target) ? 1 : most_that(infos, share_device);
    state->shares_device = sharing > 1;
    state->frees_at_meetings = most_that(infos, share_process) > 1;  // ranks are threads
    state->concurrent_channels = options.concurrent_channels;
    // Kernels count for kMaxBlocksPerUnit times as many blocks: what ChannelView::state has room
    // for. With one block on each, those of all ranks leave half the multiprocessors to others.
    const int shares =
        sharing * (sharing > 1 && !options.only_exchanges ? 2 * kMaxBlocksPerUnit : 1);
    state->max_blocks = std::clamp(fewest_blocks(infos) / shares / options.concurrent_channels, 1,
                                   kMaxWaitingBlocks / kMaxBlocksPerUnit);
    state->deadline = deadline;
    state->load_deadline =
        options.load_deadline.count() > 0 ? options.load_deadline : env().load_deadline;
    state->transport_name = chosen.name;
    state->vendor_sum = options.vendor_sum;
    if (options.vendor_sum) state->transport_name += " with its own sum";
    state->refusals = std::move(chosen.refusals);
    state->transport = std::move(chosen.transport);
    TENON_ASSIGN(
        state->control_mapping,
        state->transport->map(MemoryKind::kHost, sizeof(ControlBlock), 0, "communicator control"));
    state->labels.push_back("host exchange");
    state->channels.emplace_back();
    state->watch_id =
        bootstrap->watch([raw = state.get()](const Bootstrap::Loss& loss) { raw->on_loss(loss); });
    state->question_id = bootstrap->ask([raw = state.get()] { return raw->given_up(); });
    state->transport->watch([raw = state.get()](const Status& status) { raw->fail(status); });
    auto communicator = std::unique_ptr<Communicator>(new Communicator(state));
    TENON_TRY(communicator->try_links());
    TENON_TRY(communicator->open_collectives());
    return communicator;
  };
  auto opened = open();
  if (!opened && is_fatal(opened.status())) bootstrap->abort(opened.status().message());
  if (!opened) return opened.status().with("communicator");
  return opened;
}

// Not on host targets, whose memory nobody doubts: creation stays cheap there.
Status Communicator::try_links() {
  if (is_host(device().target) || size() == 1 || !can().peer_pointers) return Status::ok();
  TENON_ASSIGN(const Channel channel, make_channel(probe::mailbox_bytes(true), "links"));
  auto run = probe::LinkProbe::prepare(channel, device(), true);
  TENON_TRY(agree(run.status(), "prepare to try the links"));
  auto links = run->run(0);
  TENON_TRY(state_->healthy(), "try the links");
  TENON_TRY(agree(links.status(), "try the links"));
  state_->links = *std::move(links);
  std::int32_t slowest = std::numeric_limits<std::int32_t>::max();
  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank())
      slowest = std::min(slowest, static_cast<std::int32_t>(
                                      state_->links[static_cast<std::size_t>(peer)].gbytes_per_s));
  TENON_TRY(agree_min(std::span(&slowest, 1)));
  state_->slowest_link_gbs = slowest;
  std::string text;
  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank()) text += (text.empty() ? "" : ", ") + link_text(peer, state_->links);
  log(LogLevel::kInfo, "links over " + std::string(transport()) + ": " + text);
  return Status::ok();
}

std::span<const Link> Communicator::links() const { return state_->links; }
int Communicator::slowest_link_gbs() const { return state_->slowest_link_gbs; }
int Communicator::rank() const { return state_->bootstrap->rank(); }
int Communicator::size() const { return state_->bootstrap->size(); }
Device Communicator::device() const { return state_->device; }
int Communicator::max_blocks() const { return state_->max_blocks; }
bool Communicator::shares_device() const { return state_->shares_device; }
bool Communicator::may_start_early() const { return state_->may_start_early(); }
std::string_view Communicator::transport() const { return state_->transport_name; }
const std::vector<std::string>& Communicator::refusals() const { return state_->refusals; }
Capabilities Communicator::can() const { return state_->transport->can(); }
std::chrono::milliseconds Communicator::deadline() const { return state_->deadline; }
Status Communicator::health() const { return state_->health(); }
void Communicator::abort(std::string_view why) { state_->abort(why); }

void Communicator::tell_place(std::uint64_t place) {
  std::atomic_ref(state_->control(rank()).place).store(place, std::memory_order_relaxed);
}

void Communicator::tell_call() {
  std::atomic_ref(state_->control(rank()).place).fetch_add(1, std::memory_order_relaxed);
}

std::vector<RankSign> Communicator::signs() const {
  std::vector<RankSign> all(static_cast<std::size_t>(size()));
  for (int each = 0; each < size(); ++each) {
    RankSign& sign = all[static_cast<std::size_t>(each)];
    if (each == rank() || state_->control_mapping->is_shared)
      sign.place = std::atomic_ref(state_->control(each).place).load(std::memory_order_relaxed);
    sign.silence = state_->bootstrap->silence(each);
  }
  return all;
}

Status Communicator::agree_min(std::span<std::int32_t> values) {
  TENON_TRY(state_->healthy(), "agree_min");
  const std::size_t count = values.size();
  std::vector<std::int32_t> all(count * static_cast<std::size_t>(size()));
  if (!state_->transport->all_gather(HostChannel::kControl, std::as_bytes(values),
                                     std::as_writable_bytes(std::span(all)), state_->bare_team()))
    return state_->healthy().with("agree_min");
  for (std::size_t i = 0; i < all.size(); ++i)
    values[i % count] = std::min(values[i % count], all[i]);
  return Status::ok();
}

void Communicator::discard(Buffer memory) { state_->discard(nullptr, std::move(memory)); }

Status Communicator::agree_equal(const Fields& fields, std::string_view where) {
  TENON_TRY(state_->healthy(), where);
  state_->free_discarded();
  return state_->finish(tenon::agree_equal(*state_->bootstrap, fields, where, deadline()));
}

std::unique_ptr<Communicator> Communicator::share() const {
  return std::unique_ptr<Communicator>(new Communicator(*this));
}

Status Communicator::agree(const Status& mine, std::string_view label) {
  TENON_TRY(state_->healthy(), label);
  state_->free_discarded();
  return state_->agree(mine, label, deadline());
}

Status Communicator::agree_after_load(const Status& mine, std::string_view label) {
  TENON_TRY(state_->healthy(), label);
  return state_->agree(mine, label, {state_->load_deadline, deadline()});
}

Status Communicator::broadcast(std::span<std::byte> bytes) {
  TENON_TRY(state_->healthy(), "broadcast");
  if (!state_->transport->broadcast(HostChannel::kControl, bytes, state_->bare_team()))
    return state_->healthy().with("broadcast");
  return Status::ok();
}

}  // namespace tenon
