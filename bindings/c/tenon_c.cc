// The functions of tenon.h: each looks its handles up, turns what C passes into what the library
// takes, and an error into a code and a text. Not here: how (handles.cc, convert.cc, meeting.cc).
#include <cxxabi.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>

#include "bindings/c/build_info.h"
#include "bindings/c/convert.h"
#include "bindings/c/handles.h"
#include "bindings/c/meeting.h"
#include "bindings/c/objects.h"
#include "bindings/c/tenon.h"
#include "tenon/boundary/boundary.h"
#include "tenon/boundary/explain.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/device/runtime.h"

namespace tenon::c {
namespace {

static_assert(TENON_INVALID_ARGUMENT == static_cast<int>(Code::kInvalidArgument) &&
              TENON_INTERNAL == static_cast<int>(Code::kInternal));
static_assert(TENON_SCALES_UE8M0_PACKED == static_cast<int>(ScaleLayout::kUe8m0Packed));
static_assert(TENON_LOG_DEBUG == static_cast<int>(LogLevel::kDebug));

// Of fixed size: what is told when there is no memory needs none.
struct LastError {
  char text[4096] = "";
  void set(std::string_view message) {
    const std::size_t count = message.copy(text, sizeof text - 1);
    text[count] = 0;
    if (count < message.size()) std::memcpy(text + count - 3, "...", 3);
  }
};
thread_local LastError last_error;

tenon_code answer(const Status& status) {
  if (!status) last_error.set(status.message());
  return static_cast<tenon_code>(status.code());
}

// What work() returns, a Status, as a code. Nothing is thrown past here but what cancels a thread.
template <class Work>
tenon_code entry(Work&& work) {
  try {
    return answer(work());
  } catch (const abi::__forced_unwind&) {
    throw;
  } catch (const std::exception&) {
    try {
      return answer(status_of_exception());
    } catch (...) {  // no memory for the sentence
    }
  } catch (...) {
    last_error.set("something that is no std::exception was thrown");
    return TENON_INTERNAL;
  }
  last_error.set("the host has no more memory");
  return TENON_OUT_OF_MEMORY;
}

Status refuse(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}
Status is_null(std::string_view what) { return refuse(std::string(what) + " is null"); }

template <class Handle>
tenon_code destroy(Kind kind, Handle* handle) {
  return entry([&] {
    if (handle == nullptr) return Status::ok();
    return to_status(drop(kind, reinterpret_cast<std::uintptr_t>(handle)));
  });
}

// What has run already has failed already, where it runs in the call.
Status told_at_once(const Communicator& comm) {
  return is_host(comm.device().target) ? comm.health() : Status::ok();
}

// --- communicators --------------------------------------------------------------------------

// What does not depend on how ranks meet.
struct Wanted {
  CommOptions options;
  Target target = Target::kCpu;
  int device = -1;
};

Result<Wanted> read_options(const tenon_communicator_options* given) {
  TENON_TRY(check_process());
  TENON_TRY(env_status());
  tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
  if (given != nullptr)
    TENON_TRY(read_struct("tenon_communicator_options", given,
                          TENON_BYTES_TO(tenon_communicator_options, device), options));
  Wanted wanted;
  TENON_ASSIGN(const std::string target, read_text("the target", options.target));
  if (!target.empty()) {
    const auto known = target_named(target);
    if (!known)
      return refuse("the target is \"" + target +
                    "\"; accepted: cpu, cuda, hip, emu32 and emu64, where the build has them");
    wanted.target = *known;
  }
  TENON_TRY(backend(wanted.target));
  wanted.device = options.device;
  if (wanted.device < -1)
    return refuse("the device is " + std::to_string(wanted.device) + "; accepted: -1 or more");
  TENON_ASSIGN(const std::string transport, read_text("the transport", options.transport));
  if (!transport.empty()) wanted.options.transport = transport;
  constexpr std::uint64_t kMostMs = 86'400'000;  // what TENON_DEADLINE_MS accepts
  if (options.deadline_ms > kMostMs)
    return refuse("the deadline is " + std::to_string(options.deadline_ms) +
                  " ms; accepted: 1 to 86400000, or 0 for TENON_DEADLINE_MS");
  wanted.options.deadline =
      options.deadline_ms == 0 ? env().deadline : std::chrono::milliseconds(options.deadline_ms);
  wanted.options.concurrent_channels = options.concurrent;
  wanted.options.only_exchanges = options.only_exchanges != 0;
  wanted.options.vendor_sum = options.vendor_sum != 0;
  return wanted;
}

Status check_rank(std::int32_t rank, std::int32_t num_ranks) {
  if (num_ranks >= 1 && num_ranks <= kMaxRanks && rank >= 0 && rank < num_ranks)
    return Status::ok();
  return refuse("rank " + std::to_string(rank) + " of " + std::to_string(num_ranks) +
                "; accepted: 1 to " + std::to_string(kMaxRanks) + " ranks, numbered from 0");
}

Status create(const Wanted& wanted, int nth, tenon_communicator** made) {
  Device device{wanted.target, wanted.device};
  if (wanted.device < 0) {
    TENON_ASSIGN(device, nth_device(wanted.target, nth));
  }
  auto object = std::make_shared<CommunicatorObject>();
  TENON_ASSIGN(object->comm, Communicator::create(wanted.options, device));
  return hand_out(std::move(object), made);
}

const char* variable(const char* name) { return std::getenv(name); }

// The work of a function that makes a communicator, once `made` is seen to be there.
template <class Work>
tenon_code make_communicator(const tenon_communicator_options* options, tenon_communicator** made,
                             Work&& work) {
  return entry([&]() -> Status {
    if (made == nullptr) return is_null("where the communicator goes");
    TENON_ASSIGN(Wanted wanted, read_options(options));
    return work(wanted);
  });
}

// A function of a communicator that one thread calls at a time.
template <class Work>
tenon_code with_communicator(tenon_communicator* handle, Work&& work) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(handle));
    TENON_ASSIGN(const Turn turn, turn_of(*held));
    return work(*held);
  });
}

