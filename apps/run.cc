// tenon run: one prompt, its answer streamed to standard output, and how every boundary ran on
// standard error. On a terminal and without a prompt: a chat.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "apps/answer.h"
#include "apps/chat.h"
#include "apps/commands.h"
#include "apps/input_text.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/session.h"
#include "apps/table.h"
#include "apps/version.h"

namespace tenon::apps {
namespace {

// What --demo asks.
constexpr const char* kQuestion =
    "Tom has 3 boxes of 12 pencils. He gives 8 to his sister. How many pencils are left?";

struct Options {
  SessionOptions session;
  SamplingParams sampling;
  std::optional<std::string> prompt;  // as given: "-" and "@FILE" name where it is
  std::string prompt_file, system;
  std::vector<std::int32_t> prompt_ids;
  int random_ids = 0;  // length of a prompt of random ids; 0: none
  std::vector<std::string> stops;
  bool demo = false, json = false, chat = false, raw = false;
};

bool prompts_by_ids(const Options& options) {
  return !options.prompt_ids.empty() || options.random_ids > 0;
}

// The text without the newline that editors and echo put at its end.
Result<std::string> prompt_in(Result<std::string> read, const std::string& name) {
  TENON_TRY(read);
  std::string text = *std::move(read);
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  if (text.empty())
    return Status::error(Code::kInvalidArgument,
                         name + " holds no prompt; accepted are a text in it, or --prompt TEXT");
  return text;
}

Result<std::string> read_prompt_file(const std::string& path) {
  return prompt_in(read_all(path, "the prompt"), "\"" + path + "\"");
}

// The prompt, or nothing for a chat.
Result<std::optional<std::string>> find_prompt(const Options& options) {
  using Found = std::optional<std::string>;
  const auto found = [](Result<std::string> text) -> Result<Found> {
    TENON_TRY(text);
    return Found(*std::move(text));
  };
  if (prompts_by_ids(options)) return Found("");
  if (!options.prompt_file.empty()) return found(read_prompt_file(options.prompt_file));
  if (options.prompt && options.prompt->starts_with("@"))
    return found(read_prompt_file(options.prompt->substr(1)));
  if (options.prompt && *options.prompt != "-") return Found(*options.prompt);
  if (!options.prompt && options.demo) return Found(kQuestion);
  if (!options.prompt && isatty(STDIN_FILENO) != 0) return Found();
  return found(prompt_in(read_all(stdin, "the prompt in standard input"), "standard input"));
}

// Those given, or random ones of the seed.
Result<std::vector<std::int32_t>> ids_of(const Session& session, const Options& options) {
  if (!options.prompt_ids.empty()) return options.prompt_ids;
  TENON_ASSIGN(const int num_ids, session.num_ids());
  std::mt19937_64 random(options.sampling.seed);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < options.random_ids; ++i)
    ids.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(num_ids)));
  return ids;
}

