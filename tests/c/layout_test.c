/* What interface 1 looked like when it was first given out: where each field of each struct lies,
 * and how many bytes the struct had. Fields may be added behind these; none of them may move, or a
 * program that was compiled with an older header passes its values to the wrong ones. Then every
 * function that takes a struct is called with the struct of that day. */
#include "tests/c/support.h"

typedef struct place {
  const char* name;
  size_t offset, bytes, first_offset, first_bytes;
} place;

#define FIELD(type, name, offset, bytes) \
  { #type "." #name, offsetof(type, name), sizeof(((type*)0)->name), offset, bytes }

static const place kPlaces[] = {
    FIELD(tenon_tensor, data, 0, 8),
    FIELD(tenon_tensor, device_type, 8, 4),
    FIELD(tenon_tensor, device_id, 12, 4),
    FIELD(tenon_tensor, num_dims, 16, 4),
    FIELD(tenon_tensor, type_code, 20, 1),
    FIELD(tenon_tensor, type_bits, 21, 1),
    FIELD(tenon_tensor, type_lanes, 22, 2),
    FIELD(tenon_tensor, shape, 24, 8),
    FIELD(tenon_tensor, strides, 32, 8),
    FIELD(tenon_tensor, byte_offset, 40, 8),
    FIELD(tenon_communicator_options, size, 0, 8),
    FIELD(tenon_communicator_options, target, 8, 8),
    FIELD(tenon_communicator_options, device, 16, 4),
    FIELD(tenon_communicator_options, concurrent, 20, 4),
    FIELD(tenon_communicator_options, only_exchanges, 24, 4),
    FIELD(tenon_communicator_options, vendor_sum, 28, 4),
    FIELD(tenon_communicator_options, transport, 32, 8),
    FIELD(tenon_communicator_options, deadline_ms, 40, 8),
    FIELD(tenon_unique_id, bytes, 0, 128),
    FIELD(tenon_communicator_info, size, 0, 8),
    FIELD(tenon_communicator_info, rank, 8, 4),
    FIELD(tenon_communicator_info, num_ranks, 12, 4),
    FIELD(tenon_communicator_info, target, 16, 8),
    FIELD(tenon_communicator_info, transport, 24, 8),
    FIELD(tenon_communicator_info, device, 32, 4),
    FIELD(tenon_communicator_info, peer_pointers, 36, 4),
    FIELD(tenon_communicator_info, capturable, 40, 4),
    FIELD(tenon_communicator_info, max_blocks, 44, 4),
    FIELD(tenon_communicator_info, shares_device, 48, 4),
    FIELD(tenon_communicator_info, starts_early, 52, 4),
    FIELD(tenon_communicator_info, deadline_ms, 56, 8),
    FIELD(tenon_channel_spec, size, 0, 8),
    FIELD(tenon_channel_spec, hidden, 8, 4),
    FIELD(tenon_channel_spec, max_rows, 12, 4),
    FIELD(tenon_channel_spec, dtype, 16, 4),
    FIELD(tenon_channel_spec, sharded_residual, 20, 4),
    FIELD(tenon_channel_spec, label, 24, 8),
    FIELD(tenon_boundary_spec, size, 0, 8),
    FIELD(tenon_boundary_spec, hidden, 8, 4),
    FIELD(tenon_boundary_spec, max_rows, 12, 4),
    FIELD(tenon_boundary_spec, dtype, 16, 4),
    FIELD(tenon_boundary_spec, weight_dtype, 20, 4),
    FIELD(tenon_boundary_spec, eps, 24, 4),
    FIELD(tenon_boundary_spec, offset, 28, 4),
    FIELD(tenon_boundary_spec, fresh_residual, 32, 4),
    FIELD(tenon_boundary_spec, want_rows, 36, 4),
    FIELD(tenon_boundary_spec, want_fp8, 40, 4),
    FIELD(tenon_boundary_spec, fp8, 44, 4),
    FIELD(tenon_boundary_spec, group, 48, 4),
    FIELD(tenon_boundary_spec, layout, 52, 4),
    FIELD(tenon_boundary_spec, force_stage, 56, 4),
    FIELD(tenon_boundary_spec, max_stage, 60, 4),
    FIELD(tenon_boundary_spec, force_variant, 64, 8),
    FIELD(tenon_boundary_spec, site, 72, 8),
    FIELD(tenon_boundary_call, size, 0, 8),
    FIELD(tenon_boundary_call, partial, 8, 8),
    FIELD(tenon_boundary_call, residual, 16, 8),
    FIELD(tenon_boundary_call, weight, 24, 8),
    FIELD(tenon_boundary_call, rows, 32, 8),
    FIELD(tenon_boundary_call, codes, 40, 8),
    FIELD(tenon_boundary_call, scales, 48, 8),
    FIELD(tenon_boundary_call, stream, 56, 8),
    FIELD(tenon_plan, size, 0, 8),
    FIELD(tenon_plan, max_rows, 8, 4),
    FIELD(tenon_plan, stage, 12, 4),
    FIELD(tenon_plan, variant, 16, 8),
    FIELD(tenon_plan, reason, 24, 8),
    FIELD(tenon_plan, blocks, 32, 4),
    FIELD(tenon_plan, threads, 36, 4),
    FIELD(tenon_plan, mailbox_bytes, 40, 8),
    FIELD(tenon_plan, calls, 48, 8),
};

/* Bytes of the structs with a size, on that day. */
enum { kOptions = 48, kInfo = 64, kChannel = 32, kBoundary = 80, kCall = 64, kPlan = 56 };

static int test_places(void) {
  int num_wrong = 0;
  for (size_t i = 0; i < sizeof kPlaces / sizeof kPlaces[0]; ++i) {
    const place* at = &kPlaces[i];
    if (at->offset == at->first_offset && at->bytes == at->first_bytes) continue;
    fprintf(stderr, "%s lies at %d, %d bytes; in interface 1 at %d, %d bytes\n", at->name,
            (int)at->offset, (int)at->bytes, (int)at->first_offset, (int)at->first_bytes);
    ++num_wrong;
  }
  return num_wrong;
}

/* A copy of the first `bytes` of a struct, which says that it has no more. Exactly as long: a
 * sanitizer sees who reads on. */
static void* of_that_day(const void* whole, size_t bytes) {
  const uint64_t size = bytes;
  void* old = zeros(bytes);
  memcpy(old, whole, bytes);
  memcpy(old, &size, sizeof size);
  return old;
}

static void test_structs_of_that_day(void) {
  tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
  tenon_communicator_info info = TENON_COMMUNICATOR_INFO_INIT;
  tenon_channel_spec channel_spec = TENON_CHANNEL_SPEC_INIT;
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  tenon_plan plan = TENON_PLAN_INIT;
  enum { kHidden = 256 };
  uint16_t addend[kHidden], residual[kHidden], weight[kHidden], rows[kHidden];
  held_tensor held[4];
  tenon_team* team = NULL;
  tenon_communicator* communicator = NULL;
  tenon_channel* channel = NULL;
  tenon_boundary* boundary = NULL;
  options.deadline_ms = 12345;
  channel_spec.hidden = spec.hidden = kHidden;
  channel_spec.max_rows = spec.max_rows = 1;
  spec.want_fp8 = 0;
  for (int i = 0; i < kHidden; ++i) {
    addend[i] = weight[i] = 0x3f80; /* bf16 1 */
    residual[i] = rows[i] = 0;
  }
  call.partial = hold(&held[0], addend, 16, 1, kHidden);
  call.residual = hold(&held[1], residual, 16, 1, kHidden);
  call.weight = hold(&held[2], weight, 16, kHidden, 0);
  call.rows = hold(&held[3], rows, 16, 1, kHidden);

  void* old[6] = {of_that_day(&options, kOptions),
                  of_that_day(&info, kInfo),
                  of_that_day(&channel_spec, kChannel),
                  of_that_day(&spec, kBoundary),
                  of_that_day(&call, kCall),
                  of_that_day(&plan, kPlan)};
  CHECK_OK(tenon_team_make(1, &team));
  CHECK_OK(tenon_communicator_from_team(old[0], team, 0, &communicator));
  CHECK_OK(tenon_communicator_query(communicator, old[1]));
  CHECK_OK(tenon_channel_make(communicator, old[2], &channel));
  CHECK_OK(tenon_boundary_make(channel, old[3], &boundary));
  CHECK_OK(tenon_boundary_run(boundary, old[4]));
  CHECK_OK(tenon_boundary_plan(boundary, 1, old[5]));

  memcpy(&info, old[1], kInfo);
  memcpy(&plan, old[5], kPlan);
  CHECK(info.size == kInfo && info.num_ranks == 1 && info.deadline_ms == 12345);
  CHECK(plan.size == kPlan && plan.stage >= 1 && plan.calls == 1);
  for (int i = 0; i < kHidden; ++i) CHECK(residual[i] == 0x3f80 && rows[i] == 0x3f80);
  CHECK_OK(tenon_boundary_destroy(boundary));
  CHECK_OK(tenon_channel_destroy(channel));
  CHECK_OK(tenon_communicator_destroy(communicator));
  CHECK_OK(tenon_team_destroy(team));
  for (int i = 0; i < 6; ++i) free(old[i]);
}

int main(void) {
  CHECK(TENON_ABI == 1 && tenon_abi() == 1); /* another number: another table, beside this one */
  if (test_places() != 0) return 1;
  test_structs_of_that_day();
  return 0;
}