// --- tables ---------------------------------------------------------------------------------

std::string table_of(const std::vector<BoundaryUse>& uses) {
  std::string text;
  for (const BoundaryUse& use : uses) {
    text += use.site + ", up to " + std::to_string(use.max_rows) + " rows: stage " +
            std::to_string(static_cast<int>(use.stage)) + " (" + std::string(name(use.stage)) +
            "), " + use.variant + ", " + std::to_string(use.blocks) + " x " +
            std::to_string(use.threads) + " threads, mailbox of " +
            std::to_string(use.mailbox_bytes) + " bytes, " + std::to_string(use.count) + " calls";
    if (!use.reason.empty()) text += "\n  passed over: " + use.reason;
    text += "\n";
  }
  return text;
}

// --- boundaries -----------------------------------------------------------------------------

Result<BoundarySpec> read_spec(const tenon_boundary_spec* given) {
  tenon_boundary_spec c = TENON_BOUNDARY_SPEC_INIT;
  TENON_TRY(
      read_struct("tenon_boundary_spec", given, TENON_BYTES_TO(tenon_boundary_spec, max_rows), c));
  BoundarySpec spec;
  TENON_ASSIGN(spec.site, read_text("the site", c.site));
  if (spec.site.empty()) spec.site = "boundary";
  spec.hidden = c.hidden;
  spec.max_rows = c.max_rows;
  TENON_ASSIGN(spec.dtype, dtype_of("dtype", c.dtype));
  spec.weight_dtype = spec.dtype;
  if (c.weight_dtype != -1) {
    TENON_ASSIGN(spec.weight_dtype, dtype_of("weight_dtype", c.weight_dtype));
  }
  spec.eps = c.eps;
  spec.offset = c.offset;
  spec.fresh_residual = c.fresh_residual != 0;
  spec.want_bf16 = c.want_rows != 0;
  spec.want_fp8 = c.want_fp8 != 0;
  TENON_ASSIGN(spec.fp8, dtype_of("fp8", c.fp8));
  spec.group = c.group;
  if (c.layout < TENON_SCALES_ROW || c.layout > TENON_SCALES_UE8M0_PACKED)
    return refuse("the layout of scales is " + std::to_string(c.layout) + "; accepted: 0 to 2");
  spec.layout = static_cast<ScaleLayout>(c.layout);
  if (c.force_stage < 0 || c.force_stage > 3)
    return refuse("force_stage is " + std::to_string(c.force_stage) + "; accepted: 0 to 3");
  spec.force_stage = static_cast<StagePolicy>(c.force_stage);
  spec.max_stage = c.max_stage;
  TENON_ASSIGN(spec.force_variant, read_text("force_variant", c.force_variant));
  return spec;
}

