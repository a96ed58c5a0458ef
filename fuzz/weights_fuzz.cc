// A checkpoint directory: an index and one shard, cut from the input at the first line without
// text, and whoever asks for tensors by the names that it holds.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/models/fingerprint.h"
#include "tenon/models/weights.h"

namespace {

// Removed at the end of the process.
struct Directory {
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "tenon-fuzz-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path = name;
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  void write(const char* name, std::string_view bytes) const {
    std::ofstream(path / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::filesystem::path path;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Directory directory;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  constexpr std::string_view kCut = "\n\n";
  const std::size_t cut = input.find(kCut);
  if (cut == std::string_view::npos) return 0;
  directory.write("model.safetensors.index.json", input.substr(0, cut));
  directory.write("a", input.substr(cut + kCut.size()));
  auto weights = tenon::Weights::open(directory.path.string());
  if (!weights) {
    if (weights.status().message().empty()) std::abort();
    return 0;
  }
  tenon::Facts facts;
  tenon::add_tensors(*weights, {}, &facts);
  std::vector<std::string> names;
  std::int64_t bytes = 0;
  weights->visit({}, [&](const std::string& name, const tenon::StoredTensor& stored) {
    names.push_back(name);
    bytes += static_cast<std::int64_t>(stored.bytes);
  });
  if (weights->bytes_wanted({}) != bytes || facts.size() < names.size()) std::abort();
  for (const std::string& name : names) {
    const tenon::StoredTensor& stored = *weights->find(name);
    if (stored.dtype && !weights->take(name, {*stored.dtype}, stored.shape)) std::abort();
    if (weights->take(name, {tenon::DType::kF32}, {1, 2, 3})) std::abort();  // taken, or another
  }
  return 0;
}
