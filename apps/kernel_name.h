// A kernel as people name it.
#pragma once

#include <string>

namespace tenon::apps {

// "fp8_gemm::product_kernel<8>" of
// "void tenon::cuda::fp8_gemm::(anonymous namespace)::product_kernel<8>(tenon::…::Args)": without
// the type that it returns, its arguments, and the namespaces that all kernels share. Other texts
// stay as they are.
std::string short_kernel_name(const std::string& name);

}  // namespace tenon::apps
