// tenon for C and for every language that calls C: communicators, boundaries and what they would do
// (docs/c.md). C99; the library is libtenon.so.1, and it holds no engine.
//
// What all functions have in common
// - They return a code, TENON_OK or one of the others, but for the few that return a constant text.
//   After a code that is not TENON_OK, tenon_last_error() says what was asked, what was found and
//   what is accepted, and nothing that the arguments point to was written unless its comment says
//   so. No C++ exception leaves them, and no argument that this header can refuse ends the process.
// - A handle is a number in the shape of a pointer: it is looked up, never followed. One that was
//   destroyed, that is of another kind or that was never made is TENON_INVALID_ARGUMENT.
// - Any thread may call, but one at a time on a communicator, and one at a time on a channel with
// its
//   boundaries: a call that meets another thread's there is refused. Asking (health, query, plan,
//   counts, explain of a boundary), tenon_communicator_abort() and destroying are fine at any time;
//   what is destroyed during a call ends with the call.
// - "Collective": every rank of the communicator calls it, in the same order, with equal arguments.
//   Every wait in it ends by success, by the deadline, or because a rank gave up.
// - After fork() the child of a process that had made handles can use neither them nor new ones:
//   TENON_UNSUPPORTED. Processes that are started by exec, or forked before, can.
// - Structs that grow have `size` as their first member: sizeof the struct that the caller was
//   compiled with. The library takes shorter structs of older headers, and gives fields that these
//   lack their defaults; of longer ones it demands that what it does not know is zero. Initialise
//   them with the macro that stands below each.
// - Texts are UTF-8 and end with a zero byte.
#ifndef TENON_H
#define TENON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TENON_API __attribute__((visibility("default")))
#else
#define TENON_API
#endif

// The number of this interface, which is that of the library's file (libtenon.so.1). It changes
// only when a program that was compiled with an older header would break.
#define TENON_ABI 1

// Codes.
enum {
  TENON_OK = 0,
  TENON_INVALID_ARGUMENT = 1,  // the caller asked for something that cannot be
  TENON_UNSUPPORTED = 2,       // sensible, but not on this build, device or variant
  TENON_OUT_OF_MEMORY = 3,
  TENON_TIMEOUT = 4,    // a wait passed its deadline
  TENON_PEER_LOST = 5,  // another rank died, left or gave up
  TENON_DEVICE = 6,     // the device or its driver failed
  TENON_IO = 7,         // a file or socket failed, or held something malformed
  TENON_INTERNAL = 8    // this library is wrong
};
typedef int32_t tenon_code;

// Element types.
enum { TENON_F32 = 0, TENON_BF16 = 1, TENON_F16 = 2, TENON_E4M3FN = 3, TENON_E4M3FNUZ = 4 };

// Where the scale of a row's group lies; groups = hidden / group (docs/boundary.md).
enum {
  TENON_SCALES_ROW = 0,          // f32 [rows, groups]
  TENON_SCALES_MN_MAJOR = 1,     // f32 [groups, round_up(rows, 4)], padding 0
  TENON_SCALES_UE8M0_PACKED = 2  // i32 [ceil(groups / 4), round_up(rows, 4)], padding 0
};

// Levels of the log.
enum { TENON_LOG_ERROR = 0, TENON_LOG_WARNING = 1, TENON_LOG_INFO = 2, TENON_LOG_DEBUG = 3 };

// Handles.
typedef struct tenon_team tenon_team;
typedef struct tenon_communicator tenon_communicator;
typedef struct tenon_channel tenon_channel;
typedef struct tenon_boundary tenon_boundary;

// --- Errors, versions, knobs, log ----------------------------------------------------------------

// What went wrong in the last call of this thread that failed; "" if none did. Valid until the
// thread's next call that fails. Never null; longer texts than 4095 bytes end in "...".
TENON_API const char* tenon_last_error(void);
// "ok", "invalid argument", "timeout", ...; "unknown code" for a number that is none.
TENON_API const char* tenon_code_name(tenon_code code);

