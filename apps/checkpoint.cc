#include "apps/checkpoint.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <vector>

#include "apps/options.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/file.h"
#include "tenon/models/model.h"

namespace tenon::apps {
namespace {

namespace fs = std::filesystem;

// What only fp8 weights forbid is said by who loads them.
Status divides(const qwen3_5::Config& config, int size) {
  for (int rank = 0; rank < size; ++rank)
    TENON_TRY(qwen3_5::share(config, /*fp8=*/false, rank, size));
  return Status::ok();
}

}  // namespace

std::string default_model() {
  const std::string name = kDefaultModel;
  std::error_code failed;
  if (fs::is_directory(name, failed)) return name;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  for (fs::path at = program.parent_path(); at != at.root_path(); at = at.parent_path())
    if (fs::is_directory(at / name, failed)) return (at / name).string();
  return name;
}

bool has_weights(const std::string& model) {
  std::error_code failed;
  for (const auto& each : fs::directory_iterator(checkpoint_directory(model), failed))
    if (each.path().extension() == ".safetensors") return true;
  return false;
}

bool has_tokenizer(const std::string& model) {
  std::error_code failed;
  return fs::exists(fs::path(checkpoint_directory(model)) / "tokenizer.json", failed);
}

Status check_checkpoint(const std::string& model, LoadFormat format) {
  const auto refuse = [&](const std::string& why) {
    return Status::error(Code::kIo, "--model \"" + model + "\": " + why);
  };
  const bool made = format == LoadFormat::kDummy;
  const std::string directory = made ? checkpoint_directory(model) : model;
  std::error_code failed;
  const auto found = fs::status(directory, failed);
  if (found.type() == fs::file_type::not_found) return refuse("no such directory");
  if (fs::exists(found) && !fs::is_directory(found))
    return refuse("is a file; accepted is the directory it lies in");
  if (failed) return refuse(failed.message());
  std::vector<std::string> missing;
  if (!fs::exists(fs::path(directory) / "config.json", failed)) missing.push_back("config.json");
  if (!made && !has_tokenizer(directory)) missing.push_back("tokenizer.json");
  if (!made && !has_weights(directory)) missing.push_back("*.safetensors");
  if (missing.empty()) return Status::ok();
  return refuse("is no checkpoint: it has no " + listed(missing, "or") +
                (made ? "; weights are made from a config.json"
                      : "; a checkpoint has config.json, tokenizer.json and *.safetensors"));
}

std::string model_name(const std::string& model) {
  const fs::path path = fs::path(checkpoint_directory(model)).lexically_normal();
  return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
}

Result<qwen3_5::Config> config_of(const std::string& model) {
  const fs::path path = fs::path(checkpoint_directory(model)) / "config.json";
  TENON_ASSIGN(const std::string text, read_text(path.string()));
  return qwen3_5::parse_config(text);
}

Result<int> vocabulary_of(const std::string& model) {
  TENON_ASSIGN(const qwen3_5::Config config, config_of(model));
  return config.vocab;
}

Result<int> context_of(const std::string& model) {
  TENON_ASSIGN(const qwen3_5::Config config, config_of(model));
  return config.max_positions;
}

void add_weights_options(CLI::App& app, WeightsFrom& weights) {
  app.add_option_function<std::string>(
         "--load-format",
         [&weights](const std::string& text) {
           weights.format =
               text == name(LoadFormat::kDummy) ? LoadFormat::kDummy : LoadFormat::kSafetensors;
         },
         "dummy: make the weights from config.json alone; sizes and times are right, answers mean "
         "nothing")
      ->default_str(std::string(name(LoadFormat::kSafetensors)))
      ->check(CLI::IsMember(std::vector<std::string>{"safetensors", "dummy"}))
      ->group("Model");
  app.add_option("--weights-seed", weights.seed, "of weights that are made: another seed, others")
      ->capture_default_str()
      ->check(whole_number(0, UINT64_MAX))
      ->group("Model");
}

Status check_weights(const WeightsFrom& weights) {
  if (weights.format == LoadFormat::kDummy || weights.seed == 0) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       "--weights-seed is " + std::to_string(weights.seed) +
                           " and the weights are read from files; accepted is a seed with "
                           "--load-format dummy");
}

Status check_team(const std::string& model, int size) {
  // What is wrong with the file itself is said by who loads the model.
  const auto config = config_of(model);
  if (!config) return Status::ok();
  const Status why = divides(*config, size);
  if (why) return why;
  std::vector<std::string> accepted;
  for (int each = 1; each <= kMaxRanks; ++each)
    if (divides(*config, each)) accepted.push_back(std::to_string(each));
  return Status::error(Code::kInvalidArgument, "--tp is " + std::to_string(size) + "; \"" + model +
                                                   "\" accepts " + listed(accepted, "and") + ": " +
                                                   std::string(why.message()));
}

}  // namespace tenon::apps
