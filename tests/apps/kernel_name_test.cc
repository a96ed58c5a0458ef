#include "apps/kernel_name.h"

#include <gtest/gtest.h>

namespace tenon::apps {
namespace {

TEST(KernelName, KeepsTheOpAndTheKernel) {
  EXPECT_EQ(short_kernel_name("tenon::cuda::rope::(anonymous namespace)::head_kernel("
                              "tenon::cuda::rope::(anonymous namespace)::Heads)"),
            "rope::head_kernel");
  EXPECT_EQ(short_kernel_name("void tenon::cuda::fp8_gemm::(anonymous namespace)::tile_kernel<"
                              "(int)8, tenon::cuda::fp8_gemm::Plain>(tenon::Args<(int)2>)"),
            "fp8_gemm::tile_kernel<(int)8, fp8_gemm::Plain>");
}

TEST(KernelName, LeavesOtherTextsAlone) {
  for (const char* text : {"kernel", "copy", "", "_Z3foov"})
    EXPECT_EQ(short_kernel_name(text), text);
}

}  // namespace
}  // namespace tenon::apps
