// What can be said of a checkpoint without loading it: its shape in words and numbers, its tensors,
// and what each rank of a team would hold. Bytes come from the loader itself, run over the headers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/layers/caches.h"
#include "tenon/models/load_format.h"

namespace tenon {

// "vocabulary": 1024.
struct NamedNumber {
  std::string name;
  double value = 0;
};
// "layers": "8: twice 3 delta-net and 1 attention".
struct NamedWords {
  std::string name, words;
};

struct TensorSummary {
  std::string name, type;  // the type as the file spells it
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;
  std::string kind;  // "experts", "embedding"; "not used" for parts that the model skips
};

// A team of so many ranks.
struct TeamSummary {
  int size = 1;
  std::vector<std::string> refusals;       // every reason why it is not possible; none: it is
  std::vector<std::int64_t> weight_bytes;  // of each rank
  std::vector<std::string> shares;         // of each rank, in words
  CacheLayout caches;                      // of each rank
};

struct ModelSummary {
  std::string architecture;  // as config.json names it
  std::vector<NamedWords> words;
  std::vector<NamedNumber> numbers;
  std::vector<std::int32_t> eos_ids;  // of the configs; a chat's template may add the tokenizer's
  std::vector<std::string> unread_keys;  // of config.json, "text_config.use_cache"
  std::vector<TensorSummary> tensors;
  std::int64_t rope_bytes_per_position = 0;  // on each rank, besides the weights
  std::vector<TeamSummary> teams;
};

// The checkpoint `model`, a directory or its config.json, and a team of each of these sizes. Reads
// no weights; with made ones the tensors are those that the publisher's checkpoint would hold.
Result<ModelSummary> inspect_model(const std::string& model, std::span<const int> sizes,
                                   const WeightsFrom& from = {});

}  // namespace tenon
