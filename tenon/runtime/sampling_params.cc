#include "tenon/runtime/sampling_params.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace tenon {
namespace {

Status refuse(std::string why) { return Status::error(Code::kInvalidArgument, std::move(why)); }

// NaN is out of every range.
Status in_range(const char* name, float value, float low, float high) {
  if (value >= low && value <= high) return Status::ok();
  const auto text = [](float each) {
    const std::string digits = std::to_string(each);
    return digits.substr(0, digits.find_last_not_of('0') + 1);
  };
  const auto whole = [](float each) { return std::to_string(static_cast<int>(each)); };
  return refuse(std::string(name) + " is " + text(value) + "; accepted: " + whole(low) + " to " +
                whole(high));
}

Status check_bias(const SamplingParams& sampling) {
  const std::size_t entries = sampling.logit_bias.size() + sampling.hold_back.size();
  if (entries > kMaxLogitBias)
    return refuse("logit_bias and hold_back have " + std::to_string(entries) +
                  " entries; accepted are at most " + std::to_string(kMaxLogitBias));
  std::vector<std::int32_t> ids;
  for (const auto& [id, bias] : sampling.logit_bias) {
    const bool bans = std::isinf(bias) && bias < 0;
    if (!bans && !(bias >= -100.0f && bias <= 100.0f))
      return refuse("the logit_bias of id " + std::to_string(id) + " is " + std::to_string(bias) +
                    "; accepted: -100 to 100, and minus infinity");
    ids.push_back(id);
  }
  std::ranges::sort(ids);
  const auto twice = std::ranges::adjacent_find(ids);
  if (twice == ids.end()) return Status::ok();
  return refuse("logit_bias has id " + std::to_string(*twice) + " twice; accepted is once");
}

}  // namespace

Status check(const SamplingParams& sampling) {
  if (!(sampling.temperature >= 0.0f) || sampling.temperature > 100.0f)
    return refuse("temperature is " + std::to_string(sampling.temperature) +
                  "; accepted: 0 to 100");
  if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f))
    return refuse("top_p is " + std::to_string(sampling.top_p) + "; accepted: above 0, up to 1");
  if (sampling.top_k < 0)
    return refuse("top_k is " + std::to_string(sampling.top_k) + "; accepted: 0 (all) and more");
  const bool tells_prompt = sampling.prompt_logprobs >= 0;
  if (sampling.max_tokens < (tells_prompt ? 0 : 1))
    return refuse("max_tokens is " + std::to_string(sampling.max_tokens) + "; at least " +
                  (tells_prompt ? "0" : "1") + " is needed");
  TENON_TRY(in_range("min_p", sampling.min_p, 0, 1));
  if (!(sampling.repetition_penalty > 0.0f && sampling.repetition_penalty <= 10.0f))
    return refuse("repetition_penalty is " + std::to_string(sampling.repetition_penalty) +
                  "; accepted: above 0, up to 10");
  TENON_TRY(in_range("frequency_penalty", sampling.frequency_penalty, -2, 2));
  TENON_TRY(in_range("presence_penalty", sampling.presence_penalty, -2, 2));
  if (sampling.min_tokens < 0 || sampling.min_tokens > sampling.max_tokens)
    return refuse("min_tokens is " + std::to_string(sampling.min_tokens) +
                  "; accepted: 0 to max_tokens, " + std::to_string(sampling.max_tokens));
  const std::pair<const char*, int> listed[] = {{"logprobs", sampling.logprobs},
                                                {"prompt_logprobs", sampling.prompt_logprobs}};
  for (const auto& [name, value] : listed)
    if (value > kMaxLogprobs)
      return refuse(std::string(name) + " is " + std::to_string(value) + "; accepted are at most " +
                    std::to_string(kMaxLogprobs));
  if (sampling.prompt_logprobs_from < 0)
    return refuse("prompt_logprobs_from is " + std::to_string(sampling.prompt_logprobs_from) +
                  "; accepted are 0 and more");
  return check_bias(sampling);
}

}  // namespace tenon
