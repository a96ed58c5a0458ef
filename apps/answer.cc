#include "apps/answer.h"

#include <chrono>
#include <optional>

#include "apps/interrupt.h"
#include "apps/table.h"
#include "tenon/serve/ready_list.h"

namespace tenon::apps {
namespace {

double rate(std::int64_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

// What ended a request. A limit says which one it was.
std::string finish_of(serve::FinishReason reason) {
  switch (reason) {
    case serve::FinishReason::kLength: return "max_new_tokens";
    case serve::FinishReason::kCancelled: return "interrupted";
    default: return std::string(name(reason));
  }
}

}  // namespace

Result<Answer> answer(Session& session, serve::Request request,
                      const std::function<void(std::string_view)>& show) {
  serve::RequestQueue& queue = session.queue();
  TENON_ASSIGN(const EngineStats before, queue.engine_stats());
  TENON_ASSIGN(const auto ready, serve::ReadyList::open());
  request.on_ready = ready->bell(0);
  serve::Submission made = queue.submit(std::move(request));
  TENON_TRY(Status(made.why));
  serve::Reply& reply = made.reply;
  Answer out;
  std::optional<serve::Outcome> outcome;
  while (!outcome) {
    if (!wait_for_input(ready->fd())) reply.cancel();
    static_cast<void>(ready->take());
    // After a signal there is nothing to wait for but the end.
    serve::ReplyPart part = interrupted_by() != 0 ? reply.wait() : reply.take();
    out.tokens.insert(out.tokens.end(), part.tokens.begin(), part.tokens.end());
    out.text += part.text;
    if (!part.text.empty()) show(part.text);
    outcome = std::move(part.outcome);
  }
  if (outcome->reason == serve::FinishReason::kFailed) return outcome->why;
  out.finish = finish_of(outcome->reason);
  out.stop_string = outcome->stop;
  out.prompt_tokens = outcome->prompt_tokens;
  out.first_token_seconds = serve::first_token_seconds(*outcome).value_or(0);
  const std::chrono::duration<double> total = outcome->times.ended - outcome->times.queued;
  out.total_seconds = total.count();
  TENON_ASSIGN(const EngineStats after, queue.engine_stats());
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
