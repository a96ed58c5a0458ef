/* One boundary between two ranks, which are threads here: rank 0 brings ones, rank 1 twos, so that
 * every element of the sum is three; normalised with a weight of one it is one. */
#include <pthread.h>
#include <stdio.h>
#include <tenon.h>

/* [boundary] */
enum { kHidden = 256, kOne = 0x3f80, kTwo = 0x4000, kThree = 0x4040 }; /* bf16 */

typedef struct job {
  tenon_team* team;
  int rank, is_right;
} job;

/* One row of bf16 in host memory, as unsigned integers with its bits. */
static tenon_tensor row(uint16_t* data, int64_t* shape, int num_dims) {
  const tenon_tensor made = {data, 1, 0, num_dims, 1, 16, 1, shape, NULL, 0};
  return made;
}

static tenon_code run_boundary(const job* self, uint16_t* residual, uint16_t* normed) {
  uint16_t addend[kHidden], weight[kHidden];
  int64_t shape[2] = {1, kHidden};
  for (int i = 0; i < kHidden; ++i) {
    addend[i] = self->rank == 0 ? kOne : kTwo;
    weight[i] = kOne;
  }
  const tenon_tensor partial = row(addend, shape, 2), sum = row(residual, shape, 2),
                     scale = row(weight, shape + 1, 1), out = row(normed, shape, 2);

  tenon_communicator* communicator = NULL;
  tenon_channel* channel = NULL;
  tenon_boundary* boundary = NULL;
  tenon_channel_spec channel_spec = TENON_CHANNEL_SPEC_INIT;
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  channel_spec.hidden = spec.hidden = kHidden;
  channel_spec.max_rows = spec.max_rows = 1;
  spec.want_fp8 = 0;
  call.partial = &partial;
  call.residual = &sum;
  call.weight = &scale;
  call.rows = &out;

  tenon_code code = tenon_communicator_from_team(NULL, self->team, self->rank, &communicator);
  if (code == TENON_OK) code = tenon_channel_make(communicator, &channel_spec, &channel);
  if (code == TENON_OK) code = tenon_boundary_make(channel, &spec, &boundary);
  if (code == TENON_OK) code = tenon_boundary_run(boundary, &call);
  if (code != TENON_OK) fprintf(stderr, "%s: %s\n", tenon_code_name(code), tenon_last_error());
  tenon_boundary_destroy(boundary);
  tenon_channel_destroy(channel);
  tenon_communicator_destroy(communicator);
  return code;
}
/* [/boundary] */

static void* run_rank(void* at) {
  job* self = at;
  uint16_t residual[kHidden] = {0}, normed[kHidden] = {0};
  self->is_right = run_boundary(self, residual, normed) == TENON_OK;
  for (int i = 0; i < kHidden; ++i)
    if (residual[i] != kThree || normed[i] != kOne) self->is_right = 0;
  return NULL;
}

int main(void) {
  tenon_team* team = NULL;
  if (tenon_team_make(2, &team) != TENON_OK) return 1;
  job jobs[2] = {{team, 0, 0}, {team, 1, 0}};
  pthread_t other;
  if (pthread_create(&other, NULL, run_rank, &jobs[1]) != 0) return 1;
  run_rank(&jobs[0]);
  pthread_join(other, NULL);
  tenon_team_destroy(team);
  for (int rank = 0; rank < 2; ++rank) puts(jobs[rank].is_right ? "ok" : "not what was asked for");
  return jobs[0].is_right && jobs[1].is_right ? 0 : 1;
}