Status run(BoundaryObject& held, const tenon_boundary_call& call) {
  ChannelObject& channel = *held.channel;
  CommunicatorObject& communicator = *channel.communicator;
  const BoundarySpec& spec = held.boundary.spec();
  const Device device = communicator.comm->device();
  PartialRows partial;
  TENON_ASSIGN(partial.addend, tensor_of("partial", call.partial, device, spec.dtype));
  TENON_ASSIGN(const TensorView residual, tensor_of("residual", call.residual, device, spec.dtype));
  TENON_ASSIGN(const TensorView weight,
               tensor_of("weight", call.weight, device, spec.weight_dtype));
  NormedRows out;
  if (call.rows != nullptr) {
    TENON_ASSIGN(out.bf16, tensor_of("rows", call.rows, device, spec.dtype));
  }
  if (call.codes != nullptr || call.scales != nullptr) {
    QuantView quant;
    TENON_ASSIGN(quant.data, tensor_of("codes", call.codes, device, spec.fp8));
    TENON_ASSIGN(quant.scale, tensor_of("scales", call.scales, device, scale_dtype(spec.layout)));
    quant.group = spec.group;
    quant.layout = spec.layout;
    out.fp8 = quant;
  }
  TENON_ASSIGN(const Turn turn, turn_of(channel));
  // The sum of stage 3 is the communicator's.
  std::optional<Turn> turn_of_communicator;
  const std::int64_t rows = partial.addend.shape[0];
  if (rows > 0 && rows <= spec.max_rows &&
      held.boundary.stage(static_cast<int>(rows)) == Stage::kGeneric) {
    TENON_ASSIGN(Turn taken, turn_of(communicator));
    turn_of_communicator.emplace(std::move(taken));
  }
  TENON_ASSIGN(Stream* const stream, channel.borrowed.over(device, call.stream));
  TENON_TRY(held.boundary.run(partial, residual, weight, out, *stream));
  return told_at_once(*communicator.comm);
}

}  // namespace
}  // namespace tenon::c

// --- the functions ----------------------------------------------------------------------------

using namespace tenon;
using namespace tenon::c;

const char* tenon_last_error(void) { return last_error.text; }

const char* tenon_code_name(tenon_code code) {
  if (code < TENON_OK || code > TENON_INTERNAL) return "unknown code";
  return name(static_cast<Code>(code)).data();  // a literal: it ends with a zero byte
}

int32_t tenon_abi(void) { return TENON_ABI; }
const char* tenon_version(void) { return kBuildInfo.version; }

const char* tenon_commit(void) {
  struct Text {
    char text[32];
    Text() {
      std::snprintf(text, sizeof text, "%s%s", kBuildInfo.commit, kBuildInfo.modified ? "+" : "");
    }
  };
  static const Text made;
  return made.text;
}

const char* tenon_build_info(void) {
  struct Text {
    char text[256];
    Text() {
      std::snprintf(text, sizeof text, "%s, %s, targets %s", kBuildInfo.build, kBuildInfo.compiler,
                    kBuildInfo.targets);
    }
  };
  static const Text made;
  return made.text;
}

