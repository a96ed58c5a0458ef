#include "tenon/core/hash.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

// As published with the algorithm.
TEST(Hash, IsTheReferences) {
  EXPECT_EQ(fnv1a(""), 0xcbf29ce484222325u);
  EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171f73967e8u);
  EXPECT_EQ(fnv1a("\xff"), 0xaf64724c8602eb6eu);  // bytes, not signed numbers
}

TEST(Hash, TakesPiecesAsTheWhole) {
  Fnv1a hash;
  hash.add_bytes("foo");
  hash.add('b');
  hash.add_bytes("ar");
  EXPECT_EQ(hash.value(), fnv1a("foobar"));
}

}  // namespace
}  // namespace tenon
