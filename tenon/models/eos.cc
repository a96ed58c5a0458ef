#include "tenon/models/eos.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "tenon/core/file.h"
#include "tenon/core/json.h"

namespace tenon {
namespace {

using Json = nlohmann::json;

constexpr const char* kConfig = "config.json";
constexpr const char* kGenerationConfig = "generation_config.json";

Status add_ids(const Json& object, std::vector<std::int32_t>* ids) {
  const auto found = object.find("eos_token_id");
  if (found == object.end() || found->is_null()) return Status::ok();
  const auto add = [&](const Json& each) {
    if (!each.is_number_integer()) return false;
    const auto id = each.get<std::int64_t>();
    if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) return false;
    if (std::find(ids->begin(), ids->end(), id) == ids->end())
      ids->push_back(static_cast<std::int32_t>(id));
    return true;
  };
  const bool right =
      found->is_array() ? std::all_of(found->begin(), found->end(), add) : add(*found);
  if (right) return Status::ok();
  const std::string shown = found->dump(-1, ' ', false, Json::error_handler_t::replace);
  return Status::error(Code::kIo, "\"eos_token_id\" is " + shown.substr(0, 60) +
                                      "; accepted: an id or a list of ids");
}

}  // namespace

Result<std::vector<std::int32_t>> parse_eos_ids(
    std::string_view config, const std::optional<std::string>& generation_config) {
  std::vector<std::int32_t> ids;
  TENON_ASSIGN(const Json root, parse_json(config), kConfig);
  if (!root.is_object())
    return Status::error(Code::kIo, std::string(kConfig) + ": is not a JSON object");
  if (const auto text = root.find("text_config"); text != root.end() && text->is_object())
    TENON_TRY(add_ids(*text, &ids), kConfig);
  TENON_TRY(add_ids(root, &ids), kConfig);
  if (!generation_config) return ids;
  TENON_ASSIGN(const Json generation, parse_json(*generation_config), kGenerationConfig);
  if (!generation.is_object())
    return Status::error(Code::kIo, std::string(kGenerationConfig) + ": is not a JSON object");
  TENON_TRY(add_ids(generation, &ids), kGenerationConfig);
  return ids;
}

Result<std::vector<std::int32_t>> read_eos_ids(const std::string& directory) {
  const std::filesystem::path root(directory);
  TENON_ASSIGN(const std::string config, read_text((root / kConfig).string()));
  std::optional<std::string> generation;
  std::error_code ignored;
  if (std::filesystem::exists(root / kGenerationConfig, ignored)) {
    TENON_ASSIGN(generation, read_text((root / kGenerationConfig).string()));
  }
  TENON_ASSIGN(auto ids, parse_eos_ids(config, generation), directory);
  return ids;
}

}  // namespace tenon
