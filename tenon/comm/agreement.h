// Values that all ranks must have alike: what each of them brought, under a name, and the one
// sentence that all of them get where they differ.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon {

// Named values, as messages show them: different values have different texts. Types that are not
// here are spelled by their owner with add().
class Fields {
 public:
  void add(std::string_view name, std::string text);
  // As a visitor of a spec's fields: visit_fields(spec, fields).
  void operator()(std::string_view name, std::string_view value);  // in quotes
  void operator()(std::string_view name, const std::string& value) {
    (*this)(name, std::string_view(value));
  }
  void operator()(std::string_view name, const char* value) {
    (*this)(name, std::string_view(value));
  }
  void operator()(std::string_view name, bool value);
  void operator()(std::string_view name, float value);  // the shortest text that means this float
  void operator()(std::string_view name, DType value);
  void operator()(std::string_view name, ScaleLayout value);
  void operator()(std::string_view name, std::chrono::milliseconds value);
  template <std::integral T>
  void operator()(std::string_view name, T value) {
    add(name, std::to_string(value));
  }
  template <class T>
  requires std::is_enum_v<T>
  void operator()(std::string_view name, T value) {  // an enum without names, as a number
    add(name, std::to_string(static_cast<int>(value)));
  }

  struct Field {
    std::string name, text;
  };
  const std::vector<Field>& all() const { return fields_; }

 private:
  std::vector<Field> fields_;
};

// Ok if every rank brought the same names and values. Otherwise the same kInvalidArgument on every
// rank: "boundary "mlp": the ranks disagree about eps: 1e-06 on ranks 0 and 2, 1e-05 on rank 1; all
// must be equal". `where` is rank 0's in that sentence; it must be equal too. Nobody gives up
// because of a difference: the bootstrap works on. Collective.
Status agree_equal(Bootstrap& bootstrap, const Fields& fields, std::string_view where,
                   std::chrono::milliseconds deadline);

}  // namespace tenon
