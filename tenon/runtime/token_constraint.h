// What a sequence's next token may be, told anew for each token: a grammar, a token that is forced.
// Who submits a request makes one; it goes with its sequence, preempted or not, and sees each of
// its drawn tokens once. So the ids that it allows depend on the sequence alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace tenon {

class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Whether the next token is constrained at all.
  virtual bool constrains() const = 0;
  // Where it is: sets bit id % 32 of allowed[id / 32] for the ids that may come, and clears all
  // others. Called at most once for each token, on any thread, while nothing else is asked of this
  // object; those of other sequences may be filled at the same time. What throws allows nothing,
  // and the request ends with Finish::kFailed.
  virtual void fill(std::span<std::uint32_t> allowed) = 0;
  // Why fill() has allowed nothing, where it knows; else empty.
  virtual std::string trouble() const { return {}; }
  // The next token is known: one that was allowed.
  virtual void drew(std::int32_t id) = 0;
};

}  // namespace tenon
