// The rules of comm/slots.h as a test chooses them while it runs: kernels are compiled once, and
// every negative control breaks a rule of its own. Include it behind the kernels.
#pragma once

#include "tenon/comm/slots.h"

namespace tenon::TENON_TARGET {

struct ChosenRules {
  static inline bool kClears = Sound::kClears;
  static inline bool kMeets = Sound::kMeets;
  static inline bool kFences = Sound::kFences;
  static inline bool kFencesCalls = Sound::kFencesCalls;
  static inline bool kOrdersHops = Sound::kOrdersHops;
  static inline bool kReadsFirst = Sound::kReadsFirst;
  static inline bool kCountsAll = Sound::kCountsAll;
  static inline bool kAdvances = Sound::kAdvances;
  static inline bool kSharesSlot = Sound::kSharesSlot;
  static inline bool kRankOrder = Sound::kRankOrder;
  static inline bool kReplaces = Sound::kReplaces;
  static inline int kLeastSteps = Sound::kLeastSteps;
  static inline int kSlots = Sound::kSlots;
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
