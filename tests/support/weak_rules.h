// The rules of comm/device/exchange.cuh as a test chooses them while it runs: kernels are compiled
// once, and every negative control breaks a rule of its own. Include it behind the kernels.
#pragma once

#include "tenon/comm/device/exchange.cuh"

namespace tenon::TENON_TARGET {

struct ChosenRules {
  static inline bool kClears = SoundProtocol::kClears;
  static inline bool kMeets = SoundProtocol::kMeets;
  static inline bool kFences = SoundProtocol::kFences;
  static inline bool kFencesCalls = SoundProtocol::kFencesCalls;
  static inline bool kOrdersHops = SoundProtocol::kOrdersHops;
  static inline bool kReadsFirst = SoundProtocol::kReadsFirst;
  static inline bool kCountsAll = SoundProtocol::kCountsAll;
  static inline bool kAdvances = SoundProtocol::kAdvances;
  static inline bool kSharesSlot = SoundProtocol::kSharesSlot;
  static inline bool kRankOrder = SoundProtocol::kRankOrder;
  static inline bool kReplaces = SoundProtocol::kReplaces;
  static inline int kLeastSteps = SoundProtocol::kLeastSteps;
  static inline int kSlots = SoundProtocol::kSlots;
};

// One rule as long as this object lives.
template <class T>
class Rule {
 public:
  Rule(T& rule, T value) : rule_(rule), before_(rule) { rule = value; }
  ~Rule() { rule_ = before_; }
  Rule(const Rule&) = delete;
  Rule& operator=(const Rule&) = delete;

 private:
  T& rule_;
  const T before_;
};

}  // namespace tenon::TENON_TARGET