// TENON_ABI of the library that is loaded.
TENON_API int32_t tenon_abi(void);
TENON_API const char* tenon_version(void);  // "0.1.0"
TENON_API const char* tenon_commit(void);   // twelve digits, "+" behind if changed, or "unknown"
// "Release, GNU 12.2.0, targets cpu cuda": how the library was built.
TENON_API const char* tenon_build_info(void);

// Texts are written to the caller's memory. `bytes` points to the size of `text`, and is set to the
// size that the whole text needs, zero byte included. With less room the text is cut, but for the
// zero byte, and the call succeeds; `text` may be null when the size is 0. So: ask once with 0.

// One line for each TENON_ variable: name, value, what it means. The error of a malformed variable
// is also that of every function that makes a handle.
TENON_API tenon_code tenon_env_text(char* text, uint64_t* bytes);

// Who gets the lines of the log, instead of standard error. It is called from any thread, by one at
// a time, with a line without its end, and must not call this library. `level` is the last one that
// it gets. A null sink: standard error again, as TENON_LOG says. When this function has returned,
// the sink before is not running and never will.
typedef void (*tenon_log_sink)(void* context, int32_t level, const char* line);
TENON_API tenon_code tenon_set_log_sink(tenon_log_sink sink, void* context, int32_t level);

// --- Tensors and devices -------------------------------------------------------------------------

// Exactly DLPack's DLTensor: a pointer to one may be cast. Nothing of it is kept after the call.
// - device_type: 1 host memory (for targets cpu, emu32, emu64), 2 CUDA, 10 ROCm.
// - type_code and type_bits: (2, 32) f32, (4, 16) bf16, (2, 16) f16, (10, 8) e4m3fn,
//   (11, 8) e4m3fnuz, (0, 32) i32; lanes 1. Unsigned integers (1, 8), (1, 16), (1, 32) are taken as
//   the bits of the type of that width that is expected: for those who cannot name bf16 or fp8.
// - strides count elements; null: row-major without gaps. data + byte_offset is the first element.
typedef struct tenon_tensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t num_dims;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} tenon_tensor;

// How many devices this build and machine have for a target ("cpu", "cuda", "hip", "emu32",
// "emu64"); TENON_UNSUPPORTED where the build has no such target.
TENON_API tenon_code tenon_device_count(const char* target, int32_t* count);

// --- Communicators -------------------------------------------------------------------------------

typedef struct tenon_communicator_options {
  uint64_t size;
  const char* target;      // null: "cpu"
  int32_t device;          // number of the device; -1: what the launcher says, else the rank,
                           // modulo the devices of this machine
  int32_t concurrent;      // the most channels in flight at once on these devices, 1 to 16
  int32_t only_exchanges;  // not 0: nothing else runs on devices that ranks share
  int32_t vendor_sum;      // not 0: transport ccl sums in NCCL's own order. For comparisons
  const char* transport;   // null: "auto"; "threads", "shm", "ipc", "ccl"
  uint64_t deadline_ms;    // the longest any wait may last; 0: TENON_DEADLINE_MS
} tenon_communicator_options;
// Fields up to `device` must be there. All ranks must ask for the same, but for `device`.
#define TENON_COMMUNICATOR_OPTIONS_INIT \
  { sizeof(tenon_communicator_options), NULL, -1, 1, 0, 0, NULL, 0 }

// Each of the following is collective, waits at most the deadline, and sets *made. `options` may be
// null: defaults.

// Ranks are processes that a launcher started: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
// MASTER_PORT (torchrun), or what Slurm and Open MPI set in their place. A lone rank where the
// environment names no launcher.
TENON_API tenon_code tenon_communicator_from_environment(const tenon_communicator_options* options,
                                                         tenon_communicator** made);

