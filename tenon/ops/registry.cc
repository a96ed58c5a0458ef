#include "tenon/ops/registry.h"

#define TENON_OP(name, folder) \
  namespace tenon::name {      \
  extern const Op kOp;         \
  }
#include "tenon/core/ops.def"
#undef TENON_OP

namespace tenon {

std::span<const Op* const> all_ops() {
  static constexpr const Op* kAll[] = {
#define TENON_OP(name, folder) &name::kOp,
#include "tenon/core/ops.def"
#undef TENON_OP
  };
  return kAll;
}

}  // namespace tenon
