// Include this in a test whose ranks shall be able to use transport ccl on host targets: the
// library it loads is then support/fake_ccl.cc, unless TENON_CCL_LIBRARY names another one.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tenon::test {

// It lies beside the test, wherever both were copied to.
inline std::string fake_ccl_path() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / TENON_FAKE_CCL).string();
}
inline const bool kLoadsFakeCcl = setenv("TENON_CCL_LIBRARY", fake_ccl_path().c_str(), 0) == 0;

// While it lives, the fake misbehaves: "1 fail_init" and so on (fake_ccl.cc has the list).
class FakeCclFault {
 public:
  explicit FakeCclFault(const std::string& fault) { setenv("FAKE_CCL", fault.c_str(), 1); }
  ~FakeCclFault() { unsetenv("FAKE_CCL"); }
  FakeCclFault(const FakeCclFault&) = delete;
  FakeCclFault& operator=(const FakeCclFault&) = delete;
};

}  // namespace tenon::test
