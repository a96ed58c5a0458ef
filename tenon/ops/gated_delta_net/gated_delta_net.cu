// The variants of gated_delta_net. "recurrent": rows, recurrence, outputs. "decode": all of that
// for sequences of one token in one launch. "chunked": as "recurrent" with chunks for sequences of
// more tokens; those of one token are left to the decode kernel, on cpu to the recurrent one. Not
// here: the kernels (rows.cuh, recurrent.cuh, decode.cuh, chunked.cuh).
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/call.cuh"
#include "tenon/ops/gated_delta_net/chunked.cuh"
#include "tenon/ops/gated_delta_net/decode.cuh"
#include "tenon/ops/gated_delta_net/recurrent.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {
namespace {

using Args = tenon::gated_delta_net::Args;
static_assert(kChunk == tenon::gated_delta_net::kChunkTokens);

// One block per token and run of kChannels channels.
TENON_KERNEL_MAX(kDim) conv_kernel(TENON_ARGS(KernelArgs) args) {
  TENON_SHARED(bf16, zeros, kChannels);
  wait_for_previous();
  let_next_start();
  const int runs = (args.conv_dim + kChannels - 1) / kChannels;
  const int token = block_id() / runs;
  const int first = block_id() % runs * kChannels;
  const int n = args.conv_dim - first < kChannels ? args.conv_dim - first : kChannels;
  const int index = sequence_of(args, token);
  if (index < 0) return;
  const Sequence sequence = sequence_at(args, index);
  if (decodes_apart(args, sequence)) return;

  const bf16* inputs[kHistory + 1];  // by lag
  bool missing = false;
  for (int lag = 0; lag <= kHistory; ++lag) {
    const bf16* row = input_row(args, sequence, token - sequence.begin - lag);
    inputs[lag] = row == nullptr ? zeros : row + first;
    missing = missing || row == nullptr;
  }
  if (missing) {  // the whole block agrees: it is one token
    for (int c = thread_id(); c < n; c += block_threads()) zeros[c] = bf16{0};
    sync_block();
  }
  convolve(inputs[3], inputs[2], inputs[1], inputs[0], args.conv_weight + std::int64_t{first} * 4,
           n, u_of(args, token) + first);
}

// One block per (v head, sequence or row): that sequence's token, and that row if it belongs to no
// sequence.
template <class Form>
TENON_KERNEL_RESIDENT(Form::kThreads, Form::kTeams == 1 ? 4
                                      : Form::kIsAlone  ? 1
                                                        : 2)
decode_kernel(TENON_ARGS(KernelArgs) args) {
  if constexpr (kWave > 1) {
    const int v_head = block_id() % args.v_heads, index = block_id() / args.v_heads;
    const Channels channels = channels_of(args, v_head);
    const Weights weights = load_weights(args, channels);  // no kernel writes them
    Ahead<Form> ahead;
    load_constants(args, v_head, ahead);
    if (!args.is_settled) wait_for_previous();
    load_state(args, index, v_head, channels, ahead);
    wait_for_previous();
    let_next_start();
    if (ahead.decodes) decode_head(args, v_head, channels, weights, ahead);
    if (args.decodes_apart) return;  // other kernels see to all other rows
    if (ahead.is_padding) finish_head(args, index, v_head, nullptr);
  }
}
// A multiprocessor of CUDA has one head or two at a time of two teams each, or four of one team,
// whose S does not fit into shared memory as a whole. One, while there is a multiprocessor for each
// head: blocks that start beside those of another kernel may else settle two by two.
inline constexpr int kRestRows = kHeldRows == kDim ? 32 : 0;
using AloneTeams = HeadForm<2, kHeldRows, 0, true>;
using TwoTeams = HeadForm<2, kHeldRows>;
using OneTeam = HeadForm<1, kHeldRows - kRestRows, kRestRows>;

// On cpu a thread has no column of its own.
inline constexpr bool kHasDecode = kWave > 1;

void add_conv(const Args& args, const PlanContext& where, Recipe* recipe) {
  recipe->launch("conv_kernel", shape_of(where, args.qkv.shape[0] * conv_runs(args), kRowThreads));
}
void add_recurrent(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t blocks = args.state_from.shape[0] * args.v_heads * (kDim / kColumns);
  recipe->launch("recurrent_kernel", shape_of(where, blocks, kRecurrentThreads));
}
void add_decode(const Args& args, const PlanContext& where, std::int64_t rows, Recipe* recipe) {
  const std::int64_t blocks = rows * args.v_heads;
  const int units = where.properties.num_units;
  const int threads = blocks <= units       ? AloneTeams::kThreads
                      : blocks <= 2 * units ? TwoTeams::kThreads
                                            : OneTeam::kThreads;
  LaunchShape shape = shape_of(where, blocks, threads);
  shape.shared_bytes =
      decode_shared(threads == OneTeam::kThreads ? OneTeam::kHeld : TwoTeams::kHeld);
  recipe->launch("decode_kernel", shape);
}
Status start_decode(const KernelLaunch& planned, const KernelArgs& args, Stream& stream) {
  return tenon::launch(stream, planned.shape,
                       planned.shape.threads == OneTeam::kThreads    ? decode_kernel<OneTeam>
                       : planned.shape.threads == TwoTeams::kThreads ? decode_kernel<TwoTeams>
                                                                     : decode_kernel<AloneTeams>,
                       args);
}

Status supports_recurrent(const Args& args, const PlanContext& where, Recipe* recipe) {
  add_conv(args, where, recipe);
  add_recurrent(args, where, recipe);
  add_finish(args, where, recipe);
  return Status::ok();
}
Status launch_recurrent(const Recipe& recipe, const Args& args, const ChannelView*,
                        Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.recurrent_limit = to.tokens;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, recurrent_kernel, to));
  return tenon::launch(stream, recipe.launches[2].shape, finish_kernel, to);
}

Status supports_decode(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence > 1)
    return Status::error(Code::kUnsupported, "a sequence may have more than one token");
  const std::int64_t tokens = args.qkv.shape[0], sequences = args.state_from.shape[0];
  add_decode(args, where, tokens > sequences ? tokens : sequences, recipe);
  return Status::ok();
}
Status launch_decode(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return start_decode(recipe.launches[0], kernel_args(args), stream);
}

Status supports_chunked(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence <= 1)
    return Status::error(Code::kUnsupported, "every sequence has one token: there is no chunk");
  const std::int64_t sequences = args.state_from.shape[0];
  add_conv(args, where, recipe);
  if constexpr (kHasDecode) {
    add_decode(args, where, sequences, recipe);
  } else {
    add_recurrent(args, where, recipe);
  }
  recipe->launch("chunked_kernel", shape_of(where, sequences * args.v_heads * (kDim / kPartColumns),
                                            kChunkedThreads));
  add_finish(args, where, recipe);
  return Status::ok();
}
Status launch_chunked(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.recurrent_limit = 1;
  to.decodes_apart = kHasDecode;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  if constexpr (kHasDecode) {
    TENON_TRY(start_decode(recipe.launches[1], to, stream));
  } else {
    TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, recurrent_kernel, to));
  }
  TENON_TRY(tenon::launch(stream, recipe.launches[2].shape, chunked_kernel, to));
  return tenon::launch(stream, recipe.launches[3].shape, finish_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(decode, Args, supports_decode, launch_decode);
TENON_DEFINE_VARIANT(recurrent, Args, supports_recurrent, launch_recurrent);
TENON_DEFINE_VARIANT(chunked, Args, supports_chunked, launch_chunked);

}  // namespace tenon::TENON_TARGET::gated_delta_net
