// Element types, their sizes and names, and the annotation for code that runs on host and device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

// In front of every function that both sides may call. Host compilers see nothing.
#if defined(__CUDACC__) || defined(__HIP__)
#define TENON_HD __attribute__((host)) __attribute__((device))
#else
#define TENON_HD
#endif

namespace tenon {

enum class DType : std::uint8_t { kF32, kBF16, kF16, kE4M3, kE4M3Fnuz, kE5M2, kI32, kI64, kU8 };

// Bytes per element.
TENON_HD constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI64: return 8;
    default: return 1;
  }
}

TENON_HD constexpr bool is_fp8(DType dtype) {
  return dtype == DType::kE4M3 || dtype == DType::kE4M3Fnuz || dtype == DType::kE5M2;
}

// "bf16", "e4m3fn", …: the spelling of messages, tables and the command line.
std::string_view name(DType dtype);

// The inverse of name().
std::optional<DType> dtype_named(std::string_view name);

}  // namespace tenon
