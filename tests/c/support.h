/* What the tests in C share: expectations, tensors, and one rank of a boundary against the oracle.
 */
#ifndef TENON_TESTS_C_SUPPORT_H
#define TENON_TESTS_C_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/c/tenon.h"
#include "tests/c/oracle.h"

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, \
              tenon_last_error());                                                             \
      exit(1);                                                                                 \
    }                                                                                          \
  } while (0)
#define CHECK_OK(call) CHECK((call) == TENON_OK)

/* A tensor of host memory; unsigned integers stand for bf16, fp8 and the rest. */
typedef struct held_tensor {
  tenon_tensor tensor;
  int64_t shape[2];
} held_tensor;

static const tenon_tensor* hold(held_tensor* held, void* data, int bits, int64_t rows,
                                int64_t columns) {
  memset(held, 0, sizeof *held);
  held->shape[0] = rows;
  held->shape[1] = columns;
  held->tensor.data = data;
  held->tensor.device_type = 1;
  held->tensor.num_dims = columns > 0 ? 2 : 1;
  held->tensor.type_code = 1;
  held->tensor.type_bits = (uint8_t)bits;
  held->tensor.type_lanes = 1;
  held->tensor.shape = held->shape;
  return &held->tensor;
}

static void* zeros(size_t bytes) {
  void* memory = calloc(1, bytes);
  CHECK(memory != NULL);
  return memory;
}

/* Functions of CUDA's runtime for tests whose tensors lie on a GPU, found at run time, so that no
 * header of CUDA is needed; all null: tensors lie in host memory. */
typedef struct gpu_functions {
  int (*use)(int device);
  int (*current)(int* device);
  int (*allocate)(void** made, size_t bytes);
  int (*release)(void* made);
  int (*make_stream)(void** made, unsigned flags);
  int (*destroy_stream)(void* stream);
  int (*copy)(void* to, const void* from, size_t bytes, int kind, void* stream);
  int (*wait)(void* stream);
} gpu_functions;
static gpu_functions gpu;

enum { kToDevice = 1, kToHost = 2, kWaitsForNoOther = 1 };

/* Where a rank's tensors lie and its calls run. On a GPU that it has alone the stream is the
 * default one, null. Ranks that share a GPU need streams of their own: calls of two ranks in one
 * stream would wait for each other. */
typedef struct rank_place {
  tenon_communicator_info info;
  void* stream;
} rank_place;

static inline rank_place place_of(tenon_communicator* communicator) {
  const tenon_communicator_info none = TENON_COMMUNICATOR_INFO_INIT;
  rank_place place;
  place.info = none;
  place.stream = NULL;
  CHECK_OK(tenon_communicator_query(communicator, &place.info));
  if (gpu.make_stream != NULL && place.info.shares_device)
    CHECK(gpu.make_stream(&place.stream, kWaitsForNoOther) == 0);
  return place;
}

static inline void leave_place(const rank_place* place) {
  if (place->stream != NULL) CHECK(gpu.destroy_stream(place->stream) == 0);
}

/* Until what the rank's stream was given is done. Whatever tenon did before, the thread's current
 * device is still the rank's. */
static inline void wait_for(const rank_place* place) {
  int device = -1;
  if (gpu.wait == NULL) return;
  CHECK(gpu.current(&device) == 0 && device == place->info.device);
  CHECK(gpu.wait(place->stream) == 0);
}

/* Host memory, and where the library finds it: there, or on the GPU that this thread uses. */
typedef struct placed {
  void *host, *at;
  size_t bytes;
} placed;

static inline placed memory_of(size_t bytes) {
  placed made = {zeros(bytes), NULL, bytes};
  made.at = made.host;
  if (gpu.allocate != NULL) CHECK(gpu.allocate(&made.at, bytes) == 0);
  return made;
}

static inline void put(const placed* what, const rank_place* place) {
  if (what->at == what->host) return;
  CHECK(gpu.copy(what->at, what->host, what->bytes, kToDevice, place->stream) == 0);
}

static inline void get(const placed* what, const rank_place* place) {
  if (what->at == what->host) return;
  CHECK(gpu.copy(what->host, what->at, what->bytes, kToHost, place->stream) == 0);
  wait_for(place);
}

static inline void leave(const placed* what) {
  if (what->at != what->host) CHECK(gpu.release(what->at) == 0);
  free(what->host);
}

static inline void lies_on(held_tensor* held, const rank_place* place) {
  if (gpu.allocate == NULL) return;
  held->tensor.device_type = 2; /* CUDA */
  held->tensor.device_id = place->info.device;
}

