/* Boundaries through the C interface have the bits of the oracle. Usage:
 *   boundary_test threads TARGET NUM_RANKS
 *   boundary_test processes HOW NUM_RANKS, HOW: environment, id, exchange
 * TARGET cuda needs the library of CUDA's runtime besides; without a GPU it is skipped (77). Ranks
 * share GPUs where there are too few.
 * Processes are this program again, started with the rank in front: what each needs comes through
 * its environment or, as an id and for the exchange, through files of a folder that they share. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/c/support.h"

static const oracle_case kCases[] = {
    {1, 256, 0, 128, TENON_SCALES_ROW, 0, 1e-6f, 1.0f, 1},
    {7, 512, 0, 64, TENON_SCALES_MN_MAJOR, 0, 1e-5f, 0.0f, 2},
    {13, 1024, 0, 128, TENON_SCALES_UE8M0_PACKED, 1, 1e-6f, 1.0f, 3},
};

typedef struct lone_boundary {
  tenon_channel* channel;
  tenon_boundary* boundary;
} lone_boundary;

static lone_boundary one_row(tenon_communicator* communicator) {
  lone_boundary made = {NULL, NULL};
  tenon_channel_spec channel = TENON_CHANNEL_SPEC_INIT;
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  channel.hidden = spec.hidden = 256;
  channel.max_rows = spec.max_rows = 1;
  spec.want_fp8 = 0;
  CHECK_OK(tenon_channel_make(communicator, &channel, &made.channel));
  CHECK_OK(tenon_boundary_make(made.channel, &spec, &made.boundary));
  return made;
}

static void destroy_both(const lone_boundary* made) {
  CHECK_OK(tenon_boundary_destroy(made->boundary));
  CHECK_OK(tenon_channel_destroy(made->channel));
}

/* Ranks need not destroy together: while rank 0 is in a call that waits for the others, these
 * destroy what rank 0 has destroyed before. */
static void run_while_others_destroy(tenon_communicator* communicator, const rank_place* place) {
  placed memory[4];
  held_tensor held[4];
  for (int i = 0; i < 4; ++i) {
    memory[i] = memory_of(2 * 256);
    put(&memory[i], place);
    hold(&held[i], memory[i].at, 16, 1, 256);
    lies_on(&held[i], place);
  }
  hold(&held[2], memory[2].at, 16, 256, 0);
  lies_on(&held[2], place);
  const lone_boundary first = one_row(communicator), second = one_row(communicator);
  tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
  call.partial = &held[0].tensor;
  call.residual = &held[1].tensor;
  call.weight = &held[2].tensor;
  call.rows = &held[3].tensor;
  call.stream = place->stream;
  CHECK_OK(tenon_boundary_run(first.boundary, &call));
  wait_for(place);
  CHECK_OK(tenon_communicator_barrier(communicator));
  if (place->info.rank != 0) {
    const struct timespec pause = {0, 20000000};
    nanosleep(&pause, NULL);
  }
  destroy_both(&first);
  CHECK_OK(tenon_boundary_run(second.boundary, &call));
  wait_for(place);
  CHECK_OK(tenon_communicator_health(communicator));
  destroy_both(&second);
  for (int i = 0; i < 4; ++i) leave(&memory[i]);
}

static void run_rank(tenon_communicator* communicator, int rank, int num_ranks) {
  const rank_place place = place_of(communicator);
  const tenon_communicator_info info = place.info;
  CHECK(info.rank == rank && info.num_ranks == num_ranks && info.deadline_ms == 20000);
  CHECK_OK(tenon_communicator_barrier(communicator));
  for (size_t i = 0; i < sizeof kCases / sizeof kCases[0]; ++i) {
    for (int stage = 0; stage <= 3; ++stage) {
      oracle_case shape = kCases[i];
      shape.team = num_ranks;
      if (stage != 0 && stage != 3 && !info.peer_pointers) continue;
      run_case(communicator, &place, &shape, stage);
    }
  }
  run_while_others_destroy(communicator, &place);
  placed mine = memory_of(2 * 8), sum = memory_of(2 * 8), all = memory_of(2 * 8 * 8);
  held_tensor held[3];
  for (int i = 0; i < 8; ++i) ((uint16_t*)mine.host)[i] = 0x3f80; /* bf16 1 */
  put(&mine, &place);
  const tenon_tensor* in = hold(&held[0], mine.at, 16, 8, 0);
  held[0].tensor.type_code = 4; /* bf16: unsigned integers would be taken as such too */
  hold(&held[1], sum.at, 16, 8, 0);
  hold(&held[2], all.at, 16, num_ranks, 8);
  for (int i = 0; i < 3; ++i) lies_on(&held[i], &place);
  CHECK_OK(tenon_communicator_barrier(communicator)); /* nobody takes memory any more */
  CHECK_OK(tenon_all_reduce(communicator, in, &held[1].tensor, place.stream));
  CHECK_OK(tenon_all_gather(communicator, in, &held[2].tensor, place.stream));
  get(&sum, &place);
  get(&all, &place);
  const uint16_t wanted = num_ranks == 2 ? 0x4000 : num_ranks == 4 ? 0x4080 : 0x3f80;
  for (int i = 0; i < 8; ++i)
    CHECK(((uint16_t*)sum.host)[i] == wanted &&
          ((uint16_t*)all.host)[8 * (num_ranks - 1) + i] == 0x3f80);
  leave(&mine);
  leave(&sum);
  leave(&all);
  leave_place(&place);
  char text[8192];
  uint64_t bytes = sizeof text;
  CHECK_OK(tenon_communicator_explain(communicator, 256, 4, text, &bytes));
  CHECK(strstr(text, "fp8+bf16, up to 4 rows: stage ") != NULL);
  CHECK_OK(tenon_communicator_health(communicator));
  CHECK_OK(tenon_communicator_destroy(communicator));
}

