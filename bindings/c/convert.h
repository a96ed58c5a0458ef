// Between what C passes and what the library takes: structs by their size, texts, tensors. Private
// to this folder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "bindings/c/tenon.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::c {

// `given` as the fields that a caller has: the first `size` of its bytes.
struct GivenStruct {
  std::string_view name;  // "tenon_boundary_spec"
  const void* at = nullptr;
  std::size_t least_bytes = 0, known_bytes = 0;
};
// How many of its bytes count. The error says that it is null, shorter than the fields that must be
// there, or holds something that this library does not know.
Result<std::size_t> bytes_that_count(const GivenStruct& given);

// A struct of the caller over `value`, which holds the defaults.
template <class Struct>
Status read_struct(std::string_view name, const Struct* given, std::size_t least_bytes,
                   Struct& value) {
  TENON_ASSIGN(const std::size_t bytes,
               bytes_that_count({name, given, least_bytes, sizeof(Struct)}));
  std::memcpy(&value, given, bytes);
  return Status::ok();
}

// `value` to the caller, but for `size`.
template <class Struct>
Status write_struct(std::string_view name, Struct* given, std::size_t least_bytes, Struct value) {
  TENON_ASSIGN(const std::size_t bytes,
               bytes_that_count({name, given, least_bytes, sizeof(Struct)}));
  value.size = given->size;
  std::memcpy(given, &value, bytes);
  return Status::ok();
}

// The bytes of a struct up to the end of `field`.
#define TENON_BYTES_TO(Struct, field) (offsetof(Struct, field) + sizeof(Struct::field))

// A text as the header says: cut to *bytes, which becomes what the whole takes.
Status write_text(std::string_view text, char* to, std::uint64_t* bytes);

// The caller's text, "" for null. The error names `what` where it is unreasonably long.
Result<std::string> read_text(std::string_view what, const char* text);

Result<DType> dtype_of(std::string_view what, std::int32_t number);

// A tensor on `device`, or on one like it. `expected` is the type that unsigned integers of its
// width stand for. The error names `what`, what was found and what is accepted.
Result<TensorView> tensor_of(std::string_view what, const tenon_tensor* tensor, Device device,
                             DType expected);

}  // namespace tenon::c