// Where ranks meet, as plain bytes that rank 0 makes and hands to the others by any means, as with
// ncclUniqueId. It holds a secret: who has it can join.
typedef struct tenon_unique_id {
  char bytes[128];
} tenon_unique_id;
// `address`: the name or IP address by which the other ranks reach this host, null: 127.0.0.1. A
// port that is free is kept for it until this process has made a communicator from it. Local.
TENON_API tenon_code tenon_unique_id_make(const char* address, tenon_unique_id* id);
// Rank 0 is in the process that made the id. An id serves one communicator.
TENON_API tenon_code tenon_communicator_from_id(const tenon_communicator_options* options,
                                                const tenon_unique_id* id, int32_t rank,
                                                int32_t num_ranks, tenon_communicator** made);

// How ranks tell each other a few bytes, where the caller has a way already (MPI, a store):
// all[r * bytes .. (r + 1) * bytes) = rank r's `mine`, in rank order, for r = 0 ... num_ranks - 1.
// Collective. Returns 0, or anything else when it failed; after that it is not called again. It
// must give up by itself after `timeout_ms`. Called only inside of calls of this communicator, its
// channels and boundaries, on their thread. `label` says what for.
typedef int32_t (*tenon_exchange)(void* context, const void* mine, void* all, uint64_t bytes,
                                  const char* label, uint64_t timeout_ms);
// `exchange` and `context` must stay valid until the communicator and all that was made of it are
// destroyed.
TENON_API tenon_code tenon_communicator_from_exchange(const tenon_communicator_options* options,
                                                      tenon_exchange exchange, void* context,
                                                      int32_t rank, int32_t num_ranks,
                                                      tenon_communicator** made);

// Ranks that are threads of this process: each takes another rank of one team, once. 1 to 8 ranks.
TENON_API tenon_code tenon_team_make(int32_t num_ranks, tenon_team** made);
// Ranks that nobody took have left then: who waits for them fails. The team may go before its
// communicators.
TENON_API tenon_code tenon_team_destroy(tenon_team* team);
TENON_API tenon_code tenon_communicator_from_team(const tenon_communicator_options* options,
                                                  tenon_team* team, int32_t rank,
                                                  tenon_communicator** made);

// Every handle keeps what it was made of: the order in which they are destroyed does not matter,
// and ranks need not destroy together. A null handle is fine and does nothing.
TENON_API tenon_code tenon_communicator_destroy(tenon_communicator* communicator);

typedef struct tenon_communicator_info {
  uint64_t size;
  int32_t rank, num_ranks;
  const char* target;     // of the device; valid for ever
  const char* transport;  // valid until the communicator is destroyed
  int32_t device;
  int32_t peer_pointers;  // 1: kernels address peers' memory, so that stages 1 and 2 are possible
  int32_t capturable;     // 1: calls may be recorded into a graph
  int32_t max_blocks;     // of a kernel that waits for peers
  int32_t shares_device;  // 1: ranks share a device somewhere
  int32_t starts_early;   // 1: kernels may start before the one in front has ended
  uint64_t deadline_ms;
} tenon_communicator_info;
// Fields up to `transport` must be there. Writes `size` bytes, no more.
#define TENON_COMMUNICATOR_INFO_INIT \
  { sizeof(tenon_communicator_info), 0, 0, NULL, NULL, 0, 0, 0, 0, 0, 0, 0 }
TENON_API tenon_code tenon_communicator_query(tenon_communicator* communicator,
                                              tenon_communicator_info* info);
// One line for each transport that was passed over, with the reason. A text, as above.
TENON_API tenon_code tenon_communicator_refusals(tenon_communicator* communicator, char* text,
                                                 uint64_t* bytes);

// TENON_OK, or the first fault of this rank: "rank 1 waited for rank 0 in ...". Where a call only
// launches, this is where its failure shows, once its stream has got there. After the first fault
// every wait of every rank ends at once: destroy, and make anew.
TENON_API tenon_code tenon_communicator_health(tenon_communicator* communicator);
// Tells every rank to give up: their waits end with TENON_PEER_LOST and this text. null: no text.
TENON_API tenon_code tenon_communicator_abort(tenon_communicator* communicator, const char* why);
// Returns when every rank has called it. Of hosts: streams are not waited for. Collective.
TENON_API tenon_code tenon_communicator_barrier(tenon_communicator* communicator);
// Gives the memory of all mailboxes back to the devices until tenon_communicator_resume(), which
// maps fresh ones. Collective, with idle streams; graphs captured before are void.
TENON_API tenon_code tenon_communicator_suspend(tenon_communicator* communicator);
TENON_API tenon_code tenon_communicator_resume(tenon_communicator* communicator);

