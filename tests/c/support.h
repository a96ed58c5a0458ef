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

/* Makes a channel and a boundary of `shape`, runs it twice, and judges what it wrote. */
static inline void run_case(tenon_communicator* communicator, const oracle_case* shape, int rank,
                            int force_stage) {
  const size_t elements = (size_t)shape->rows * (size_t)shape->hidden;
  uint16_t* addend = zeros(2 * elements);
  uint16_t* residual = zeros(2 * elements);
  uint16_t* weight = zeros(2 * (size_t)shape->hidden);
  uint16_t* rows = zeros(2 * elements);
  uint8_t* codes = zeros(elements);
  int64_t scale_shape[2] = {0, 0};
  CHECK_OK(tenon_scale_shape(shape->layout, shape->rows, shape->hidden, shape->group, scale_shape,
                             NULL));
  const size_t scale_bytes = 4 * (size_t)scale_shape[0] * (size_t)scale_shape[1];
  uint8_t* scales = zeros(scale_bytes);

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
  call.partial = hold(&held[0], addend, 16, shape->rows, shape->hidden);
  call.residual = hold(&held[1], residual, 16, shape->rows, shape->hidden);
  call.weight = hold(&held[2], weight, 16, shape->hidden, 0);
  call.rows = hold(&held[3], rows, 16, shape->rows, shape->hidden);
  call.codes = hold(&held[4], codes, 8, shape->rows, shape->hidden);
  call.scales = hold(&held[5], scales, 32, scale_shape[0], scale_shape[1]);
  for (int repeat = 0; repeat < 2; ++repeat) {
    char why[512] = "";
    oracle_inputs(shape, rank, addend, residual, weight);
    memset(rows, 0x55, 2 * elements);
    memset(codes, 0x55, elements);
    memset(scales, 0x55, scale_bytes);
    CHECK_OK(tenon_boundary_run(boundary, &call));
    if (oracle_judge(shape, residual, rows, codes, scales, scale_bytes, why) != 0) {
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
  CHECK_OK(tenon_boundary_destroy(boundary));
  free(addend);
  free(residual);
  free(weight);
  free(rows);
  free(codes);
  free(scales);
}

#endif
