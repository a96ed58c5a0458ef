/* What the C interface refuses, and how: every wrong argument is a code and a sentence, never the
 * end of the process. Also structs of other sizes, handles that ended, other threads, fork, the
 * log. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/c/support.h"

/* `call` fails with `code`, and the sentence has `words` in it. */
#define REFUSED(call, code, words)                                                               \
  do {                                                                                           \
    const tenon_code got = (call);                                                               \
    if (got != (code) || strstr(tenon_last_error(), words) == NULL) {                            \
      fprintf(stderr, "%s:%d: %s\n  gave %s: %s\n  wanted %s with \"%s\"\n", __FILE__, __LINE__, \
              #call, tenon_code_name(got), tenon_last_error(), tenon_code_name(code), words);    \
      exit(1);                                                                                   \
    }                                                                                            \
  } while (0)
#define BAD(call, words) REFUSED(call, TENON_INVALID_ARGUMENT, words)

enum { kRows = 4, kHidden = 256 };

static tenon_communicator* lone_rank(void) {
  tenon_team* team = NULL;
  tenon_communicator* made = NULL;
  CHECK_OK(tenon_team_make(1, &team));
  CHECK_OK(tenon_communicator_from_team(NULL, team, 0, &made));
  CHECK_OK(tenon_team_destroy(team));
  return made;
}

static tenon_channel* channel_of(tenon_communicator* communicator) {
  tenon_channel_spec spec = TENON_CHANNEL_SPEC_INIT;
  tenon_channel* made = NULL;
  spec.hidden = kHidden;
  spec.max_rows = kRows;
  CHECK_OK(tenon_channel_make(communicator, &spec, &made));
  return made;
}

static tenon_boundary_spec good_spec(void) {
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  spec.hidden = kHidden;
  spec.max_rows = kRows;
  return spec;
}

static void test_constants(void) {
  CHECK(tenon_abi() == TENON_ABI);
  CHECK(tenon_version()[0] != 0 && tenon_commit()[0] != 0);
  CHECK(strstr(tenon_build_info(), "targets cpu") != NULL);
  CHECK(strcmp(tenon_code_name(TENON_PEER_LOST), "peer lost") == 0);
  CHECK(strcmp(tenon_code_name(99), "unknown code") == 0);
  CHECK(strcmp(tenon_code_name(-1), "unknown code") == 0);
}

static void test_texts(void) {
  uint64_t bytes = 0;
  char text[8] = "unused";
  CHECK_OK(tenon_env_text(NULL, &bytes));
  CHECK(bytes > 100);
  const uint64_t whole = bytes;
  bytes = sizeof text;
  CHECK_OK(tenon_env_text(text, &bytes));
  CHECK(bytes == whole && strcmp(text, "TENON_L") == 0);
  char* all = zeros((size_t)whole);
  CHECK_OK(tenon_env_text(all, &bytes));
  CHECK(strlen(all) + 1 == whole && strstr(all, "TENON_MAX_STAGE=") != NULL);
  free(all);
  bytes = 5;
  BAD(tenon_env_text(NULL, &bytes), "accepted: 0");
  BAD(tenon_env_text(text, NULL), "null");
}

static void test_communicators(void) {
  tenon_team* team = NULL;
  tenon_communicator* made = NULL;
  tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
  tenon_unique_id id;
  int32_t count = 0;
  memset(&id, 7, sizeof id);
  BAD(tenon_team_make(0, &team), "rank 0 of 0; accepted: 1 to 8 ranks");
  BAD(tenon_team_make(9, &team), "accepted: 1 to 8 ranks");
  BAD(tenon_team_make(2, NULL), "null");
  CHECK_OK(tenon_team_make(2, &team));
  BAD(tenon_communicator_from_team(NULL, team, 2, &made), "rank 2 of 2");
  BAD(tenon_communicator_from_team(NULL, team, -1, &made), "rank -1 of 2");
  BAD(tenon_communicator_from_team(NULL, team, 0, NULL), "null");
  BAD(tenon_communicator_from_team(NULL, NULL, 0, &made), "the team is null");
  options.target = "gpu";
  BAD(tenon_communicator_from_team(&options, team, 0, &made), "\"gpu\"; accepted: cpu");
  options.target = NULL;
  options.device = -2;
  BAD(tenon_communicator_from_team(&options, team, 0, &made), "the device is -2");
  options.device = -1;
  options.deadline_ms = 86400001;
  BAD(tenon_communicator_from_team(&options, team, 0, &made), "accepted: 1 to 86400000");
  options.deadline_ms = 100;
  options.size = 8;
  BAD(tenon_communicator_from_team(&options, team, 0, &made), "the size of the tenon_communicator");
  options.size = sizeof options;
  /* Nobody else comes: the rank is taken, and waits until the deadline. */
  REFUSED(tenon_communicator_from_team(&options, team, 0, &made), TENON_TIMEOUT, "deadline");
  BAD(tenon_communicator_from_team(&options, team, 0, &made), "is taken already");
  CHECK_OK(tenon_team_destroy(team));
  BAD(tenon_communicator_from_team(&options, team, 1, &made), "no team that lives");

  BAD(tenon_communicator_from_id(&options, &id, 0, 1, &made), "unchanged");
  BAD(tenon_communicator_from_id(&options, NULL, 0, 1, &made), "the id is null");
  BAD(tenon_communicator_from_exchange(&options, NULL, NULL, 0, 1, &made), "the exchange is null");
  BAD(tenon_unique_id_make("203.0.113.1", &id), "not an address of this host");
  BAD(tenon_unique_id_make("", &id), "accepted: 1 to");
  CHECK_OK(tenon_unique_id_make(NULL, &id));
  CHECK_OK(tenon_communicator_from_id(&options, &id, 0, 1, &made));
  options.transport = "pigeons";
  BAD(tenon_communicator_from_environment(&options, &made), "pigeons");
  options.transport = NULL;
  options.concurrent = 17;
  BAD(tenon_communicator_from_environment(&options, &made), "17 concurrent channels");

  CHECK_OK(tenon_device_count("cpu", &count));
  CHECK(count >= 1);
  BAD(tenon_device_count("gpu", &count), "accepted: cpu");
  BAD(tenon_device_count(NULL, &count), "null");
  BAD(tenon_communicator_query(made, NULL), "null");
  CHECK_OK(tenon_communicator_destroy(made));
}

static int32_t failing_exchange(void* context, const void* mine, void* all, uint64_t bytes,
                                const char* label, uint64_t timeout_ms) {
  (void)mine, (void)all, (void)bytes, (void)label, (void)timeout_ms;
  ++*(int*)context;
  return 42;
}

static void test_exchange_that_fails(void) {
  int calls = 0;
  tenon_communicator* made = NULL;
  REFUSED(tenon_communicator_from_exchange(NULL, failing_exchange, &calls, 0, 2, &made),
          TENON_PEER_LOST, "exchange returned 42");
  CHECK(calls == 1 && made == NULL);
}

static void test_specs(tenon_communicator* communicator, tenon_channel* channel) {
  static const struct {
    int offset;
    int32_t value;
    const char* words;
  } kBad[] = {
#define FIELD(name, value, words) {(int)offsetof(tenon_boundary_spec, name), value, words}
      FIELD(hidden, 0, "channel was made for"),
      FIELD(hidden, -256, "channel was made for"),
      FIELD(hidden, 2147483647, "channel was made for"),
      FIELD(max_rows, 0, "max_rows is 0"),
      FIELD(max_rows, 5, "5 rows"),
      FIELD(dtype, TENON_F32, "f32"),
      FIELD(dtype, 77, "dtype is 77"),
      FIELD(weight_dtype, TENON_F16, "weight"),
      FIELD(weight_dtype, -2, "weight_dtype is -2"),
      FIELD(fp8, TENON_BF16, "bf16"),
      FIELD(group, 0, "group is 0"),
      FIELD(group, 100, "100"),
      FIELD(layout, 3, "accepted: 0 to 2"),
      FIELD(layout, -1, "accepted: 0 to 2"),
      FIELD(force_stage, 4, "accepted: 0 to 3"),
      FIELD(max_stage, 0, "max_stage 0"),
      FIELD(max_stage, 9, "max_stage 9"),
#undef FIELD
  };
  tenon_boundary* made = NULL;
  for (size_t i = 0; i < sizeof kBad / sizeof kBad[0]; ++i) {
    tenon_boundary_spec spec = good_spec();
    memcpy((char*)&spec + kBad[i].offset, &kBad[i].value, sizeof kBad[i].value);
    const tenon_code got = tenon_boundary_make(channel, &spec, &made);
    if (got == TENON_OK || got == TENON_INTERNAL || made != NULL ||
        strstr(tenon_last_error(), kBad[i].words) == NULL) {
      fprintf(stderr, "spec %d: %s: %s\n  wanted \"%s\"\n", (int)i, tenon_code_name(got),
              tenon_last_error(), kBad[i].words);
      exit(1);
    }
  }
  tenon_boundary_spec spec = good_spec();
  char long_text[1000];
  memset(long_text, 'a', sizeof long_text - 1);
  long_text[sizeof long_text - 1] = 0;
  spec.site = long_text;
  BAD(tenon_boundary_make(channel, &spec, &made), "the site is longer");
  spec = good_spec();
  spec.force_variant = "three_shot";
  CHECK(tenon_boundary_make(channel, &spec, &made) != TENON_OK);
  CHECK(strstr(tenon_last_error(), "three_shot") != NULL);
  spec = good_spec();
  spec.eps = -1.0f;
  BAD(tenon_boundary_make(channel, &spec, &made), "eps is -1");
  spec.eps = 0.0f / (spec.eps + 1.0f); /* a NaN */
  BAD(tenon_boundary_make(channel, &spec, &made), "eps is");
  BAD(tenon_boundary_make(channel, NULL, &made), "tenon_boundary_spec is null");
  BAD(tenon_boundary_make(NULL, &spec, &made), "the channel is null");
  spec = good_spec();
  BAD(tenon_boundary_make(channel, &spec, NULL), "null");

  tenon_channel_spec channel_spec = TENON_CHANNEL_SPEC_INIT;
  tenon_channel* other = NULL;
  BAD(tenon_channel_make(communicator, &channel_spec, &other), "must be positive");
  channel_spec.hidden = channel_spec.max_rows = 2147483647;
  REFUSED(tenon_channel_make(communicator, &channel_spec, &other), TENON_OUT_OF_MEMORY, "");
  channel_spec.hidden = kHidden;
  channel_spec.dtype = TENON_E4M3FN;
  BAD(tenon_channel_make(communicator, &channel_spec, &other), "accepted: bf16, f16");
  BAD(tenon_channel_make(communicator, NULL, &other), "null");
  BAD(tenon_channel_make((tenon_communicator*)channel, &channel_spec, &other),
      "a channel was passed where a communicator is accepted");
}

/* A boundary is run with one thing changed at a time. */
typedef struct run_state {
  uint16_t partial[kRows * kHidden], residual[kRows * kHidden], weight[kHidden],
      rows[kRows * kHidden];
  uint8_t codes[kRows * kHidden];
  float scales[kRows * kHidden / 128];
  held_tensor held[6];
  tenon_boundary_call call;
} run_state;

static run_state* good_call(run_state* state) {
  const tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  memset(state, 0, sizeof *state);
  state->call = call;
  state->call.partial = hold(&state->held[0], state->partial, 16, kRows, kHidden);
  state->call.residual = hold(&state->held[1], state->residual, 16, kRows, kHidden);
  state->call.weight = hold(&state->held[2], state->weight, 16, kHidden, 0);
  state->call.rows = hold(&state->held[3], state->rows, 16, kRows, kHidden);
  state->call.codes = hold(&state->held[4], state->codes, 8, kRows, kHidden);
  state->call.scales = hold(&state->held[5], state->scales, 32, kRows, kHidden / 128);
  return state;
}

static void test_calls(tenon_boundary* boundary) {
  run_state* state = NULL;
  CHECK(posix_memalign((void**)&state, 64, sizeof *state) == 0);
  CHECK_OK(tenon_boundary_run(boundary, &good_call(state)->call));
#define WITH(change, words)                                 \
  do {                                                      \
    good_call(state);                                       \
    change;                                                 \
    BAD(tenon_boundary_run(boundary, &state->call), words); \
  } while (0)
  WITH(state->call.partial = NULL, "partial is null");
  WITH(state->call.residual = NULL, "residual is null");
  WITH(state->call.weight = NULL, "weight is null");
  WITH(state->call.rows = NULL, "the outputs passed");
  WITH(state->call.codes = NULL, "codes is null");
  WITH(state->call.scales = NULL, "scales is null");
  WITH((state->call.codes = NULL, state->call.scales = NULL), "the outputs passed");
  WITH(state->call.stream = state, "has none of a vendor's");
  WITH(state->held[0].tensor.device_type = 2, "cuda:0; accepted: memory of cpu:0");
  WITH(state->held[0].tensor.device_type = 3, "pinned host memory");
  WITH(state->held[0].tensor.device_type = 99, "DLPack device 99");
  WITH(state->held[0].tensor.device_id = 4, "host memory number 4");
  WITH(state->held[0].tensor.num_dims = 1, "addend");
  WITH(state->held[0].tensor.num_dims = 5, "5 dimensions");
  WITH(state->held[0].tensor.num_dims = -1, "-1 dimensions");
  WITH(state->held[0].tensor.num_dims = 0, "addend");
  WITH(state->held[0].tensor.shape = NULL, "no shape");
  WITH(state->held[0].tensor.data = NULL, "has no memory");
  WITH(state->held[0].tensor.byte_offset = 2, "16 bytes");
  WITH(state->held[0].tensor.type_bits = 8, "u8");
  WITH(state->held[0].tensor.type_code = 2, "f16");
  WITH(state->held[0].tensor.type_code = 77, "DLPack type (77, 16, 1)");
  WITH(state->held[0].tensor.type_lanes = 2, "DLPack type (1, 16, 2)");
  WITH(state->held[0].shape[0] = kRows + 1, "made for at most 4");
  WITH(state->held[0].shape[0] = -1, "-1 elements");
  WITH(state->held[0].shape[0] = INT64_MAX, "than memory can hold");
  WITH(state->held[0].shape[1] = kHidden / 2, "rows of 256");
  WITH(state->held[1].shape[0] = kRows - 1, "residual");
  WITH(state->held[2].shape[0] = kHidden - 1, "weight");
  WITH(state->held[5].shape[1] = 1, "scale");
  WITH(state->held[3].tensor.data = state->residual, "overlap");
  int64_t strides[2] = {2 * kHidden, 2};
  WITH(state->held[0].tensor.strides = strides, "gaps");
  strides[1] = -1;
  WITH(state->held[0].tensor.strides = strides, "-1 apart");
  WITH(state->call.size = 8, "the size of the tenon_boundary_call is 8");
  BAD(tenon_boundary_run(boundary, NULL), "tenon_boundary_call is null");
  BAD(tenon_boundary_run(NULL, &good_call(state)->call), "the boundary is null");
  BAD(tenon_boundary_run((tenon_boundary*)state, &state->call), "no boundary that lives");
#undef WITH
  /* No rows: nothing is done, and nothing is asked of memory. */
  for (int i = 0; i < 6; ++i)
    if (i != 2) state->held[i].shape[0] = 0, state->held[i].tensor.data = NULL;
  CHECK_OK(tenon_boundary_run(boundary, &state->call));
  CHECK_OK(tenon_boundary_run(boundary, &good_call(state)->call));

  tenon_plan plan = TENON_PLAN_INIT;
  int64_t shape[2];
  BAD(tenon_boundary_plan(boundary, 0, &plan), "0 rows; accepted: 1 to 4");
  BAD(tenon_boundary_plan(boundary, 5, &plan), "5 rows; accepted: 1 to 4");
  BAD(tenon_boundary_plan(boundary, 1, NULL), "null");
  BAD(tenon_boundary_counts(boundary, NULL), "null");
  BAD(tenon_scale_shape(3, 1, 256, 128, shape, NULL), "accepted: layout 0 to 2");
  BAD(tenon_scale_shape(0, 1, 256, 0, shape, NULL), "group");
  BAD(tenon_scale_shape(0, 1, 256, 128, NULL, NULL), "null");
  free(state);
}

/* A program of yesterday has shorter structs, one of tomorrow longer ones. */
static void test_sizes(tenon_channel* channel) {
  const size_t first = offsetof(tenon_boundary_spec, max_rows) + sizeof(int32_t);
  const tenon_boundary_spec spec = good_spec();
  tenon_boundary* made = NULL;
  const uint64_t size = first;
  unsigned char* old = zeros(first); /* exactly as long as it says: sanitizers see who reads on */
  memcpy(old, &spec, first);
  memcpy(old, &size, sizeof size);
  CHECK_OK(tenon_boundary_make(channel, (const tenon_boundary_spec*)(const void*)old, &made));
  free(old);

  tenon_plan plan = TENON_PLAN_INIT;
  plan.size = offsetof(tenon_plan, reason) + sizeof(char*);
  plan.calls = 77;
  CHECK_OK(tenon_boundary_plan(made, 1, &plan));
  CHECK(plan.stage == 1 && plan.calls == 77 && plan.size == offsetof(tenon_plan, blocks));
  CHECK_OK(tenon_boundary_destroy(made));

  struct {
    tenon_boundary_spec known;
    uint64_t unknown;
  } later = {good_spec(), 0};
  later.known.size = sizeof later;
  CHECK_OK(tenon_boundary_make(channel, &later.known, &made));
  CHECK_OK(tenon_boundary_destroy(made));
  later.unknown = 1;
  REFUSED(tenon_boundary_make(channel, &later.known, &made), TENON_UNSUPPORTED, "too old");
  later.known.size = UINT64_MAX;
  BAD(tenon_boundary_make(channel, &later.known, &made), "the size of the tenon_boundary_spec");
}

static void test_ends(tenon_communicator* communicator, tenon_channel* channel,
                      tenon_boundary* boundary) {
  run_state* state = NULL;
  CHECK(posix_memalign((void**)&state, 64, sizeof *state) == 0);
  CHECK_OK(tenon_boundary_destroy(boundary));
  BAD(tenon_boundary_destroy(boundary), "it was destroyed");
  BAD(tenon_boundary_run(boundary, &good_call(state)->call), "no boundary that lives");
  const tenon_boundary_spec spec = good_spec();
  tenon_boundary* next = NULL;
  CHECK_OK(tenon_boundary_make(channel, &spec, &next));
  CHECK(next != boundary); /* though it took the other's place */
  BAD(tenon_boundary_run(boundary, &state->call), "no boundary that lives");
  CHECK_OK(tenon_communicator_destroy(communicator));
  BAD(tenon_communicator_health(communicator), "no communicator that lives");
  CHECK_OK(tenon_boundary_run(next, &state->call)); /* it keeps what it was made of */
  CHECK_OK(tenon_channel_destroy(channel));
  CHECK_OK(tenon_boundary_destroy(next));
  CHECK_OK(tenon_communicator_destroy(NULL));
  CHECK_OK(tenon_boundary_destroy(NULL));
  CHECK_OK(tenon_channel_destroy(NULL));
  CHECK_OK(tenon_team_destroy(NULL));
  free(state);
}

/* Two threads in one communicator: the second is refused, and the first goes on. */
typedef struct meeting_point {
  pthread_barrier_t inside, leave;
  tenon_communicator* communicator;
  int num_calls;
} meeting_point;

static int32_t slow_exchange(void* context, const void* mine, void* all, uint64_t bytes,
                             const char* label, uint64_t timeout_ms) {
  meeting_point* point = context;
  (void)timeout_ms;
  if (strcmp(label, "barrier") == 0 && point->num_calls++ == 0) {
    pthread_barrier_wait(&point->inside);
    pthread_barrier_wait(&point->leave);
  }
  memcpy(all, mine, bytes);
  return 0;
}

static void* wait_at_barrier(void* at) {
  CHECK_OK(tenon_communicator_barrier(((meeting_point*)at)->communicator));
  return NULL;
}

static void test_threads(void) {
  meeting_point point;
  pthread_t other;
  memset(&point, 0, sizeof point);
  pthread_barrier_init(&point.inside, NULL, 2);
  pthread_barrier_init(&point.leave, NULL, 2);
  CHECK_OK(
      tenon_communicator_from_exchange(NULL, slow_exchange, &point, 0, 1, &point.communicator));
  CHECK(pthread_create(&other, NULL, wait_at_barrier, &point) == 0);
  pthread_barrier_wait(&point.inside);
  BAD(tenon_communicator_barrier(point.communicator), "another thread is in a call");
  CHECK_OK(tenon_communicator_health(point.communicator));
  CHECK_OK(tenon_communicator_destroy(point.communicator)); /* the other's call keeps it */
  pthread_barrier_wait(&point.leave);
  CHECK(pthread_join(other, NULL) == 0);
}

static void test_abort(void) {
  tenon_communicator* communicator = lone_rank();
  CHECK_OK(tenon_communicator_abort(communicator, "the test says so"));
  REFUSED(tenon_communicator_health(communicator), TENON_PEER_LOST, "the test says so");
  REFUSED(tenon_communicator_barrier(communicator), TENON_PEER_LOST, "the test says so");
  CHECK_OK(tenon_communicator_destroy(communicator));
}

static void test_fork(tenon_communicator* communicator, tenon_boundary* boundary) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    run_state* state = NULL;
    tenon_team* team = NULL;
    CHECK(posix_memalign((void**)&state, 64, sizeof *state) == 0);
    REFUSED(tenon_boundary_run(boundary, &good_call(state)->call), TENON_UNSUPPORTED, "forked");
    REFUSED(tenon_communicator_health(communicator), TENON_UNSUPPORTED, "forked");
    REFUSED(tenon_communicator_destroy(communicator), TENON_UNSUPPORTED, "forked");
    REFUSED(tenon_team_make(1, &team), TENON_UNSUPPORTED, "forked");
    free(state);
    exit(0); /* with everything that runs at the end of a process */
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK_OK(tenon_communicator_barrier(communicator));
}

