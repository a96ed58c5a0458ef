#include "apps/eval/answers.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "apps/interrupt.h"
#include "apps/load/load_run.h"
#include "tenon/core/clock.h"
#include "tenon/serve/ready_list.h"

namespace tenon::apps {
namespace {

struct Running {
  serve::Reply reply;
  Answered answered;
  std::chrono::steady_clock::time_point begin;
};

Status begin(Session& session, const Question& question, std::function<void()> bell,
             Running& running) {
  serve::Request request;
  request.prompt = session.prompt(question.text);
  request.sampling.max_tokens = question.max_tokens;
  request.stops = question.stops;
  request.on_ready = std::move(bell);
  running.begin = std::chrono::steady_clock::now();
  serve::Submission made = session.queue().submit(std::move(request));
  TENON_TRY(Status(made.why));
  running.reply = std::move(made.reply);
  return Status::ok();
}

// True at the end of the answer.
bool take(Running& running) {
  const serve::ReplyPart part = running.reply.take();
  Answered& out = running.answered;
  out.text += part.text;
  out.tokens.insert(out.tokens.end(), part.tokens.begin(), part.tokens.end());
  if (!part.outcome) return false;
  if (!part.outcome->why) out.error = part.outcome->why.to_string();
  if (part.outcome->reason == serve::FinishReason::kStop) out.tokens.pop_back();
  out.finish = serve::name(part.outcome->reason);
  out.num_tokens = part.outcome->completion_tokens;
  out.seconds = seconds_since(running.begin);
  return true;
}

}  // namespace

Status answer_in_process(Session& session, const std::vector<Question>& questions, int parallel,
                         const Told& told) {
  TENON_ASSIGN(const auto ready, serve::ReadyList::open());
  std::vector<Running> running(questions.size());
  std::size_t next = 0, done = 0;
  while (done < questions.size()) {
    for (; next < questions.size() && next - done < static_cast<std::size_t>(parallel); ++next)
      TENON_TRY(begin(session, questions[next], ready->bell(next), running[next]));
    if (!wait_for_input(ready->fd())) break;
    for (const std::size_t at : ready->take()) {
      if (!take(running[at])) continue;
      TENON_TRY(session.queue().health());
      ++done;
      TENON_TRY(told(at, std::move(running[at].answered)));
    }
  }
  return Status::ok();
}

Status answer_over_http(ModelClient& client, const std::vector<Question>& questions, int parallel,
                        const Told& told) {
  std::vector<ModelCall> calls(questions.size());
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i].prompt = questions[i].text;
    calls[i].max_tokens = questions[i].max_tokens;
    calls[i].stops = questions[i].stops;
  }
  Status failed = Status::ok();
  const auto heard = [&](std::size_t at, const ModelReply& reply) {
    if (!failed) return;
    Answered out;
    if (!reply.ok()) out.error = reply.error + ": " + reply.why;
    out.text = reply.text;
    out.finish = reply.finish;
    out.tokens = reply.tokens;
    out.num_tokens = reply.completion_tokens;
    out.seconds = reply.ended_s - reply.asked_s;
    failed = told(at, std::move(out));
  };
  TENON_ASSIGN([[maybe_unused]] const LoadRun run, run_load(client, calls, {parallel, {}}, heard));
  return failed;
}

void show_progress(const char* doing, std::size_t done, std::size_t total) {
  const bool screen = isatty(STDERR_FILENO) != 0;
  if (!screen && done * 10 / total == (done - 1) * 10 / total) return;
  std::fprintf(stderr, "%s%s: %zu of %zu%s", screen ? "\r" : "", doing, done, total,
               screen ? "" : "\n");
  if (screen && done == total) std::fprintf(stderr, "\r%40s\r", "");
}

}  // namespace tenon::apps
