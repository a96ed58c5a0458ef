// Where a rank is, as ranks tell it each other (Communicator::tell_place), and the sentence that
// compares them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tenon/comm/communicator.h"

namespace tenon {

// Steps are counted from 1 and are the same on all ranks.
struct StepPlace {
  std::int64_t step = 0;  // the last one that the rank has begun
  bool has_ended = true;
  std::int64_t calls = 0;  // of collectives and boundaries since it began; told, not set here

  // Grows as a rank goes on: step, has_ended, calls.
  std::uint64_t word() const;
  static StepPlace of(std::uint64_t word);
};

// "rank 1 has not begun step 18; nothing was heard of it for 1.6 s". Names the ranks that are
// behind the others, or says that none is; and those that have been silent for more than 1.5 s.
std::string tell_places(std::span<const RankSign> ranks);

}  // namespace tenon