static tenon_communicator_options options_for(const char* target) {
  tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
  options.target = target;
  options.deadline_ms = 20000;
  return options;
}

/* --- threads ------------------------------------------------------------------------------- */

typedef struct thread_rank {
  tenon_team* team;
  const char* target;
  int rank, num_ranks;
} thread_rank;

static void* run_thread(void* at) {
  const thread_rank* self = at;
  tenon_communicator_options options = options_for(self->target);
  tenon_communicator* communicator = NULL;
  if (gpu.use != NULL) {
    int32_t devices = 0;
    CHECK_OK(tenon_device_count(self->target, &devices));
    options.device = self->rank % devices;
    CHECK(gpu.use(options.device) == 0);
  }
  CHECK_OK(tenon_communicator_from_team(&options, self->team, self->rank, &communicator));
  run_rank(communicator, self->rank, self->num_ranks);
  return NULL;
}

/* Fills `gpu` in; 0 where the build, or this machine, has no GPU of CUDA. */
static int find_gpu(void) {
  static const char* const names[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};
  int32_t devices = 0;
  if (tenon_device_count("cuda", &devices) != TENON_OK || devices == 0) return 0;
  void* library = NULL;
  for (size_t i = 0; library == NULL && i < sizeof names / sizeof names[0]; ++i)
    library = dlopen(names[i], RTLD_NOW);
  if (library == NULL) return 0;
  const struct {
    const char* name;
    void* function;
  } wanted[] = {{"cudaSetDevice", &gpu.use},
                {"cudaGetDevice", &gpu.current},
                {"cudaMalloc", &gpu.allocate},
                {"cudaFree", &gpu.release},
                {"cudaStreamCreateWithFlags", &gpu.make_stream},
                {"cudaStreamDestroy", &gpu.destroy_stream},
                {"cudaMemcpyAsync", &gpu.copy},
                {"cudaStreamSynchronize", &gpu.wait}};
  for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; ++i) {
    void* const found = dlsym(library, wanted[i].name);
    CHECK(found != NULL);
    memcpy(wanted[i].function, &found, sizeof found);
  }
  return 1;
}

static void run_threads(const char* target, int num_ranks) {
  pthread_t threads[8];
  thread_rank ranks[8];
  tenon_team* team = NULL;
  CHECK_OK(tenon_team_make(num_ranks, &team));
  for (int rank = 0; rank < num_ranks; ++rank) {
    const thread_rank self = {team, target, rank, num_ranks};
    ranks[rank] = self;
    CHECK(pthread_create(&threads[rank], NULL, run_thread, &ranks[rank]) == 0);
  }
  for (int rank = 0; rank < num_ranks; ++rank) CHECK(pthread_join(threads[rank], NULL) == 0);
  CHECK_OK(tenon_team_destroy(team));
}

/* --- processes ----------------------------------------------------------------------------- */

typedef struct folder_exchange {
  const char* folder;
  int rank, num_ranks;
  unsigned call;
} folder_exchange;

static void name_file(char name[512], const char* folder, const char* what, unsigned call,
                      int rank) {
  snprintf(name, 512, "%s/%s.%u.%d", folder, what, call, rank);
}

