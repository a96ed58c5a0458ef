#include "tenon/models/fingerprint.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>

#include "tenon/core/hash.h"

namespace tenon {
namespace {

constexpr std::size_t kWholeBytes = 16 << 10;  // tensors up to this size are read whole
constexpr std::size_t kPieceBytes = 64;
constexpr std::size_t kPieces = 4;          // of larger ones: first, last, and between
constexpr std::size_t kSampledAlike = 128;  // of tensors whose names differ in numbers only

class Digest {
 public:
  void add(const void* data, std::size_t bytes) {
    hash_.add_bytes({static_cast<const char*>(data), bytes});
  }
  void add(std::string_view text) {
    hash_.add_bytes(text);
    hash_.add(0);  // "a", "bc" is not "ab", "c"
  }
  std::uint64_t value() const { return hash_.value(); }

 private:
  Fnv1a hash_;
};

// Calls see(begin, bytes) for every sampled piece of a tensor, of whole elements, until an error.
template <class See>
Status each_piece(const StoredTensor& tensor, See&& see) {
  if (tensor.bytes <= kWholeBytes) return see(std::size_t{0}, tensor.bytes);
  const std::size_t last = tensor.bytes - kPieceBytes;
  for (std::size_t i = 0; i + 1 < kPieces; ++i)
    TENON_TRY(see(last / (kPieces - 1) * i / kPieceBytes * kPieceBytes, kPieceBytes));
  return see(last, kPieceBytes);
}

Result<std::uint64_t> sample(TensorReader& reader, const StoredTensor& tensor) {
  Digest digest;
  std::vector<std::byte> part(std::min(tensor.bytes, kWholeBytes));
  const Status read = each_piece(tensor, [&](std::size_t begin, std::size_t bytes) {
    TENON_TRY(reader.read(tensor, begin, bytes, part.data()));
    digest.add(part.data(), bytes);
    return Status::ok();
  });
  TENON_TRY(read);
  return digest.value();
}

std::string hexadecimal(std::uint64_t value) {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value));
  return text.data();
}

// "model.layers.#.mlp.experts.#.up_proj.weight".
std::string without_numbers(std::string_view name) {
  std::string kind;
  for (char each : name) {
    const bool digit = each >= '0' && each <= '9';
    if (!digit) kind += each;
    if (digit && !kind.ends_with('#')) kind += '#';
  }
  return kind;
}

// Facts as bytes: each name and value with a zero behind.
std::string packed(const Facts& facts) {
  std::string bytes;
  for (const auto& [name, value] : facts)
    bytes.append(name).append(1, 0).append(value).append(1, 0);
  return bytes;
}

Facts unpacked(std::string_view bytes) {
  Facts facts;
  const auto next = [&bytes] {
    const std::size_t end = std::min(bytes.find('\0'), bytes.size());
    std::string text(bytes.substr(0, end));
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    return text;
  };
  while (!bytes.empty()) {
    std::string name = next();
    facts.push_back({std::move(name), next()});
  }
  return facts;
}

// The first fact, in our order, that is not rank 0's; then the first of rank 0's that we lack.
Status first_difference(const Facts& mine, const Facts& first) {
  std::map<std::string_view, std::string_view> others;
  for (const auto& [name, value] : first) others.emplace(name, value);
  const auto differs = [](const std::string& name, std::string_view here, std::string_view there) {
    std::string text = name + " is ";
    text.append(here).append(", on rank 0 it is ").append(there);
    return Status::error(Code::kInvalidArgument,
                         text + "; accepted: the same checkpoint on all ranks");
  };
  for (const auto& [name, value] : mine) {
    const auto other = others.find(name);
    if (other == others.end()) return differs(name, value, "missing");
    if (other->second != value) return differs(name, value, other->second);
    others.erase(other);
  }
  for (const auto& [name, value] : first)
    if (others.contains(name)) return differs(name, "missing", value);
  return Status::ok();
}

}  // namespace

Status add_tensors(const Weights& weights, std::span<const std::string_view> skipped_prefixes,
                   Facts* facts) {
  struct Kind {
    std::size_t members = 0, seen = 0;
  };
  std::map<std::string, Kind> kinds;
  weights.visit(skipped_prefixes, [&](const std::string& name, const StoredTensor&) {
    ++kinds[without_numbers(name)].members;
  });
  struct Sampled {
    std::string name;
    const StoredTensor* tensor;
  };
  std::vector<Sampled> sampled;
  weights.visit(skipped_prefixes, [&](const std::string& name, const StoredTensor& stored) {
    const std::string what = "tensor \"" + name + "\"";
    facts->push_back({what, describe(stored)});
    Kind& kind = kinds[without_numbers(name)];
    const std::size_t stride = (kind.members + kSampledAlike - 1) / kSampledAlike;
    if (kind.seen++ % stride == 0) sampled.push_back({"the data of " + what, &stored});
  });
  // A disk that has to fetch thousands of small pieces is asked for all of them at once.
  const std::unique_ptr<TensorReader> reader = weights.source().reader();
  for (const auto& [name, tensor] : sampled)
    TENON_TRY(each_piece(*tensor, [&, at = tensor](std::size_t begin, std::size_t bytes) {
      reader->expect(*at, begin, bytes);
      return Status::ok();
    }));
  for (auto& [name, tensor] : sampled) {  // behind all the types and shapes, which say more
    TENON_ASSIGN(const std::uint64_t value, sample(*reader, *tensor));
    facts->push_back({std::move(name), hexadecimal(value)});
  }
  return Status::ok();
}

Status agree_on_facts(const Status& mine, const Facts& facts, Communicator& comm,
                      std::string_view label) {
  TENON_TRY(comm.agree_after_load(mine, label));
  // Nearly always all are the same: one number says so.
  Digest digest;
  std::uint64_t bytes_packed = 0;
  for (const auto& [name, value] : facts) {
    digest.add(name);
    digest.add(value);
    bytes_packed += name.size() + value.size() + 2;
  }
  std::array<std::uint64_t, 2> first{digest.value(), bytes_packed};
  TENON_TRY(comm.broadcast(std::as_writable_bytes(std::span(first))), label);
  std::array<std::int32_t, 1> same{first[0] == digest.value() ? 1 : 0};
  TENON_TRY(comm.agree_min(same), label);
  if (same[0] == 1) return Status::ok();
  std::string bytes = packed(facts);
  bytes.resize(static_cast<std::size_t>(first[1]));  // rank 0's are as many
  TENON_TRY(comm.broadcast(std::as_writable_bytes(std::span(bytes))), label);
  return comm.agree(first_difference(facts, unpacked(bytes)), label);
}

}  // namespace tenon
