// One change for each type of field that a spec or the options have: for tests in which one rank
// brings another value than its peers, field by field.
#pragma once

#include <chrono>
#include <string>
#include <type_traits>
#include <vector>

#include "tenon/core/tensor.h"

namespace tenon::test {

inline void change(std::string& value) { value = value == "ccl" ? "shm" : value + "x"; }
inline void change(bool& value) { value = !value; }
inline void change(int& value) { value = value == 0 ? 1 : value * 2; }
inline void change(float& value) { value = value == 1.0f ? 0.0f : value * 10; }
inline void change(DType& value) {
  value = value == DType::kBF16   ? DType::kF16
          : value == DType::kE4M3 ? DType::kE4M3Fnuz
                                  : DType::kBF16;
}
inline void change(ScaleLayout& value) { value = ScaleLayout::kUe8m0Packed; }
template <class T>
requires std::is_enum_v<T>
void change(T& value) { value = static_cast<T>(static_cast<int>(value) == 0 ? 1 : 0); }
inline void change(std::chrono::milliseconds& value) { value -= std::chrono::milliseconds(1); }

// Something that cannot be.
inline void spoil(std::string& value) { value = std::string(300, '?'); }
inline void spoil(bool& value) { value = !value; }
inline void spoil(int& value) { value = -7; }
inline void spoil(float& value) { value = -1.0f; }
inline void spoil(DType& value) { value = static_cast<DType>(77); }
inline void spoil(ScaleLayout& value) { value = static_cast<ScaleLayout>(77); }
template <class T>
requires std::is_enum_v<T>
void spoil(T& value) { value = static_cast<T>(77); }
inline void spoil(std::chrono::milliseconds& value) { value = std::chrono::milliseconds(-5); }

// The names of the fields that all ranks must have alike.
template <class Spec>
std::vector<std::string> names_of_fields(Spec spec) {
  std::vector<std::string> names;
  visit_equal_fields(spec, [&](std::string_view name, auto&) { names.emplace_back(name); });
  return names;
}

// `alter(field)` for the field of that name.
template <class Spec, class Alter>
void alter_field(Spec& spec, std::string_view wanted, const Alter& alter) {
  visit_equal_fields(spec, [&](std::string_view name, auto& field) {
    if (name == wanted) alter(field);
  });
}

}  // namespace tenon::test