static void put_file(const char* folder, unsigned call, int rank, const void* data, size_t bytes) {
  char part[512], whole[512];
  name_file(part, folder, "part", call, rank);
  name_file(whole, folder, "whole", call, rank);
  FILE* file = fopen(part, "wb");
  CHECK(file != NULL && (bytes == 0 || fwrite(data, bytes, 1, file) == 1) && fclose(file) == 0);
  CHECK(rename(part, whole) == 0);
}

static int get_file(const char* folder, unsigned call, int rank, void* data, size_t bytes,
                    uint64_t timeout_ms) {
  char name[512];
  name_file(name, folder, "whole", call, rank);
  for (uint64_t waited = 0; waited <= timeout_ms; ++waited) {
    FILE* file = fopen(name, "rb");
    if (file != NULL) {
      const int got = bytes == 0 || fread(data, bytes, 1, file) == 1;
      fclose(file);
      return got ? 0 : 1;
    }
    const struct timespec pause = {0, 1000000};
    nanosleep(&pause, NULL);
  }
  return 2;
}

static int32_t exchange_by_files(void* context, const void* mine, void* all, uint64_t bytes,
                                 const char* label, uint64_t timeout_ms) {
  folder_exchange* self = context;
  CHECK(label[0] != 0);
  put_file(self->folder, self->call, self->rank, mine, bytes);
  for (int rank = 0; rank < self->num_ranks; ++rank) {
    char* to = (char*)all + (size_t)rank * bytes;
    const int failed = get_file(self->folder, self->call, rank, to, bytes, timeout_ms);
    if (failed) return failed;
  }
  ++self->call;
  return 0;
}

static void run_process(const char* how, int rank, int num_ranks, const char* folder) {
  const tenon_communicator_options options = options_for(NULL);
  tenon_communicator* communicator = NULL;
  folder_exchange exchange = {folder, rank, num_ranks, 0};
  if (strcmp(how, "environment") == 0) {
    CHECK_OK(tenon_communicator_from_environment(&options, &communicator));
  } else if (strcmp(how, "id") == 0) {
    tenon_unique_id id;
    if (rank == 0) {
      CHECK_OK(tenon_unique_id_make(NULL, &id));
      put_file(folder, 0, 0, &id, sizeof id);
    }
    CHECK(get_file(folder, 0, 0, &id, sizeof id, 20000) == 0);
    CHECK_OK(tenon_communicator_from_id(&options, &id, rank, num_ranks, &communicator));
  } else {
    CHECK_OK(tenon_communicator_from_exchange(&options, exchange_by_files, &exchange, rank,
                                              num_ranks, &communicator));
  }
  run_rank(communicator, rank, num_ranks);
}

static void set_number(const char* name, int number) {
  char text[16];
  snprintf(text, sizeof text, "%d", number);
  CHECK(setenv(name, text, 1) == 0);
}

static void start_processes(const char* self, const char* how, int num_ranks) {
  char folder[] = "/tmp/tenon_c_test_XXXXXX", number[16], command[64];
  tenon_unique_id id; /* its port is free, and kept until the ranks are started */
  uint32_t port = 0;
  CHECK(mkdtemp(folder) != NULL);
  CHECK_OK(tenon_unique_id_make(NULL, &id));
  memcpy(&port, id.bytes + 8, sizeof port);
  set_number("WORLD_SIZE", num_ranks);
  set_number("MASTER_PORT", (int)port);
  CHECK(setenv("MASTER_ADDR", "127.0.0.1", 1) == 0);
  snprintf(number, sizeof number, "%d", num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    char own[16];
    snprintf(own, sizeof own, "%d", rank);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      set_number("RANK", rank);
      set_number("LOCAL_RANK", rank);
      execl(self, self, "rank", how, number, own, folder, (char*)NULL);
      _exit(127);
    }
  }
  int failed = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    int status = 0;
    CHECK(wait(&status) > 0);
    failed |= status;
  }
  snprintf(command, sizeof command, "rm -r %s", folder);
  CHECK(system(command) == 0);
  CHECK(failed == 0);
}

int main(int count, char** words) {
  if (count == 4 && strcmp(words[1], "threads") == 0) {
    if (strcmp(words[2], "cuda") == 0 && !find_gpu()) {
      printf("skipped: this build or machine has no GPU of CUDA\n");
      return 77;
    }
    run_threads(words[2], atoi(words[3]));
  } else if (count == 4 && strcmp(words[1], "processes") == 0) {
    start_processes(words[0], words[2], atoi(words[3]));
  } else if (count == 6 && strcmp(words[1], "rank") == 0) {
    run_process(words[2], atoi(words[4]), atoi(words[3]), words[5]);
  } else {
    fprintf(stderr, "usage: boundary_test threads TARGET RANKS | processes HOW RANKS\n");
    return 2;
  }
  return 0;
}