tenon_code tenon_env_text(char* text, uint64_t* bytes) {
  return entry([&]() -> Status {
    TENON_TRY(env_status());
    std::string all;
    for (const Knob& knob : knobs())
      all += std::string(knob.name) + "=" + knob.value + "  # " + std::string(knob.text) + "\n";
    return write_text(all, text, bytes);
  });
}

tenon_code tenon_set_log_sink(tenon_log_sink sink, void* context, int32_t level) {
  return entry([&]() -> Status {
    // Never freed: a line may be on its way while the process ends.
    static struct Caller {
      std::mutex mutex;
      tenon_log_sink sink = nullptr;
      void* context = nullptr;
    }& caller = *new Caller;
    if (level < TENON_LOG_ERROR || level > TENON_LOG_DEBUG)
      return refuse("the level is " + std::to_string(level) + "; accepted: 0 to 3");
    const std::lock_guard lock(caller.mutex);
    set_log_sink(nullptr, nullptr, LogLevel::kError);  // so that nobody reads what is written here
    caller.sink = sink;
    caller.context = context;
    if (sink == nullptr) return Status::ok();
    const auto pass_on = [](void* at, LogLevel of_line, const char* line) {
      const auto& to = *static_cast<const Caller*>(at);
      try {
        to.sink(to.context, static_cast<int32_t>(of_line), line);
      } catch (const abi::__forced_unwind&) {
        throw;
      } catch (...) {  // a line that is lost is no reason to fail
      }
    };
    set_log_sink(pass_on, &caller, static_cast<LogLevel>(level));
    return Status::ok();
  });
}

tenon_code tenon_device_count(const char* target, int32_t* count) {
  return entry([&]() -> Status {
    if (target == nullptr || count == nullptr) return is_null("the target or the count");
    TENON_ASSIGN(const std::string wanted, read_text("the target", target));
    const auto known = target_named(wanted);
    if (!known)
      return refuse("the target is \"" + wanted + "\"; accepted: cpu, cuda, hip, emu32, emu64");
    TENON_ASSIGN(Backend* const found, backend(*known));
    TENON_ASSIGN(const int devices, found->num_devices());
    *count = devices;
    return Status::ok();
  });
}

tenon_code tenon_communicator_from_environment(const tenon_communicator_options* options,
                                               tenon_communicator** made) {
  return make_communicator(options, made, [&](Wanted& wanted) -> Status {
    int rank = 0;
    if (was_launched(variable)) {
      TENON_ASSIGN(const Launch launch, read_launch(variable));
      rank = launch.rank;
    }
    return create(wanted, local_rank_or(rank, variable), made);
  });
}

tenon_code tenon_unique_id_make(const char* address, tenon_unique_id* id) {
  return entry([&]() -> Status {
    TENON_TRY(check_process());
    if (id == nullptr) return is_null("where the id goes");
    TENON_ASSIGN(*id, make_id(address));
    return Status::ok();
  });
}

tenon_code tenon_communicator_from_id(const tenon_communicator_options* options,
                                      const tenon_unique_id* id, int32_t rank, int32_t num_ranks,
                                      tenon_communicator** made) {
  return make_communicator(options, made, [&](Wanted& wanted) -> Status {
    if (id == nullptr) return is_null("the id");
    TENON_TRY(check_rank(rank, num_ranks));
    TENON_ASSIGN(const Launch launch, launch_of(*id, rank, num_ranks));
    wanted.options.rank = rank;
    wanted.options.size = num_ranks;
    auto bootstrap = socket_bootstrap(launch, wanted.options.deadline);
    if (rank == 0) release_id(*id);
    TENON_TRY(bootstrap, "communicator");
    wanted.options.bootstrap = *std::move(bootstrap);
    return create(wanted, local_rank_or(rank, variable), made);
  });
}