/* Makes a channel and a boundary of `shape`, runs it twice, and judges what it wrote. */
static inline void run_case(tenon_communicator* communicator, const rank_place* place,
                            const oracle_case* shape, int force_stage) {
  const int rank = place->info.rank;
  const size_t elements = (size_t)shape->rows * (size_t)shape->hidden;
  int64_t scale_shape[2] = {0, 0};
  CHECK_OK(tenon_scale_shape(shape->layout, shape->rows, shape->hidden, shape->group, scale_shape,
                             NULL));
  const size_t scale_bytes = 4 * (size_t)scale_shape[0] * (size_t)scale_shape[1];
  enum { kAddend, kResidual, kWeight, kRows, kCodes, kScales, kCount };
  const size_t sizes[kCount] = {2 * elements, 2 * elements, 2 * (size_t)shape->hidden,
                                2 * elements, elements,     scale_bytes};
  placed memory[kCount];
  for (int i = 0; i < kCount; ++i) memory[i] = memory_of(sizes[i]);

  tenon_channel_spec channel_spec = TENON_CHANNEL_SPEC_INIT;
  channel_spec.hidden = shape->hidden;
  channel_spec.max_rows = shape->rows;
  tenon_channel* channel = NULL;
  CHECK_OK(tenon_channel_make(communicator, &channel_spec, &channel));
  uint64_t bytes = 0;
  CHECK_OK(tenon_channel_bytes(channel, &bytes));
  CHECK(bytes >= 2 * elements);

  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  spec.hidden = shape->hidden;
  spec.max_rows = shape->rows;
  spec.eps = shape->eps;
  spec.offset = shape->offset;
  spec.fresh_residual = shape->fresh_residual;
  spec.group = shape->group;
  spec.layout = shape->layout;
  spec.force_stage = force_stage;
  tenon_boundary* boundary = NULL;
  CHECK_OK(tenon_boundary_make(channel, &spec, &boundary));

  held_tensor held[6];
  tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  call.partial = hold(&held[kAddend], memory[kAddend].at, 16, shape->rows, shape->hidden);
  call.residual = hold(&held[kResidual], memory[kResidual].at, 16, shape->rows, shape->hidden);
  call.weight = hold(&held[kWeight], memory[kWeight].at, 16, shape->hidden, 0);
  call.rows = hold(&held[kRows], memory[kRows].at, 16, shape->rows, shape->hidden);
  call.codes = hold(&held[kCodes], memory[kCodes].at, 8, shape->rows, shape->hidden);
  call.scales = hold(&held[kScales], memory[kScales].at, 32, scale_shape[0], scale_shape[1]);
  for (int i = 0; i < kCount; ++i) lies_on(&held[i], place);
  call.stream = place->stream;
  for (int repeat = 0; repeat < 2; ++repeat) {
    char why[512] = "";
    oracle_inputs(shape, rank, memory[kAddend].host, memory[kResidual].host, memory[kWeight].host);
    for (int i = kRows; i < kCount; ++i) memset(memory[i].host, 0x55, sizes[i]);
    for (int i = 0; i < kCount; ++i) put(&memory[i], place);
    CHECK_OK(tenon_boundary_run(boundary, &call));
    wait_for(place);
    CHECK_OK(tenon_communicator_health(communicator));
    for (int i = kResidual; i < kCount; ++i) get(&memory[i], place);
    if (oracle_judge(shape, memory[kResidual].host, memory[kRows].host, memory[kCodes].host,
                     memory[kScales].host, scale_bytes, why) != 0) {
      fprintf(stderr, "rank %d: %s\n", rank, why);
      exit(1);
    }
  }

  tenon_plan plan = TENON_PLAN_INIT;
  uint64_t counts[3] = {0, 0, 0};
  char text[4096];
  uint64_t text_bytes = sizeof text;
  CHECK_OK(tenon_boundary_plan(boundary, shape->rows, &plan));
  CHECK(plan.stage >= 1 && plan.stage <= 3 && plan.calls == 2 && plan.variant[0] != 0);
  CHECK(force_stage == 0 || plan.stage == force_stage);
  CHECK_OK(tenon_boundary_counts(boundary, counts));
  CHECK(counts[plan.stage - 1] == 2 && counts[0] + counts[1] + counts[2] == 2);
  CHECK_OK(tenon_boundary_explain(boundary, text, &text_bytes));
  CHECK(strstr(text, plan.variant) != NULL && text_bytes == strlen(text) + 1);

  /* In the wrong order, which does not matter: what is made of something keeps it. */
  CHECK_OK(tenon_channel_destroy(channel));
  CHECK_OK(tenon_boundary_run(boundary, &call));
  wait_for(place);
  CHECK_OK(tenon_boundary_destroy(boundary));
  for (int i = 0; i < kCount; ++i) leave(&memory[i]);
}

#endif
