#include "apps/answer.h"

#include <algorithm>
#include <chrono>

#include "apps/interrupt.h"
#include "apps/table.h"

namespace tenon::apps {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double rate(std::int64_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

// What ended a request, so that a limit says which one it was.
std::string finish_of(Finish finish, const Answer& answer, const SamplingParams& sampling) {
  if (finish != Finish::kLength) return std::string(name(finish));
  const bool all = static_cast<int>(answer.tokens.size()) >= sampling.max_tokens;
  return all ? "max_new_tokens" : "context";
}

}  // namespace

std::string StopStrings::push(std::string_view part) {
  held_ += part;
  std::size_t first = std::string::npos;
  for (const std::string& each : stops_) {
    const std::size_t at = held_.find(each);
    if (each.empty() || at >= first) continue;
    first = at;
    found_ = each;
  }
  if (!found_.empty()) {
    std::string front = held_.substr(0, first);
    held_.clear();
    return front;
  }
  std::size_t held = 0;  // the longest end of the text that begins a stop string
  for (const std::string& each : stops_)
    for (std::size_t size = std::min(held_.size(), each.size()); size > held; --size)
      if (std::string_view(each).starts_with(std::string_view(held_).substr(held_.size() - size)))
        held = size;
  std::string front = held_.substr(0, held_.size() - held);
  held_.erase(0, front.size());
  return front;
}

std::string StopStrings::rest() { return std::exchange(held_, {}); }

Result<Answer> answer(Session& session, std::vector<std::int32_t> prompt,
                      const SamplingParams& sampling, const std::vector<std::string>& stops,
                      const std::function<void(std::string_view)>& show) {
  Engine& engine = session.engine();
  const EngineStats before = engine.stats();
  Answer out;
  out.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  StreamingDetokenizer detokenizer(session.tokenizer());
  StopStrings filter(stops);
  const auto tell = [&](const std::string& text) {
    out.text += text;
    if (!text.empty()) show(text);
  };
  const auto begin = Clock::now();
  TENON_ASSIGN(const RequestId id, engine.submit(std::move(prompt), sampling));
  while (!engine.idle()) {
    if (out.finish.empty() && interrupted_by() != 0) {
      out.finish = "interrupted";
      TENON_TRY(engine.cancel(id));
    }
    TENON_ASSIGN(const auto events, engine.step());
    for (const TokenEvent& event : events) {
      if (event.token < 0 || !out.finish.empty()) continue;  // it was cancelled
      if (out.tokens.empty()) out.first_token_seconds = seconds_since(begin);
      out.tokens.push_back(event.token);
      if (event.finish != Finish::kStop) tell(filter.push(detokenizer.push(event.token)));
      if (event.finish != Finish::kNone) out.finish = finish_of(event.finish, out, sampling);
      if (filter.found().empty()) continue;
      if (event.finish == Finish::kNone) TENON_TRY(engine.cancel(id));
      out.finish = "stop_string";
      out.stop_string = filter.found();
    }
  }
  if (filter.found().empty()) {
    tell(filter.push(detokenizer.finish()));
    tell(filter.rest());
  }
  if (out.finish.empty())
    return Status::error(Code::kInternal, "the request ended without saying why");
  out.total_seconds = seconds_since(begin);
  const EngineStats after = engine.stats();
  out.prefill_rate = rate(out.tokens.empty() ? 0 : out.prompt_tokens, out.first_token_seconds);
  out.decode_rate = rate(after.decode_tokens - before.decode_tokens,
                         after.decode_seconds - before.decode_seconds);
  return out;
}

std::string numbers_of(const Answer& answer) {
  std::string text = "prompt " + std::to_string(answer.prompt_tokens) + " tokens";
  if (!answer.tokens.empty())
    text += ", first token after " + fixed(1e3 * answer.first_token_seconds, 1) + " ms (" +
            fixed(answer.prefill_rate, 1) + " tokens/s)";
  text += "; " + std::to_string(answer.tokens.size()) + " tokens (" + answer.finish + ")";
  if (answer.decode_rate > 0) text += ", decode " + fixed(answer.decode_rate, 1) + " tokens/s";
  return text + "; " + fixed(answer.total_seconds, 2) + " s in all";
}

double decode_rate(const EngineStats& stats) {
  return rate(stats.decode_tokens, stats.decode_seconds);
}

}  // namespace tenon::apps