tenon_code tenon_communicator_from_exchange(const tenon_communicator_options* options,
                                            tenon_exchange exchange, void* context, int32_t rank,
                                            int32_t num_ranks, tenon_communicator** made) {
  return make_communicator(options, made, [&](Wanted& wanted) -> Status {
    if (exchange == nullptr) return is_null("the exchange");
    TENON_TRY(check_rank(rank, num_ranks));
    wanted.options.rank = rank;
    wanted.options.size = num_ranks;
    wanted.options.bootstrap = exchange_bootstrap(exchange, context, rank, num_ranks);
    return create(wanted, local_rank_or(rank, variable), made);
  });
}

tenon_code tenon_team_make(int32_t num_ranks, tenon_team** made) {
  return entry([&]() -> Status {
    if (made == nullptr) return is_null("where the team goes");
    TENON_TRY(check_process());
    TENON_TRY(check_rank(0, num_ranks));
    auto object = std::make_shared<TeamObject>();
    object->ranks = local_bootstrap(num_ranks);
    return hand_out(std::move(object), made);
  });
}

tenon_code tenon_team_destroy(tenon_team* team) { return destroy(Kind::kTeam, team); }

tenon_code tenon_communicator_from_team(const tenon_communicator_options* options, tenon_team* team,
                                        int32_t rank, tenon_communicator** made) {
  return make_communicator(options, made, [&](Wanted& wanted) -> Status {
    TENON_ASSIGN(const auto held, held_by<TeamObject>(team));
    {
      const std::lock_guard lock(held->mutex);
      const auto num_ranks = static_cast<int>(held->ranks.size());
      TENON_TRY(check_rank(rank, num_ranks));
      wanted.options.rank = rank;
      wanted.options.size = num_ranks;
      wanted.options.bootstrap = std::move(held->ranks[static_cast<std::size_t>(rank)]);
    }
    if (wanted.options.bootstrap == nullptr)
      return refuse("rank " + std::to_string(rank) + " of this team is taken already");
    return create(wanted, rank, made);
  });
}

tenon_code tenon_communicator_destroy(tenon_communicator* communicator) {
  return destroy(Kind::kCommunicator, communicator);
}

tenon_code tenon_communicator_query(tenon_communicator* communicator,
                                    tenon_communicator_info* info) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(communicator));
    const Communicator& comm = *held->comm;
    tenon_communicator_info found = TENON_COMMUNICATOR_INFO_INIT;
    found.rank = comm.rank();
    found.num_ranks = comm.size();
    found.target = name(comm.device().target).data();  // literals and strings of the communicator:
    found.transport = comm.transport().data();         // both end with a zero byte
    found.device = comm.device().index;
    found.peer_pointers = comm.can().peer_pointers;
    found.capturable = comm.can().capturable;
    found.max_blocks = comm.max_blocks();
    found.shares_device = comm.shares_device();
    found.starts_early = comm.may_start_early();
    found.deadline_ms = static_cast<std::uint64_t>(comm.deadline().count());
    return write_struct("tenon_communicator_info", info,
                        TENON_BYTES_TO(tenon_communicator_info, transport), found);
  });
}

tenon_code tenon_communicator_refusals(tenon_communicator* communicator, char* text,
                                       uint64_t* bytes) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(communicator));
    std::string all;
    for (const std::string& each : held->comm->refusals()) all += each + "\n";
    return write_text(all, text, bytes);
  });
}

tenon_code tenon_communicator_health(tenon_communicator* communicator) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(communicator));
    return held->comm->health();
  });
}

tenon_code tenon_communicator_abort(tenon_communicator* communicator, const char* why) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(communicator));
    TENON_ASSIGN(const std::string text, read_text("the reason", why));
    held->comm->abort(text.empty() ? "no reason was given" : text);
    return Status::ok();
  });
}

tenon_code tenon_communicator_barrier(tenon_communicator* communicator) {
  return with_communicator(communicator, [](CommunicatorObject& held) {
    return held.comm->agree(Status::ok(), "barrier");
  });
}

tenon_code tenon_communicator_suspend(tenon_communicator* communicator) {
  return with_communicator(communicator,
                           [](CommunicatorObject& held) { return held.comm->suspend(); });
}

