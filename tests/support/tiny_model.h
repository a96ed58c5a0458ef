// Random tiny Qwen3.5 checkpoints as files: every weight is a pure function of its tensor's name
// and its flat index, so that another program can make the same ones
// (tests/data/goldens/README.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::test {

// One tensor to be written; `type` as safetensors spells it.
struct FileTensor {
  std::string type;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};
using FileTensors = std::map<std::string, FileTensor>;

// The file's bytes: length, JSON header, data in name order.
std::string safetensors_bytes(const FileTensors& tensors);
void write_file(const std::filesystem::path& path, std::string_view bytes);

// The numbers that a tiny config.json is made from.
struct TinyShape {
  int layers = 4, hidden = 256, vocab = 512;
  int heads = 4, kv_heads = 2, head_dim = 256;
  int k_heads = 4, v_heads = 8;
  int intermediate = 512;      // dense
  int experts = 0, top_k = 2;  // experts > 0: a MoE
  int moe_intermediate = 256, shared_intermediate = 512;
  bool tied = false, fp8 = true;
  bool flat = false;  // parameters at the root, as in text-only exports
};
std::string tiny_config(const TinyShape& shape);

// All tensors of the checkpoint that config.json describes. Names carry `prefix`.
FileTensors tiny_tensors(std::string_view config_json,
                         std::string_view prefix = "model.language_model.");

// Writes `tensors` as `shards` files with an index (one file without, if shards is 0).
void write_checkpoint(const std::filesystem::path& directory, std::string_view config_json,
                      const FileTensors& tensors, int shards);

// A fresh directory, removed with its contents.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

std::uint64_t splitmix64(std::uint64_t x);

}  // namespace tenon::test
