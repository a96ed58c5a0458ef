// Finds the architecture of a checkpoint in models.def and opens it.
#include "tenon/models/model.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tenon/core/file.h"
#include "tenon/core/guard.h"
#include "tenon/core/json.h"
#include "tenon/models/fingerprint.h"
#include "tenon/models/inspect.h"
#include "tenon/models/qwen3_5/inspect.h"
#include "tenon/models/qwen3_5/qwen3_5.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using Open = Result<std::unique_ptr<Model>> (*)(const std::string&, const ModelOptions&,
                                                Communicator&, Stream&);
using Inspect = Result<ModelSummary> (*)(const std::string&, std::span<const int>,
                                         const WeightsFrom&);
struct Architecture {
  std::string_view name;
  Open open;
  Inspect inspect;
};
constexpr Architecture kArchitectures[] = {
#define TENON_MODEL(architecture, space) {#architecture, &space::open, &space::inspect},
#include "tenon/models/models.def"
#undef TENON_MODEL
};

Result<std::string> read_architecture(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "config.json").string();
  TENON_ASSIGN(const std::string text, read_text(path));
  TENON_ASSIGN(const Json config, parse_json(text), path);
  if (!config.is_object()) return Status::error(Code::kIo, path + ": is not a JSON object");
  const auto found = config.find("architectures");
  if (found == config.end() || !found->is_array() || found->empty() || !found->front().is_string())
    return Status::error(Code::kIo, path + ": has no \"architectures\" list with a name");
  return found->front().get<std::string>();
}

Result<const Architecture*> find_architecture(const std::string& directory) {
  TENON_ASSIGN(const std::string wanted, read_architecture(directory));
  std::string known;
  for (const Architecture& each : kArchitectures) {
    if (each.name == wanted) return &each;
    known += (known.empty() ? "" : ", ") + std::string(each.name);
  }
  return Status::error(Code::kUnsupported,
                       directory + ": the architecture is \"" + wanted + "\"; accepted: " + known);
}

}  // namespace

std::string checkpoint_directory(const std::string& model) {
  const std::filesystem::path path(model);
  std::error_code ignored;
  if (path.filename() != "config.json" || !std::filesystem::is_regular_file(path, ignored))
    return model;
  return path.has_parent_path() ? path.parent_path().string() : ".";
}

Result<std::unique_ptr<Model>> open_model(const std::string& model, const ModelOptions& options,
                                          Communicator& comm, Stream& stream) {
  const std::string directory = checkpoint_directory(model);
  const auto wanted = guarded([&] { return find_architecture(directory); });
  Facts facts;
  if (wanted) facts.push_back({"\"architectures\"", std::string((*wanted)->name)});
  TENON_TRY(agree_on_facts(wanted.status(), facts, comm, "architecture"));
  return (*wanted)->open(directory, options, comm, stream);
}

Result<ModelSummary> inspect_model(const std::string& model, std::span<const int> sizes,
                                   const WeightsFrom& from) {
  return guarded([&]() -> Result<ModelSummary> {
    const std::string directory = checkpoint_directory(model);
    TENON_ASSIGN(const Architecture* wanted, find_architecture(directory));
    TENON_ASSIGN(ModelSummary found, wanted->inspect(directory, sizes, from), directory);
    found.architecture = wanted->name;
    return found;
  });
}

}  // namespace tenon