tenon_code tenon_communicator_resume(tenon_communicator* communicator) {
  return with_communicator(communicator,
                           [](CommunicatorObject& held) { return held.comm->resume(); });
}

tenon_code tenon_all_reduce(tenon_communicator* communicator, const tenon_tensor* in,
                            const tenon_tensor* out, void* stream) {
  return with_communicator(communicator, [&](CommunicatorObject& held) -> Status {
    const Device device = held.comm->device();
    PartialRows partial;
    TENON_ASSIGN(partial.addend, tensor_of("in", in, device, DType::kBF16));
    TENON_ASSIGN(const TensorView sum, tensor_of("out", out, device, partial.addend.dtype));
    TENON_ASSIGN(Stream* const on, held.borrowed.over(device, stream));
    TENON_TRY(held.comm->all_reduce(partial, sum, *on));
    return told_at_once(*held.comm);
  });
}

tenon_code tenon_all_gather(tenon_communicator* communicator, const tenon_tensor* in,
                            const tenon_tensor* out, void* stream) {
  return with_communicator(communicator, [&](CommunicatorObject& held) -> Status {
    const Device device = held.comm->device();
    TENON_ASSIGN(const TensorView mine, tensor_of("in", in, device, DType::kBF16));
    TENON_ASSIGN(const TensorView all, tensor_of("out", out, device, mine.dtype));
    TENON_ASSIGN(Stream* const on, held.borrowed.over(device, stream));
    TENON_TRY(held.comm->all_gather(mine, all, *on));
    return told_at_once(*held.comm);
  });
}

tenon_code tenon_channel_make(tenon_communicator* communicator, const tenon_channel_spec* given,
                              tenon_channel** made) {
  return entry([&]() -> Status {
    if (made == nullptr) return is_null("where the channel goes");
    TENON_ASSIGN(const auto held, held_by<CommunicatorObject>(communicator));
    tenon_channel_spec c = TENON_CHANNEL_SPEC_INIT;
    TENON_TRY(
        read_struct("tenon_channel_spec", given, TENON_BYTES_TO(tenon_channel_spec, max_rows), c));
    BoundaryChannel::Spec spec;
    spec.hidden = c.hidden;
    spec.max_rows = c.max_rows;
    TENON_ASSIGN(spec.dtype, dtype_of("dtype", c.dtype));
    spec.sharded_residual = c.sharded_residual != 0;
    TENON_ASSIGN(const std::string label, read_text("the label", c.label));
    if (!label.empty()) spec.label = label;
    TENON_ASSIGN(const Turn turn, turn_of(*held));
    auto object = std::make_shared<ChannelObject>();
    object->communicator = held;
    TENON_ASSIGN(object->channel, BoundaryChannel::make(spec, *held->comm));
    return hand_out(std::move(object), made);
  });
}

tenon_code tenon_channel_destroy(tenon_channel* channel) {
  return destroy(Kind::kChannel, channel);
}

tenon_code tenon_channel_bytes(tenon_channel* channel, uint64_t* bytes) {
  return entry([&]() -> Status {
    if (bytes == nullptr) return is_null("where the bytes go");
    TENON_ASSIGN(const auto held, held_by<ChannelObject>(channel));
    *bytes = static_cast<std::uint64_t>(held->channel->bytes());
    return Status::ok();
  });
}

tenon_code tenon_boundary_make(tenon_channel* channel, const tenon_boundary_spec* given,
                               tenon_boundary** made) {
  return entry([&]() -> Status {
    if (made == nullptr) return is_null("where the boundary goes");
    TENON_ASSIGN(const auto held, held_by<ChannelObject>(channel));
    TENON_ASSIGN(const BoundarySpec spec, read_spec(given));
    TENON_ASSIGN(const Turn turn, turn_of(*held));
    TENON_ASSIGN(const Turn turn_of_communicator, turn_of(*held->communicator));
    TENON_ASSIGN(Boundary boundary, Boundary::make(spec, held->channel));
    auto object = std::make_shared<BoundaryObject>(std::move(boundary));
    object->channel = held;
    return hand_out(std::move(object), made);
  });
}

