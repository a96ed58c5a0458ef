#include "tenon/models/qwen3_5/checkpoint.h"

#include <filesystem>

#include "tenon/core/file.h"
#include "tenon/models/eos.h"
#include "tenon/models/qwen3_5/load.h"
#include "tenon/models/qwen3_5/published.h"

namespace tenon::qwen3_5 {
namespace {

// What ModelOpt writes beside a config that says nothing.
Status check_modelopt(const Config& config, const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "hf_quant_config.json";
  std::error_code ignored;
  if (config.quantized || !std::filesystem::exists(path, ignored)) return Status::ok();
  TENON_ASSIGN(const std::string text, read_text(path.string()));
  return refuse_modelopt(text).with(path.string());
}

// fp8 codes mean nothing without a word about their scales.
Status check_fp8(const Config& config, const Weights& weights) {
  if (config.quantized) return Status::ok();
  Status status;
  weights.visit(skipped_prefixes(), [&](const std::string& name, const StoredTensor& stored) {
    if (status && stored.dtype == DType::kE4M3)
      status =
          Status::error(Code::kUnsupported,
                        "tensor \"" + name + "\" is " + stored.type +
                            " but config.json has no \"quantization_config\"; accepted: one with "
                            "\"quant_method\" \"fp8\" and \"weight_block_size\" [128, 128]");
  });
  return status;
}

}  // namespace

Result<Checkpoint> open_checkpoint(const std::string& directory, const WeightsFrom& from) {
  const std::string path = (std::filesystem::path(directory) / "config.json").string();
  TENON_ASSIGN(std::string json, read_text(path));
  TENON_ASSIGN(Config config, parse_config(json));
  TENON_ASSIGN(auto eos_ids, read_eos_ids(directory));
  TENON_ASSIGN(Weights files,
               open_weights(directory, from, [&] { return published_tensors(config); }));
  TENON_TRY(check_modelopt(config, directory));
  TENON_TRY(check_fp8(config, files));
  const bool fp8 = files.holds(DType::kE4M3, skipped_prefixes());
  return Checkpoint{std::move(config), std::move(json), std::move(eos_ids), std::move(files), fp8};
}

}  // namespace tenon::qwen3_5
