// How the tokens of one request are drawn, as values; tenon/ops/sampling has the formulas.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

inline constexpr int kMaxLogprobs = 20;     // as sampling::kMaxLikely
inline constexpr int kMaxLogitBias = 1024;  // entries, with hold_back

struct SamplingParams {
  float temperature = 0;  // 0 is greedy
  float top_p = 1;        // (0, 1]; 1 means all
  int top_k = 0;          // 0 means all
  int max_tokens = 256;  // at least 1, or with prompt_logprobs 0: the prompt is read, nothing drawn
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  float min_p = 0;               // [0, 1]: at least so likely as the likeliest; 0 means all
  float repetition_penalty = 1;  // above 0, at most 10: divides what prompt or answer have
  float frequency_penalty = 0;   // [−2, 2]: taken off once for each time the answer has it
  float presence_penalty = 0;    // [−2, 2]: taken off where the answer has it
  // Added to the logits of these ids: each id once, −infinity or [−100, 100].
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};
  // Ids that end the answer are not drawn before so many tokens: those that end every answer of the
  // engine, unless ignore_eos, and those of hold_back.
  int min_tokens = 0;
  std::vector<std::int32_t> hold_back = {};
  // How many of the likeliest ids are told with every token, beside its own log probability; below
  // 0: neither. At most kMaxLogprobs. Told are the probabilities of the model, at temperature 1,
  // before biases and penalties.
  int logprobs = -1;
  // The same of the tokens of the prompt behind number prompt_logprobs_from, each after those in
  // front of it. They are computed for this request, whatever is kept of earlier prompts.
  int prompt_logprobs = -1;
  int prompt_logprobs_from = 0;  // 0 to the number of the prompt's last token
};

// Natural logarithms of probabilities, of one token that was drawn or given; −infinity where the
// logits hold no number.
struct TokenLogprobs {
  float drawn = 0;  // of the token itself
  // Of a given token: 1 where none is likelier, ties to the lower id; 0 where the logits hold no
  // number. 0 for one that was drawn.
  std::int32_t rank = 0;
  std::vector<std::pair<std::int32_t, float>> likeliest = {};  // as many as asked for, in order
};

// What can be said of them before there is an engine.
Status check(const SamplingParams& sampling);

}  // namespace tenon
