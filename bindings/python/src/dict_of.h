// What queries of both extensions tell, as a dict.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <utility>

namespace tenon::python {

inline void put(nanobind::dict&) {}

template <class Value, class... More>
void put(nanobind::dict& told, const char* name, Value&& value, More&&... more) {
  told[name] = std::forward<Value>(value);
  put(told, std::forward<More>(more)...);
}

// dict_of("name", value, "name", value, ...)
template <class... Fields>
nanobind::dict dict_of(Fields&&... fields) {
  nanobind::dict told;
  put(told, std::forward<Fields>(fields)...);
  return told;
}

}  // namespace tenon::python