tenon_code tenon_boundary_destroy(tenon_boundary* boundary) {
  return destroy(Kind::kBoundary, boundary);
}

tenon_code tenon_boundary_run(tenon_boundary* boundary, const tenon_boundary_call* given) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<BoundaryObject>(boundary));
    tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
    TENON_TRY(read_struct("tenon_boundary_call", given, TENON_BYTES_TO(tenon_boundary_call, stream),
                          call));
    return run(*held, call);
  });
}

tenon_code tenon_scale_shape(int32_t layout, int64_t rows, int64_t hidden, int32_t group,
                             int64_t shape[2], int32_t* dtype) {
  return entry([&]() -> Status {
    constexpr std::int64_t kMost = std::int64_t{1} << 40;
    if (shape == nullptr) return is_null("where the shape goes");
    if (layout < TENON_SCALES_ROW || layout > TENON_SCALES_UE8M0_PACKED || rows < 0 ||
        rows > kMost || hidden < 1 || hidden > kMost || group < 1)
      return refuse("layout " + std::to_string(layout) + ", " + std::to_string(rows) + " rows of " +
                    std::to_string(hidden) + " in groups of " + std::to_string(group) +
                    "; accepted: layout 0 to 2, rows 0 or more, hidden and group 1 or more");
    const auto as = static_cast<ScaleLayout>(layout);
    const auto found = scale_shape(as, rows, hidden, group);
    shape[0] = found[0];
    shape[1] = found[1];
    if (dtype != nullptr) *dtype = scale_dtype(as) == DType::kF32 ? TENON_F32 : -1;
    return Status::ok();
  });
}

tenon_code tenon_boundary_plan(tenon_boundary* boundary, int32_t rows, tenon_plan* plan) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<BoundaryObject>(boundary));
    const int most = held->boundary.spec().max_rows;
    if (rows < 1 || rows > most)
      return refuse(std::to_string(rows) + " rows; accepted: 1 to " + std::to_string(most));
    std::size_t at = 0;
    while (at + 1 < held->uses.size() && held->uses[at].max_rows < rows) ++at;
    const BoundaryUse& use = held->uses[at];
    tenon_plan found = TENON_PLAN_INIT;
    found.max_rows = use.max_rows;
    found.stage = static_cast<std::int32_t>(use.stage);
    found.variant = use.variant.c_str();
    found.reason = use.reason.c_str();
    found.blocks = use.blocks;
    found.threads = use.threads;
    found.mailbox_bytes = use.mailbox_bytes;
    found.calls = held->boundary.uses()[at].count;
    return write_struct("tenon_plan", plan, TENON_BYTES_TO(tenon_plan, reason), found);
  });
}

tenon_code tenon_boundary_counts(tenon_boundary* boundary, uint64_t counts[3]) {
  return entry([&]() -> Status {
    if (counts == nullptr) return is_null("where the counts go");
    TENON_ASSIGN(const auto held, held_by<BoundaryObject>(boundary));
    std::uint64_t found[3] = {};
    for (const BoundaryUse& use : held->boundary.uses())
      found[static_cast<int>(use.stage) - 1] += use.count;
    std::copy(std::begin(found), std::end(found), counts);
    return Status::ok();
  });
}

tenon_code tenon_boundary_explain(tenon_boundary* boundary, char* text, uint64_t* bytes) {
  return entry([&]() -> Status {
    TENON_ASSIGN(const auto held, held_by<BoundaryObject>(boundary));
    return write_text(table_of(held->boundary.uses()), text, bytes);
  });
}

tenon_code tenon_communicator_explain(tenon_communicator* communicator, int32_t hidden,
                                      int32_t max_rows, char* text, uint64_t* bytes) {
  return with_communicator(communicator, [&](CommunicatorObject& held) -> Status {
    TENON_ASSIGN(const Explanation found, explain_boundary(hidden, max_rows, *held.comm));
    return write_text("transport " + found.transport + "\n" + table_of(found.uses), text, bytes);
  });
}
