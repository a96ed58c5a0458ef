#include "tenon/models/weights.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "tenon/core/file.h"
#include "tenon/core/guard.h"
#include "tenon/core/json.h"
#include "tenon/models/reader_threads.h"

namespace tenon {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::uint64_t kMaxIndexBytes = std::uint64_t{256} << 20;

Status malformed(std::string why) { return Status::error(Code::kIo, std::move(why)); }

bool present(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool skipped(std::string_view name, std::span<const std::string_view> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

using WeightMap = std::map<std::string, std::string, std::less<>>;  // tensor name → file name

// The "weight_map" of an index. File names stay inside the directory.
Result<WeightMap> read_index(const std::string& path) {
  TENON_ASSIGN(const std::string text, read_text(path, kMaxIndexBytes));
  TENON_ASSIGN(const Json index, parse_json(text, JsonKeys::kUnique), path);
  if (!index.is_object()) return malformed(path + ": is not a JSON object");
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object())
    return malformed(path + ": has no \"weight_map\" object");
  WeightMap files;
  for (const auto& [tensor, file] : found->items()) {
    if (!file.is_string())
      return malformed(path + ": the file of \"" + tensor + "\" is not a string");
    const auto name = file.get<std::string>();
    if (name.empty() || name.find('/') != std::string::npos || name.front() == '.')
      return malformed(path + ": \"" + tensor + "\" lies in \"" + name +
                       "\", which is not a plain file name");
    files.emplace(tensor, name);
  }
  return files;
}

// Has one of the files open at a time.
class FileReader final : public TensorReader {
 public:
  explicit FileReader(const std::vector<SafetensorsFile>& files) : files_(files) {}
  Status read(const StoredTensor& tensor, std::size_t begin, std::size_t count,
              std::byte* to) override {
    TENON_TRY(turn_to(tensor.file));
    return open_->read(tensor.offset + begin, count, to);
  }
  void expect(const StoredTensor& tensor, std::size_t begin, std::size_t count) override {
    if (turn_to(tensor.file)) open_->expect(tensor.offset + begin, count);
  }
  std::size_t cheap_gap_bytes() const override { return 4096; }

 private:
  Status turn_to(std::size_t file) {
    if (open_ && number_ == file) return Status::ok();
    TENON_ASSIGN(open_, files_[file].reopen());
    number_ = file;
    return Status::ok();
  }
  const std::vector<SafetensorsFile>& files_;
  std::optional<InputFile> open_;
  std::size_t number_ = 0;  // of the open one
};

class Files final : public TensorSource {
 public:
  const Tensors& tensors() const override { return tensors_; }
  std::unique_ptr<TensorReader> reader() const override {
    return std::make_unique<FileReader>(files_);
  }

  std::vector<SafetensorsFile> files_;
  Tensors tensors_;  // point into the files
};

// The headers of all files, or what is wrong with the first one that has an error. By several
// threads: large checkpoints have a hundred files, with thousands of tensors in each.
Result<std::vector<SafetensorsFile>> read_headers(const std::filesystem::path& root,
                                                  const std::set<std::string>& names) {
  constexpr std::size_t kMostThreads = 8;
  std::vector<std::string> paths;
  for (const std::string& name : names) paths.push_back((root / name).string());
  std::vector<std::optional<Result<SafetensorsFile>>> read(paths.size());
  std::atomic<std::size_t> next{0};
  run_on_threads(static_cast<int>(std::min(kMostThreads, paths.size())), [&](int) {
    for (std::size_t at = next++; at < paths.size(); at = next++)
      read[at] = guarded([&] { return SafetensorsFile::open(paths[at], at); });
  });
  std::vector<SafetensorsFile> files;
  files.reserve(paths.size());
  for (auto& each : read) {
    TENON_ASSIGN(SafetensorsFile file, *std::move(each));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

struct Weights::State {
  std::unique_ptr<const TensorSource> source;
  const TensorSource::Tensors& tensors;  // of the source
  std::set<std::string, std::less<>> taken;
  std::int64_t bytes_taken = 0;
};

Weights::Weights(std::unique_ptr<const TensorSource> source) {
  const TensorSource::Tensors& tensors = source->tensors();
  state_ = std::make_unique<State>(State{std::move(source), tensors, {}, 0});
}
Weights::Weights(Weights&&) noexcept = default;
Weights& Weights::operator=(Weights&&) noexcept = default;
Weights::~Weights() = default;

std::int64_t HostTensor::rows() const {
  std::int64_t count = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
  return count;
}

Result<Weights> Weights::open(const std::string& directory) {
  const std::filesystem::path root(directory);
  auto found = std::make_unique<Files>();
  WeightMap placed;
  std::set<std::string> names;
  const bool indexed = present(root / kIndexName);
  if (indexed) {
    TENON_ASSIGN(placed, read_index((root / kIndexName).string()));
    for (const auto& [tensor, file] : placed) names.insert(file);
  } else if (present(root / kSingleName)) {
    names.insert(std::string(kSingleName));
  } else {
    return malformed(directory + ": holds neither " + std::string(kIndexName) + " nor " +
                     std::string(kSingleName));
  }

  for (const std::string& name : names)
    if (!present(root / name))
      return malformed(directory + ": the index names the file " + name + ", which is missing");
  TENON_ASSIGN(found->files_, read_headers(root, names));
  auto next = found->files_.begin();
  for (const std::string& name : names) {
    for (const auto& [tensor, stored] : (next++)->tensors()) {
      const auto place = placed.find(tensor);
      if (indexed && place == placed.end())
        return malformed(name + ": holds \"" + tensor + "\", which the index does not know");
      if (indexed && place->second != name)
        return malformed(name + ": holds \"" + tensor + "\", which the index places in " +
                         place->second);
      found->tensors_.emplace(tensor, &stored);
    }
  }
  for (const auto& [tensor, file] : placed)
    if (!found->tensors_.contains(tensor))
      return malformed("the index places \"" + tensor + "\" in " + file +
                       ", which does not hold it");
  return Weights(std::move(found));
}

bool Weights::has(std::string_view name) const { return state_->tensors.contains(name); }

std::optional<DType> Weights::dtype(std::string_view name) const {
  const auto found = state_->tensors.find(name);
  return found == state_->tensors.end() ? std::nullopt : found->second->dtype;
}

void Weights::visit(
    std::span<const std::string_view> skipped_prefixes,
    const std::function<void(const std::string& name, const StoredTensor&)>& see) const {
  for (const auto& [name, stored] : state_->tensors)
    if (!skipped(name, skipped_prefixes)) see(name, *stored);
}

bool Weights::holds(DType dtype, std::span<const std::string_view> skipped_prefixes) const {
  return std::any_of(state_->tensors.begin(), state_->tensors.end(), [&](const auto& entry) {
    return entry.second->dtype == dtype && !skipped(entry.first, skipped_prefixes);
  });
}

const StoredTensor* Weights::find(std::string_view name) const {
  const auto found = state_->tensors.find(name);
  return found == state_->tensors.end() ? nullptr : found->second;
}

const TensorSource& Weights::source() const { return *state_->source; }

Result<HostTensor> Weights::take(std::string_view name, std::initializer_list<DType> accepted,
                                 const std::vector<std::int64_t>& shape) {
  std::string wanted;
  for (DType each : accepted) wanted.append(wanted.empty() ? "" : " or ").append(tenon::name(each));
  wanted.append(" ").append(describe(shape));
  std::string asked = "tensor \"";
  asked.append(name).append("\"");
  const auto found = state_->tensors.find(name);
  if (found == state_->tensors.end()) return malformed(asked + " is missing; wanted " + wanted);
  const StoredTensor& stored = *found->second;
  const bool right_type =
      stored.dtype && std::find(accepted.begin(), accepted.end(), *stored.dtype) != accepted.end();
  if (!right_type || stored.shape != shape)
    return malformed(asked + " is " + describe(stored) + "; wanted " + wanted);
  if (!state_->taken.insert(std::string(name)).second)
    return Status::error(Code::kInternal, asked + " is taken a second time");
  state_->bytes_taken += static_cast<std::int64_t>(stored.bytes);
  return HostTensor{std::string(name), *stored.dtype, stored.shape, &stored, state_->source.get()};
}

Status Weights::finish(std::span<const std::string_view> skipped_prefixes) const {
  constexpr std::size_t kNamed = 3;
  std::vector<std::string_view> left;
  for (const auto& [name, stored] : state_->tensors)
    if (!state_->taken.contains(name) && !skipped(name, skipped_prefixes)) left.push_back(name);
  if (left.empty()) return Status::ok();
  std::string list;
  for (std::size_t i = 0; i < std::min(kNamed, left.size()); ++i)
    list.append(i > 0 ? ", \"" : "\"").append(left[i]).append("\"");
  if (left.size() > kNamed) list += ", …";
  return malformed("the checkpoint holds " + std::to_string(left.size()) +
                   " tensors that this model has no place for: " + list);
}

void Weights::take_back() {
  state_->taken.clear();
  state_->bytes_taken = 0;
}

std::int64_t Weights::bytes_taken() const { return state_->bytes_taken; }

std::int64_t Weights::bytes_wanted(std::span<const std::string_view> skipped_prefixes) const {
  std::int64_t total = 0;
  for (const auto& [name, stored] : state_->tensors)
    if (!skipped(name, skipped_prefixes)) total += static_cast<std::int64_t>(stored->bytes);
  return total;
}

}  // namespace tenon
