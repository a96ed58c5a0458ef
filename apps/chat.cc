#include "apps/chat.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <optional>

#include "apps/answer.h"
#include "apps/interrupt.h"

namespace tenon::apps {
namespace {

constexpr const char* kHelp =
    "/reset          forget what was said\n"
    "/system TEXT    reset, with a system prompt; without TEXT none\n"
    "/help           this\n"
    "/exit           end, as Ctrl-D does\n"
    "Ctrl-C stops an answer; at the prompt it ends the chat. A line that begins with // is a "
    "message\n"
    "that begins with one /.\n";

// Lines of standard input. The terminal edits them.
class Lines {
 public:
  // Nothing at the end of the input and after a signal.
  std::optional<std::string> next() {
    for (;;) {
      const auto end = held_.find('\n');
      if (end != std::string::npos || (over_ && !held_.empty())) {
        std::string line = held_.substr(0, end);
        held_.erase(0, end == std::string::npos ? end : end + 1);
        if (line.ends_with('\r')) line.pop_back();
        return line;
      }
      if (over_ || !wait_for_input(STDIN_FILENO)) return std::nullopt;
      char bytes[4096];
      const auto got = ::read(STDIN_FILENO, bytes, sizeof bytes);
      if (got > 0) held_.append(bytes, static_cast<std::size_t>(got));
      if (got == 0 || (got < 0 && errno != EINTR)) over_ = true;
    }
  }

 private:
  std::string held_;
  bool over_ = false;
};

class Conversation {
 public:
  Conversation(Session& session, ChatSettings settings)
      : session_(session), settings_(std::move(settings)) {
    reset();
  }

  // One line from the person. False when it ends the chat.
  Result<bool> take(std::string line) {
    if (line.starts_with("//")) {
      line.erase(0, 1);
    } else if (line.starts_with("/")) {
      return command(line);
    }
    if (line.find_first_not_of(" \t") == std::string::npos) return true;
    messages_.push_back(message_of("user", std::move(line)));
    TENON_TRY(say());
    return true;
  }

 private:
  void reset() {
    messages_.clear();
    if (!settings_.system.empty()) messages_.push_back(message_of("system", settings_.system));
  }

  Result<bool> command(const std::string& line) {
    const std::string name = line.substr(0, line.find(' '));
    const std::string text =
        name.size() + 1 < line.size() ? line.substr(name.size() + 1) : std::string();
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/reset") {
      reset();
      std::fputs("(what was said is forgotten)\n", stderr);
    } else if (name == "/system") {
      settings_.system = text;
      reset();
      std::fputs(text.empty() ? "(no system prompt; what was said is forgotten)\n"
                              : "(the system prompt is set; what was said is forgotten)\n",
                 stderr);
    } else if (name == "/help") {
      std::fputs(kHelp, stderr);
    } else {
      std::fprintf(stderr, "there is no command %s; accepted are:\n%s", name.c_str(), kHelp);
    }
    return true;
  }

  // Answers the last message. One that cannot be answered is taken back.
  Status say() {
    bool fresh_line = true;
    const auto show = [&](std::string_view part) {
      std::fwrite(part.data(), 1, part.size(), stdout);
      std::fflush(stdout);
      fresh_line = part.ends_with('\n');
    };
    serve::Request request;
    request.prompt = serve::ChatPrompt{messages_};
    request.sampling = settings_.sampling;
    request.stops = settings_.stops;
    const auto found = answer(session_, std::move(request), show);
    if (!fresh_line) show("\n");
    if (!found) {
      if (found.status().code() != Code::kInvalidArgument) return found.status();
      messages_.pop_back();
      std::fprintf(stderr, "(not answered: %s; /reset forgets what was said)\n",
                   std::string(found.status().message()).c_str());
      return Status::ok();
    }
    messages_.push_back(message_of("assistant", found->text));
    if (interrupted_by() == SIGINT) forget_interrupt();
    if (!settings_.quiet) std::fprintf(stderr, "(%s)\n", numbers_of(*found).c_str());
    return Status::ok();
  }

  Session& session_;
  ChatSettings settings_;
  std::vector<ChatMessage> messages_;
};

}  // namespace

Status chat(Session& session, ChatSettings settings) {
  const bool quiet = settings.quiet;
  if (!quiet) std::fputs("A chat: /help lists commands, Ctrl-D ends it.\n", stderr);
  Conversation conversation(session, std::move(settings));
  Interruptible interruptible;
  Lines lines;
  for (;;) {
    std::fputs("> ", stderr);
    const auto line = lines.next();
    if (!line) {
      std::fputs("\n", stderr);
      return Status::ok();
    }
    TENON_ASSIGN(const bool on, conversation.take(*line));
    if (!on || interrupted_by() != 0) return Status::ok();
  }
}

}  // namespace tenon::apps
