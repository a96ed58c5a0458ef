// How ranks of the C interface find each other, apart from what tenon/comm/bootstrap has already:
// through a function of the caller, and through an id.
#pragma once

#include <memory>

#include "bindings/c/tenon.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/status.h"

namespace tenon::c {

// A rank that tells the others what it has to say through `exchange`. It cannot hear of a rank that
// gave up or died but by an exchange that fails. After the first that does, all of them fail.
std::shared_ptr<Bootstrap> exchange_bootstrap(tenon_exchange exchange, void* context, int rank,
                                              int num_ranks);

// An id whose port this process keeps until release_id().
Result<tenon_unique_id> make_id(const char* address);
// What a launcher would tell this rank. The error says that the bytes are no id.
Result<Launch> launch_of(const tenon_unique_id& id, int rank, int num_ranks);
void release_id(const tenon_unique_id& id);

}  // namespace tenon::c
