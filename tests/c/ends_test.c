/* How processes end while ranks of theirs are in a boundary: one that is killed, and one that
 * exits while a thread of it waits. Who is left is told within the deadline, by name. Usage:
 *   ends_test killed | exits
 * Two processes, forked before either has made a handle. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/c/support.h"

enum { kHidden = 256, kDeadlineMs = 4000, kLongDeadlineMs = 60000 };

typedef struct rank_state {
  uint16_t addend[kHidden], residual[kHidden], weight[kHidden], rows[kHidden]; /* aligned: first */
  tenon_communicator* communicator;
  tenon_channel* channel;
  tenon_boundary* boundary;
} rank_state;

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void pause_ms(long ms) {
  const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static tenon_code run_once(rank_state* state) {
  held_tensor held[4];
  tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  call.partial = hold(&held[0], state->addend, 16, 1, kHidden);
  call.residual = hold(&held[1], state->residual, 16, 1, kHidden);
  call.weight = hold(&held[2], state->weight, 16, kHidden, 0);
  call.rows = hold(&held[3], state->rows, 16, 1, kHidden);
  return tenon_boundary_run(state->boundary, &call);
}

/* Rank 0 makes the id and hands it on through the pipe. Both run the boundary once: it works. */
static rank_state* join(int rank, const int ends[2], uint64_t deadline_ms) {
  rank_state* state = NULL;
  tenon_unique_id id;
  tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
  tenon_channel_spec channel_spec = TENON_CHANNEL_SPEC_INIT;
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  CHECK(posix_memalign((void**)&state, 64, sizeof *state) == 0);
  memset(state, 0, sizeof *state);
  options.deadline_ms = deadline_ms;
  if (rank == 0) {
    CHECK_OK(tenon_unique_id_make(NULL, &id));
    CHECK(write(ends[1], &id, sizeof id) == sizeof id);
  } else {
    CHECK(read(ends[0], &id, sizeof id) == sizeof id);
  }
  CHECK_OK(tenon_communicator_from_id(&options, &id, rank, 2, &state->communicator));
  channel_spec.hidden = spec.hidden = kHidden;
  channel_spec.max_rows = spec.max_rows = 1;
  spec.want_fp8 = 0;
  CHECK_OK(tenon_channel_make(state->communicator, &channel_spec, &state->channel));
  CHECK_OK(tenon_boundary_make(state->channel, &spec, &state->boundary));
  CHECK_OK(run_once(state));
  char done = 0; /* rank 1 goes on when both have had their first call */
  if (rank == 0) CHECK(write(ends[1], &done, 1) == 1);
  if (rank == 1) CHECK(read(ends[0], &done, 1) == 1);
  return state;
}

/* The peer is gone: this rank's next call ends in time and says who was missed. */
static void expect_named(rank_state* state, const char* peer) {
  const double begin = seconds_now();
  const tenon_code code = run_once(state);
  const double took = seconds_now() - begin;
  if ((code != TENON_PEER_LOST && code != TENON_TIMEOUT) ||
      strstr(tenon_last_error(), peer) == NULL || took > kDeadlineMs / 1000.0 + 5) {
    fprintf(stderr, "after %.1f s: %s: %s\n  wanted a lost peer, %s\n", took, tenon_code_name(code),
            tenon_last_error(), peer);
    exit(1);
  }
  CHECK(tenon_communicator_health(state->communicator) != TENON_OK);
  CHECK_OK(tenon_boundary_destroy(state->boundary));
  CHECK_OK(tenon_channel_destroy(state->channel));
  CHECK_OK(tenon_communicator_destroy(state->communicator));
  free(state);
}

static void* run_until_the_end(void* at) {
  run_once(at); /* nobody comes; the process ends meanwhile */
  return NULL;
}

static void killed(int rank, const int ends[2]) {
  rank_state* state = join(rank, ends, kDeadlineMs);
  if (rank == 1) raise(SIGKILL);
  expect_named(state, "rank 1");
}

/* Rank 0 stays away from the call that a thread of rank 1 waits in. */
static void exits(int rank, const int ends[2]) {
  rank_state* state = join(rank, ends, kLongDeadlineMs);
  if (rank == 1) {
    pthread_t other;
    CHECK(pthread_create(&other, NULL, run_until_the_end, state) == 0);
    pause_ms(300);
    exit(0); /* with everything that runs at the end of a process, and the other thread waiting */
  }
  pause_ms(1500);
  const double begin = seconds_now();
  (void)run_once(state); /* its peer had sent before it left, or had not: both end */
  const tenon_code code = run_once(state);
  CHECK(code == TENON_PEER_LOST || code == TENON_TIMEOUT);
  CHECK(strstr(tenon_last_error(), "rank 1") != NULL);
  CHECK(seconds_now() - begin < kLongDeadlineMs / 1000.0 / 2); /* told, not waited for */
  free(state); /* the handles are left to the end of the process */
}

int main(int count, char** words) {
  const int is_killed = count == 2 && strcmp(words[1], "killed") == 0;
  if (!is_killed && (count != 2 || strcmp(words[1], "exits") != 0)) {
    fprintf(stderr, "usage: ends_test killed | exits\n");
    return 2;
  }
  int ends[2];
  pid_t ranks[2];
  CHECK(pipe(ends) == 0);
  const double begin = seconds_now();
  for (int rank = 0; rank < 2; ++rank) {
    ranks[rank] = fork();
    CHECK(ranks[rank] >= 0);
    if (ranks[rank] == 0) {
      (is_killed ? killed : exits)(rank, ends);
      exit(0);
    }
  }
  int status[2] = {-1, -1};
  CHECK(waitpid(ranks[1], &status[1], 0) == ranks[1]);
  const double first = seconds_now() - begin;
  CHECK(waitpid(ranks[0], &status[0], 0) == ranks[0]);
  if (is_killed) {
    CHECK(WIFSIGNALED(status[1]) && WTERMSIG(status[1]) == SIGKILL);
  } else {
    CHECK(status[1] == 0);
    CHECK(first < kLongDeadlineMs / 1000.0 / 2); /* exit() did not wait for the thread's call */
  }
  CHECK(status[0] == 0);
  return 0;
}
