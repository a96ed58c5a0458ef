/* The library is loaded while the program runs, as languages other than C do it: usage: dlopen_test
 * FILE. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "bindings/c/tenon.h"

/* Functions and objects have addresses of one size here, which C does not promise. */
#define LOAD(name)                                      \
  __typeof__(&name) name##_ = NULL;                     \
  {                                                     \
    void* const found = dlsym(library, #name);          \
    if (found == NULL) {                                \
      fprintf(stderr, "no " #name ": %s\n", dlerror()); \
      return 1;                                         \
    }                                                   \
    memcpy(&name##_, &found, sizeof found);             \
  }

int main(int count, char** words) {
  void* const library = count == 2 ? dlopen(words[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (library == NULL) {
    fprintf(stderr, "%s\n", count == 2 ? dlerror() : "usage: dlopen_test FILE");
    return 1;
  }
  LOAD(tenon_abi);
  LOAD(tenon_last_error);
  LOAD(tenon_team_make);
  LOAD(tenon_communicator_from_team);
  LOAD(tenon_communicator_query);
  if (tenon_abi_() != TENON_ABI) return 1;
  tenon_team* team = NULL;
  tenon_communicator* communicator = NULL;
  tenon_communicator_info info = TENON_COMMUNICATOR_INFO_INIT;
  if (tenon_team_make_(1, &team) != TENON_OK ||
      tenon_communicator_from_team_(NULL, team, 0, &communicator) != TENON_OK ||
      tenon_communicator_query_(communicator, &info) != TENON_OK || info.num_ranks != 1) {
    fprintf(stderr, "%s\n", tenon_last_error_());
    return 1;
  }
  /* It stays, whatever is asked: handles live, and the process ends with it. */
  dlclose(library);
  return tenon_communicator_query_(communicator, &info) == TENON_OK ? 0 : 1;
}
