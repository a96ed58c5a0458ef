// Include this in a test whose ranks shall be able to use transport ccl on host targets: the
// library it loads is then support/fake_ccl.cc, unless TENON_CCL_LIBRARY names another one.
#pragma once

#include <cstdlib>
#include <string>

namespace tenon::test {

inline const bool kLoadsFakeCcl = setenv("TENON_CCL_LIBRARY", TENON_FAKE_CCL, 0) == 0;

// While it lives, the fake misbehaves: "1 fail_init" and so on (fake_ccl.cc has the list).
class FakeCclFault {
 public:
  explicit FakeCclFault(const std::string& fault) { setenv("FAKE_CCL", fault.c_str(), 1); }
  ~FakeCclFault() { unsetenv("FAKE_CCL"); }
  FakeCclFault(const FakeCclFault&) = delete;
  FakeCclFault& operator=(const FakeCclFault&) = delete;
};

}  // namespace tenon::test