std::string joined(const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

Result<serve::Request> request_of(const Session& session, const Options& options,
                                  const std::string& text) {
  serve::Request request;
  if (prompts_by_ids(options)) {
    TENON_ASSIGN(request.prompt, ids_of(session, options));
  } else {
    request.prompt = session.prompt(text);
  }
  if (!options.system.empty())
    request.prompt =
        serve::ChatPrompt{{message_of("system", options.system), message_of("user", text)}};
  request.sampling = options.sampling;
  request.stops = options.stops;
  return request;
}

void report(const Options& options, const Answer& answer, const EngineStats& stats,
            double load_seconds) {
  Table table({"site", "rows up to", "stage", "variant", "count", "why not a more fused stage"});
  for (const BoundaryUse& use : summarize(stats.boundaries))
    table.add({use.site, std::to_string(use.max_rows),
               std::to_string(static_cast<int>(use.stage)) + " " + std::string(name(use.stage)),
               use.variant, std::to_string(use.count),
               use.reason.empty() ? "it is the most fused" : use.reason});
  std::fprintf(stderr, "\n%s\n", table.text().c_str());
  std::fprintf(stderr, "%s\n", memory_table(stats.memory).c_str());
  std::fprintf(stderr, "%d ranks on %s over %s, %.1f MB of weights on each, loaded in %.2f s\n",
               options.session.tp, options.session.device.c_str(), stats.transport.c_str(),
               static_cast<double>(stats.weight_bytes) / 1e6, load_seconds);
  std::fprintf(stderr, "%s\n", numbers_of(answer).c_str());
  std::fprintf(stderr, "last logits %s\n", hex(stats.logits_fingerprint).c_str());
  if (const std::string note = note_of(options.session.weights); !note.empty())
    std::fprintf(stderr, "%s\n", note.c_str());
  if (interrupted_by() != 0) std::fputs("interrupted\n", stderr);
}

void print_json(const Options& options, const Answer& answer, const EngineStats& stats,
                double load_seconds) {
  nlohmann::ordered_json boundaries = nlohmann::ordered_json::array();
  for (const BoundaryUse& use : summarize(stats.boundaries))
    boundaries.push_back({{"site", use.site},
                          {"rows", use.max_rows},
                          {"stage", static_cast<int>(use.stage)},
                          {"variant", use.variant},
                          {"reason", use.reason},
                          {"count", use.count}});
  nlohmann::ordered_json out{{"text", answer.text},
                             {"tokens", answer.tokens},
                             {"finish", answer.finish},
                             {"boundaries", boundaries},
                             {"prompt_tokens", answer.prompt_tokens},
                             {"load_s", load_seconds},
                             {"first_token_ms", 1e3 * answer.first_token_seconds},
                             {"total_s", answer.total_seconds},
                             {"prefill_tokens_per_s", answer.prefill_rate},
                             {"decode_tokens_per_s", answer.decode_rate},
                             {"logits_fingerprint", hex(stats.logits_fingerprint)},
                             {"model", options.session.model},
                             {"weights", name(options.session.weights.format)},
                             {"tp", options.session.tp},
                             {"target", options.session.device},
                             {"transport", stats.transport},
                             {"version", version_name()}};
  if (!answer.stop_string.empty()) out["stop_string"] = answer.stop_string;
  std::printf("%s\n",
              out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

Status answer_one(Session& session, const Options& options, const std::string& text) {
  const bool quiet = options.session.quiet;
  if (!quiet && !text.empty())
    std::fprintf(stderr, "%s%s", text.c_str(), session.chats() ? "\n\n" : "");
  bool fresh_line = true;
  const auto show = [&](std::string_view part) {
    if (options.json) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
    fresh_line = part.ends_with('\n');
  };
  const Interruptible interruptible;
  TENON_ASSIGN(serve::Request request, request_of(session, options, text));
  const auto found = answer(session, std::move(request), show);
  if (found && !session.reads_text()) show(joined(found->tokens));
  if (!fresh_line) show("\n");
  TENON_TRY(found);
  TENON_ASSIGN(const EngineStats stats, session.queue().engine_stats());
  if (options.json) print_json(options, *found, stats, session.load_seconds());
  if (!quiet) report(options, *found, stats, session.load_seconds());
  if (quiet && !options.json && interrupted_by() != 0) std::fputs("interrupted\n", stderr);
  return Status::ok();
}

Status check(const Options& options) {
  TENON_TRY(check(options.session));
  const auto refuse = [](const char* why) { return Status::error(Code::kInvalidArgument, why); };
  if (options.prompt && !options.prompt_file.empty())
    return refuse("--prompt and --prompt-file are both given; accepted is one of them");
  const bool has_text = options.prompt || !options.prompt_file.empty() || options.demo;
  if (prompts_by_ids(options) && (has_text || !options.system.empty()))
    return refuse("the prompt is given as ids and as a text; accepted is one of them");
  if (!has_text && !prompts_by_ids(options) &&
      options.session.weights.format == LoadFormat::kDummy && !has_tokenizer(options.session.model))
    return refuse("there is no tokenizer.json; accepted are --prompt-ids and --random-prompt");
  if (!options.system.empty() && options.raw)
    return refuse("--system needs the chat template, which --raw leaves out");
  if (options.prompt && options.prompt->empty())
    return refuse("--prompt is empty; accepted are texts of at least 1 byte");
  for (const std::string& each : options.stops)
    if (each.empty()) return refuse("--stop is \"\"; accepted are texts of at least 1 byte");
  return Status::ok();
}

Status run(Options options) {
  options.session.quiet |= options.json;
  options.session.chat = options.raw ? Chat::kOff : options.chat ? Chat::kOn : Chat::kAuto;
  // --system without a template is refused by whoever looks for it.
  if (!options.system.empty()) options.session.chat = Chat::kOn;
  TENON_TRY(check(options));
  std::optional<std::string> text;
  if (!follows_a_leader()) {
    TENON_ASSIGN(text, find_prompt(options));
    if (!text && options.json)
      return Status::error(Code::kInvalidArgument,
                           "--json needs a prompt; accepted are --prompt, --prompt-file, --demo "
                           "and standard input that is no terminal");
    if (!text && options.raw)
      return Status::error(Code::kInvalidArgument,
                           "--raw needs a prompt: a chat needs the template");
  }
  TENON_TRY(check(options.sampling));
  options.session.run_ahead = false;  // the logits that are told of are the last token's
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower: the leader has spoken
  if (text) return answer_one(*session, options, *text);
  if (!session->chats())
    return Status::error(Code::kInvalidArgument,
                         "\"" + options.session.model +
                             "\" has no chat template to chat with; accepted is a prompt, such as "
                             "--prompt TEXT");
  return chat(*session, {options.sampling, options.stops, options.system, options.session.quiet});
}

void add_prompt(CLI::App& app, Options& options) {
  const char* group = "Prompt";
  app.add_option("--prompt", options.prompt,
                 "what to answer: a text, @FILE, or - for standard input. Without one: standard "
                 "input, or a chat where that is a terminal")
      ->group(group);
  app.add_option("--prompt-file", options.prompt_file, "the same from a file")
      ->type_name("FILE")
      ->group(group);
  auto* ids = add_list_option(app, "--prompt-ids", options.prompt_ids,
                              "token ids instead of a text: 1,2,3; they are not put into a chat",
                              whole_number(0, INT32_MAX))
                  ->type_name("IDS")
                  ->group(group);
  app.add_option("--random-prompt", options.random_ids,
                 "so many token ids, drawn from --seed, instead of a text")
      ->check(whole_number(1, kMaxContext))
      ->excludes(ids)
      ->group(group);
  app.add_flag("--demo", options.demo, "a word problem, where no prompt is given")->group(group);
  app.add_option("--system", options.system, "a system prompt in front")->group(group);
  auto* chat = app.add_flag("--chat", options.chat,
                            "put the prompt into the checkpoint's chat template; what happens "
                            "anyway where it has one")
                   ->group(group);
  app.add_flag("--raw,--no-chat", options.raw, "continue the text as it is")
      ->excludes(chat)
      ->group(group);
}

void add_sampling(CLI::App& app, Options& options) {
  const char* group = "Sampling";
  app.add_option("--max-new-tokens", options.sampling.max_tokens,
                 "the longest answer; the context may end it earlier")
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount))
      ->group(group);
  app.add_option("--temperature", options.sampling.temperature,
                 "0 takes the likeliest token; higher is more random")
      ->capture_default_str()
      ->check(number(0, 100))
      ->group(group);
  app.add_option("--top-p", options.sampling.top_p,
                 "draw from the likeliest tokens that have this much probability together")
      ->capture_default_str()
      ->check(number(0, 1, true))
      ->group(group);
  app.add_option("--top-k", options.sampling.top_k, "draw from so many likeliest tokens; 0: all")
      ->capture_default_str()
      ->check(whole_number(0, kMaxCount))
      ->group(group);
  app.add_option("--seed", options.sampling.seed,
                 "of what is drawn: the same seed, the same answer")
      ->capture_default_str()
      ->check(whole_number(0, UINT64_MAX))
      ->group(group);
  app.add_option("--stop", options.stops,
                 "a text that ends the answer, which does not show it; may be given again")
      ->allow_extra_args(false)
      ->group(group);
  app.add_flag("--ignore-eos", options.sampling.ignore_eos,
               "go on after the end of an answer, to --max-new-tokens")
      ->group(group);
}

}  // namespace

Command add_run(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      parent.add_subcommand("run", "answer a prompt, or chat, and say how every boundary ran");
  add_prompt(*app, *options);
  add_session_options(*app, options->session);
  add_sampling(*app, *options);
  app->add_flag("--json", options->json, "print one JSON object, in one line, instead of text")
      ->group("Output");
  app->add_flag("--quiet", options->session.quiet, "the answer alone: no report, no progress")
      ->group("Output");
  app->footer(
      "The answer goes to standard output, the report to standard error. Ctrl-C ends an answer "
      "and\n"
      "reports on what there is; a second one ends the program.\n\n"
      "  tenon run                                   a chat\n"
      "  tenon run --prompt \"How far is the moon?\"   one answer\n"
      "  tenon run --tp 4 --quiet < question.txt     the same from a file, without the report\n"
      "  tenon run --prompt @question.txt --json     for programs");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