static void count_line(void* context, int32_t level, const char* line) {
  CHECK(level <= TENON_LOG_DEBUG && line[0] != 0);
  ++*(int*)context;
}

static void test_log(void) {
  int lines = 0;
  BAD(tenon_set_log_sink(count_line, &lines, 4), "the level is 4; accepted: 0 to 3");
  CHECK_OK(tenon_set_log_sink(count_line, &lines, TENON_LOG_DEBUG));
  CHECK_OK(tenon_communicator_destroy(lone_rank()));
  CHECK_OK(tenon_set_log_sink(NULL, NULL, TENON_LOG_ERROR));
}

int main(void) {
  CHECK(tenon_last_error()[0] == 0);
  test_constants();
  test_texts();
  test_communicators();
  test_exchange_that_fails();
  test_log();
  tenon_communicator* communicator = lone_rank();
  tenon_channel* channel = channel_of(communicator);
  const tenon_boundary_spec spec = good_spec();
  tenon_boundary* boundary = NULL;
  CHECK_OK(tenon_boundary_make(channel, &spec, &boundary));
  test_specs(communicator, channel);
  test_calls(boundary);
  test_sizes(channel);
  test_fork(communicator, boundary);
  test_ends(communicator, channel, boundary);
  test_threads();
  test_abort();
  return 0; /* with the library's threads, if any, still there */
}