// Streams: `stream` is the caller's cudaStream_t or hipStream_t on the communicator's device, null
// for the default stream; it is borrowed for the call and may be capturing. Host targets have none:
// null, and the work is done when the call returns. Tensors must stay until the stream got there.

// out = sum over ranks of in, in rank order in fp32, rounded once; bf16 or f16, without gaps, equal
// shapes; out may be in. Collective.
TENON_API tenon_code tenon_all_reduce(tenon_communicator* communicator, const tenon_tensor* in,
                                      const tenon_tensor* out, void* stream);
// out[r] = rank r's in: out is [num_ranks, shape of in]. Any type, without gaps. Collective.
TENON_API tenon_code tenon_all_gather(tenon_communicator* communicator, const tenon_tensor* in,
                                      const tenon_tensor* out, void* stream);

// --- Channels: what the boundaries of one stream share -------------------------------------------

typedef struct tenon_channel_spec {
  uint64_t size;
  int32_t hidden, max_rows;  // of every boundary on it, at most
  int32_t dtype;             // TENON_BF16 or TENON_F16
  // Not 0: after variant two_shot the residual of a row is current on the row's owner only, which
  // saves its way to the others; then all boundaries of the channel must run alike. 0: every rank
  // holds the whole residual after every call.
  int32_t sharded_residual;
  const char* label;  // in messages; null: "boundary"
} tenon_channel_spec;
// Fields up to `max_rows` must be there.
#define TENON_CHANNEL_SPEC_INIT \
  { sizeof(tenon_channel_spec), 0, 0, TENON_BF16, 0, NULL }
// Mailboxes and scratch rows for boundaries that run one after the other on one stream. Collective.
TENON_API tenon_code tenon_channel_make(tenon_communicator* communicator,
                                        const tenon_channel_spec* spec, tenon_channel** made);
TENON_API tenon_code tenon_channel_destroy(tenon_channel* channel);
// The memory of the device that it holds, in bytes.
TENON_API tenon_code tenon_channel_bytes(tenon_channel* channel, uint64_t* bytes);

// --- Boundaries ----------------------------------------------------------------------------------

// Sum over ranks, residual, RMSNorm, group quantisation: the arithmetic is docs/boundary.md.
typedef struct tenon_boundary_spec {
  uint64_t size;
  int32_t hidden, max_rows;   // a row's elements; the most rows of a call
  int32_t dtype;              // of rows: TENON_BF16 or TENON_F16
  int32_t weight_dtype;       // that of rows, or TENON_F32; -1: that of rows
  float eps;                  // finite, 0 or more
  float offset;               // added to the weight: 1 for zero-centred norms, else 0
  int32_t fresh_residual;     // not 0: the residual is written, not read
  int32_t want_rows;          // not 0: 16-bit rows are formed
  int32_t want_fp8;           // not 0: fp8 codes and scales are formed
  int32_t fp8;                // TENON_E4M3FN or TENON_E4M3FNUZ
  int32_t group;              // elements that share a scale: 32, 64, 128 or 256
  int32_t layout;             // TENON_SCALES_...
  int32_t force_stage;        // 0: the most fused one that is possible; 1, 2 or 3: this or none
  int32_t max_stage;          // the most fused stage allowed: 1, 2 or 3
  const char* force_variant;  // of stage 1, "one_shot", "two_shot", ...; null leaves the choice
  const char* site;           // for tables and messages; null: "boundary"
} tenon_boundary_spec;
// Fields up to `max_rows` must be there. TENON_FORCE_STAGE and TENON_MAX_STAGE apply besides.
#define TENON_BOUNDARY_SPEC_INIT                                                                \
  {                                                                                             \
    sizeof(tenon_boundary_spec), 0, 0, TENON_BF16, -1, 1e-6f, 0.0f, 0, 1, 1, TENON_E4M3FN, 128, \
        TENON_SCALES_ROW, 0, 1, NULL, NULL                                                      \
  }
