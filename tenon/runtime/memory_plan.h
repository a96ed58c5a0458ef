// What one rank takes of its device's memory, part by part, in bytes, as it is asked for: known
// before anything of it is allocated. What it holds afterwards is the same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/models/model.h"

namespace tenon {

struct MemoryPlan {
  ModelMemory model;
  std::int64_t steps = 0;        // input, logits, reports of draws, mailboxes of logits
  std::int64_t blocks = 0;       // caches per block: kv
  std::int64_t states = 0;       // caches per sequence, of max_batch sequences
  std::int64_t kept_states = 0;  // the same, of kept prompts
  // All of the device's memory, or this rank's even part where ranks share it.
  std::int64_t device = 0;
  std::int64_t cache_tokens = 0;  // that the blocks hold

  std::int64_t without_caches() const;
  std::int64_t total() const;
  // What `fraction` of the device's memory leaves for caches; 0 where it leaves nothing.
  std::int64_t left(double fraction) const;

  struct Part {
    std::string_view name;
    std::int64_t bytes = 0;
  };
  std::vector<Part> parts() const;  // all of them: their sum is total()
  // "memory of 85 GB: weights 17 GB, …, 3 GB are left". For a log.
  std::string text() const;
};

// As messages say bytes: whole MB, or whole GB from 10 GB on.
std::string memory_text(double bytes);

}  // namespace tenon
