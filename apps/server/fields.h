// The members of a JSON object, read one by one into typed values. The first thing that is wrong is
// kept, with the name of the field; what follows is then read in vain. Null counts as absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/api.h"
#include "tenon/text/jinja/template.h"

namespace tenon::server {

class Fields {
 public:
  // `object` outlives this. `where` stands in front of names in errors: "stream_options.".
  Fields(const jinja::Value& object, std::optional<ApiError>& error, std::string where = {});
  // Of an object inside, with the same error. `where` is its name and a dot.
  Fields inside(const jinja::Value& object, const char* where) const {
    return Fields(object, *error_, where_ + where);
  }

  // A member's name as errors have it.
  std::string name_of(std::string_view name) const { return where_ + std::string(name); }

  bool ok() const { return !error_->has_value(); }
  void fail(std::string_view name, std::string why, int status = 400) const;

  // The member, or null where there is none.
  const jinja::Value* find(const char* name) const;
  // A member that must be there.
  const jinja::Value* need(const char* name) const;

  // Each leaves `out` where the member is absent.
  void boolean(const char* name, bool& out) const;
  void integer(const char* name, std::int64_t low, std::int64_t high, std::int64_t& out) const;
  void number(const char* name, double low, double high, bool open, float& out) const;
  void text(const char* name, std::string& out) const;
  // A text, or a list of them.
  void texts(const char* name, std::size_t most, std::vector<std::string>& out) const;
  void ids(const char* name, std::size_t most, std::vector<std::int32_t>& out) const;
  // An object, or null.
  const jinja::Value* object(const char* name) const;
  // A list, or null.
  const jinja::Value* list(const char* name) const;

  // Refuses what the engine cannot do yet, where it is asked for: kRefused in fields.cc.
  void refuse_unsupported(Dialect dialect) const;

 private:
  const jinja::Value& object_;
  std::optional<ApiError>* error_;
  std::string where_;
};

// "a string", "a list", … for sentences.
std::string_view kind_name(const jinja::Value& value);
// The value as JSON, or its kind where that is long.
std::string shown(const jinja::Value& value);
// What of a list is no token id, or null.
const jinja::Value* find_no_id(const jinja::Value& list);
// Token ids that are whole numbers from 0 on, or nothing.
std::optional<std::vector<std::int32_t>> ids_of(const jinja::Value& list);

}  // namespace tenon::server
