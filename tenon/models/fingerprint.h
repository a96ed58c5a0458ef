// What a rank holds as named facts, and the agreement that all ranks hold the same: a team whose
// checkpoints differ would run and give wrong logits.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/core/status.h"
#include "tenon/models/weights.h"

namespace tenon {

// "num_experts_per_tok" is "8". Names differ from each other.
struct Fact {
  std::string name, value;
  friend bool operator==(const Fact&, const Fact&) = default;
};
using Facts = std::vector<Fact>;

// Type and shape of every tensor that does not start with one of the prefixes, and a sample of its
// data: the whole of small ones, a few places of large ones. Of tensors whose names differ in
// numbers only, such as those of experts, a part is sampled, so that little is read from the disk.
Status add_tensors(const Weights& weights, std::span<const std::string_view> skipped_prefixes,
                   Facts* facts);

// Collective. An error of one rank is everybody's, as in Communicator::agree(); facts that are not
// those of rank 0 are an error that names the first one and the rank.
Status agree_on_facts(const Status& mine, const Facts& facts, Communicator& comm,
                      std::string_view label);

}  // namespace tenon
