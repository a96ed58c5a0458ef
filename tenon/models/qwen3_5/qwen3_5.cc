#include "tenon/models/qwen3_5/qwen3_5.h"

#include <optional>
#include <utility>

#include "tenon/models/decoder.h"
#include "tenon/models/qwen3_5/checkpoint.h"
#include "tenon/models/qwen3_5/load.h"

namespace tenon::qwen3_5 {
namespace {

class Files final : public DecoderFiles {
 public:
  explicit Files(const std::string& directory) : directory_(directory) {}
  Result<Facts> look(const ModelOptions& options, const Communicator& comm) override;
  Result<DecoderSpec> count(const ModelOptions& options, Device device) override;
  Result<DecoderSpec> load(const ModelOptions& options, Stream& stream) override;

 private:
  Result<DecoderSpec> read(const ModelOptions& options, ShardLoader& loader);
  const std::string& directory_;
  std::optional<Checkpoint> found_;  // until it is read
  std::vector<float> rotary_;        // its values, once they are computed
  Share share_;
};

Result<Facts> Files::look(const ModelOptions& options, const Communicator& comm) {
  TENON_ASSIGN(found_, open_checkpoint(directory_, options.weights));
  const Config& config = found_->config;
  if (options.max_context > config.max_positions)
    return Status::error(Code::kInvalidArgument,
                         "max_context is " + std::to_string(options.max_context) +
                             " but the checkpoint's \"max_position_embeddings\" is " +
                             std::to_string(config.max_positions) +
                             "; accepted: at most that many, so ask for fewer (--max-context)");
  TENON_ASSIGN(share_, share(config, found_->fp8, comm.rank(), comm.size()));
  Facts facts = describe(config);
  std::string ids;
  for (std::int32_t id : found_->eos_ids) ids += (ids.empty() ? "" : ", ") + std::to_string(id);
  facts.push_back({"eos_token_id", ids});
  TENON_TRY(add_tensors(found_->files, skipped_prefixes(), &facts));
  return facts;
}

Result<DecoderSpec> Files::read(const ModelOptions& options, ShardLoader& loader) {
  const Config& config = found_->config;
  if (rotary_.empty()) rotary_ = rotary_table(config, options.max_context);
  TENON_ASSIGN(const TensorView cos_sin,
               loader.values(rotary_, {options.max_context, config.rotary_dim}));
  TENON_ASSIGN(DecoderSpec spec, load_weights(config, share_, cos_sin, loader));
  spec.eos_ids = found_->eos_ids;
  spec.weight_bytes = loader.device_bytes();
  spec.memory = loader.take_buffers();
  return spec;
}

Result<DecoderSpec> Files::count(const ModelOptions& options, Device device) {
  ShardLoader loader(std::move(found_->files), skipped_prefixes(), device);
  auto counted = read(options, loader);
  found_->files = loader.release();
  found_->files.take_back();
  return counted;
}

Result<DecoderSpec> Files::load(const ModelOptions& options, Stream& stream) {
  ShardLoader loader(std::move(found_->files), skipped_prefixes(), stream, options.progress);
  auto loaded = read(options, loader);
  found_.reset();
  return loaded;
}

}  // namespace

Result<std::unique_ptr<Model>> open(const std::string& directory, const ModelOptions& options,
                                    Communicator& comm, Stream& stream) {
  Files files(directory);
  return open_decoder(files, directory, options, comm, stream);
}

}  // namespace tenon::qwen3_5