// Collective: the ranks compare specs and plans. A difference is the same error on all of them,
// after which the communicator works on.
TENON_API tenon_code tenon_boundary_make(tenon_channel* channel, const tenon_boundary_spec* spec,
                                         tenon_boundary** made);
TENON_API tenon_code tenon_boundary_destroy(tenon_boundary* boundary);

// The tensors of a call, all on the communicator's device. Rows start at multiples of 16 bytes.
// What is written overlaps nothing else. Outputs that the spec does not form are null.
typedef struct tenon_boundary_call {
  uint64_t size;
  const tenon_tensor* partial;   // [rows, hidden], this rank's addend, without gaps
  const tenon_tensor* residual;  // [rows, hidden], read and overwritten
  const tenon_tensor* weight;    // [hidden]
  const tenon_tensor* rows;      // out, [rows, hidden] of the element type
  const tenon_tensor* codes;     // out, [rows, hidden], fp8
  const tenon_tensor* scales;    // out, of exactly the shape that tenon_scale_shape() gives
  void* stream;                  // see above
} tenon_boundary_call;
// All fields must be there.
#define TENON_BOUNDARY_CALL_INIT \
  { sizeof(tenon_boundary_call), NULL, NULL, NULL, NULL, NULL, NULL, NULL }
// Collective: every rank with the same rows; 0 rows do nothing. Tensors that do not fit are refused
// before anything is launched. Launches only, and allocates nothing; may be captured. On host
// targets a fault of this call is returned, on devices it shows in tenon_communicator_health().
TENON_API tenon_code tenon_boundary_run(tenon_boundary* boundary, const tenon_boundary_call* call);

// --- What boundaries would do, and did -----------------------------------------------------------

// The shape of the scales for rows of `hidden` in groups, and their type: TENON_F32, or -1 for the
// i32 of TENON_SCALES_UE8M0_PACKED. `dtype` may be null. Local.
TENON_API tenon_code tenon_scale_shape(int32_t layout, int64_t rows, int64_t hidden, int32_t group,
                                       int64_t shape[2], int32_t* dtype);

// How calls with up to `max_rows` rows run (a row bucket). Texts are valid until the boundary is
// destroyed.
typedef struct tenon_plan {
  uint64_t size;
  int32_t max_rows;
  int32_t stage;           // 1 one kernel, 2 two kernels, 3 generic
  const char* variant;     // of the deciding kernel
  const char* reason;      // why not a more fused stage; "" when fully fused
  int32_t blocks;          // of the deciding kernel: the fused one, or the norm
  int32_t threads;         // of each block
  uint64_t mailbox_bytes;  // of the mailbox that this stage uses
  uint64_t calls;          // so far; a replayed graph makes none
} tenon_plan;
// Fields up to `reason` must be there. Writes `size` bytes, no more.
#define TENON_PLAN_INIT \
  { sizeof(tenon_plan), 0, 0, NULL, NULL, 0, 0, 0, 0 }
// The plan of a call with `rows` rows, 1 to max_rows. Local.
TENON_API tenon_code tenon_boundary_plan(tenon_boundary* boundary, int32_t rows, tenon_plan* plan);
// Calls so far in stages 1, 2 and 3. Local.
TENON_API tenon_code tenon_boundary_counts(tenon_boundary* boundary, uint64_t counts[3]);
// A table of all row buckets: rows, stage, variant, launch shape, calls, and why not a more fused
// stage. A text, as above. Local.
TENON_API tenon_code tenon_boundary_explain(tenon_boundary* boundary, char* text, uint64_t* bytes);
// The same for bf16 boundaries of this size that need not exist, with fp8, with both and with rows
// alone as outputs. Collective: each is made and destroyed. A text, as above.
TENON_API tenon_code tenon_communicator_explain(tenon_communicator* communicator, int32_t hidden,
                                                int32_t max_rows, char* text, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif  // TENON_H
