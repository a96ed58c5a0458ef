#include "apps/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "apps/options.h"
#include "tenon/comm/communicator.h"
#include "tenon/models/qwen3_5/config.h"

namespace tenon::apps {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool has_weights(const std::string& directory) {
  std::error_code failed;
  for (const auto& each : fs::directory_iterator(directory, failed))
    if (each.path().extension() == ".safetensors") return true;
  return false;
}

// What only fp8 weights forbid is said by who loads them.
Status divides(const qwen3_5::Config& config, int size) {
  for (int rank = 0; rank < size; ++rank)
    TENON_TRY(qwen3_5::share(config, /*fp8=*/false, rank, size));
  return Status::ok();
}

}  // namespace

std::string default_model() {
  const std::string name = "checkpoints/tiny";
  std::error_code failed;
  if (fs::is_directory(name, failed)) return name;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  for (fs::path at = program.parent_path(); at != at.root_path(); at = at.parent_path())
    if (fs::is_directory(at / name, failed)) return (at / name).string();
  return name;
}

Status check_checkpoint(const std::string& directory) {
  const auto refuse = [&](const std::string& why) {
    return Status::error(Code::kIo, "--model \"" + directory + "\": " + why);
  };
  std::error_code failed;
  const auto found = fs::status(directory, failed);
  if (found.type() == fs::file_type::not_found) return refuse("no such directory");
  if (fs::exists(found) && !fs::is_directory(found))
    return refuse("is a file; accepted is the directory it lies in");
  if (failed) return refuse(failed.message());
  std::vector<std::string> missing;
  for (const char* name : {"config.json", "tokenizer.json"})
    if (!fs::exists(fs::path(directory) / name, failed)) missing.push_back(name);
  if (!has_weights(directory)) missing.push_back("*.safetensors");
  if (missing.empty()) return Status::ok();
  return refuse("is no checkpoint: it has no " + listed(missing, "or") +
                "; a checkpoint has config.json, tokenizer.json and *.safetensors");
}

Status check_team(const std::string& directory, int size) {
  // What is wrong with the file itself is said by who loads the model.
  const auto config = qwen3_5::parse_config(read(fs::path(directory) / "config.json"));
  if (!config) return Status::ok();
  const Status why = divides(*config, size);
  if (why) return why;
  std::vector<std::string> accepted;
  for (int each = 1; each <= kMaxRanks; ++each)
    if (divides(*config, each)) accepted.push_back(std::to_string(each));
  return Status::error(Code::kInvalidArgument,
                       "--tp is " + std::to_string(size) + "; \"" + directory + "\" accepts " +
                           listed(accepted, "and") + ": " + std::string(why.message()));
}

}  // namespace tenon::apps
