#include "tenon/core/guard.h"

#include <gtest/gtest.h>

#include <limits>
#include <new>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace tenon {
namespace {

template <class Exception>
Status status_of(const Exception& thrown) {
  return guarded([&]() -> Status { throw thrown; });
}

TEST(Guard, PassesOnWhatIsReturned) {
  EXPECT_TRUE(guarded([] {}));
  EXPECT_TRUE(guarded([] { return Status::ok(); }));
  const auto value = guarded([] { return Result<int>(3); });
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, 3);
}

TEST(Guard, ExceptionsBecomeErrors) {
  EXPECT_EQ(status_of(std::bad_alloc()).code(), Code::kOutOfMemory);
  EXPECT_EQ(status_of(std::bad_array_new_length()).code(), Code::kOutOfMemory);
  EXPECT_EQ(status_of(std::system_error(std::make_error_code(std::errc::no_link))).code(),
            Code::kIo);
  const Status other = status_of(std::runtime_error("the moon is down"));
  EXPECT_EQ(other.code(), Code::kInternal);
  EXPECT_NE(other.message().find("the moon is down"), std::string_view::npos);
  const Status nothing = guarded([] { throw std::bad_alloc(); });
  EXPECT_EQ(nothing.code(), Code::kOutOfMemory);
}

TEST(Guard, AVectorTooLongIsAnError) {
  const auto grown = guarded([]() -> Result<std::vector<int>> {
    std::vector<int> values;
    values.reserve(std::numeric_limits<std::size_t>::max() / 2);
    return values;
  });
  EXPECT_EQ(grown.status().code(), Code::kOutOfMemory);
}

}  // namespace
}  // namespace tenon
