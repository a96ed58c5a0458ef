// tenon inspect: what a checkpoint is and what each rank of a team would hold, from its headers.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "apps/checkpoint.h"
#include "apps/commands.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "apps/table.h"
#include "tenon/comm/communicator.h"
#include "tenon/models/inspect.h"
#include "tenon/models/model.h"
#include "tenon/text/chat_template.h"

namespace tenon::apps {
namespace {

struct Options {
  std::string model;
  int tp = 0;  // 0: every size
  bool tensors = false, json = false;
  WeightsFrom weights;
};

// Tensors of one kind and type.
struct Kind {
  std::string kind, type;
  std::int64_t tensors = 0, bytes = 0;
};

// The largest first.
std::vector<Kind> kinds_of(const ModelSummary& model) {
  std::map<std::pair<std::string, std::string>, Kind> found;
  for (const TensorSummary& each : model.tensors) {
    Kind& kind =
        found.try_emplace({each.kind, each.type}, Kind{each.kind, each.type}).first->second;
    ++kind.tensors;
    kind.bytes += each.bytes;
  }
  std::vector<Kind> kinds;
  for (const auto& [key, kind] : found) kinds.push_back(kind);
  std::stable_sort(kinds.begin(), kinds.end(),
                   [](const Kind& a, const Kind& b) { return a.bytes > b.bytes; });
  return kinds;
}

std::int64_t all_bytes(const ModelSummary& model) {
  return std::accumulate(
      model.tensors.begin(), model.tensors.end(), std::int64_t{0},
      [](std::int64_t sum, const TensorSummary& each) { return sum + each.bytes; });
}

template <class List>
std::string joined(const List& list, const char* between) {
  std::string text;
  for (const auto& each : list) {
    if (!text.empty()) text += between;
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(each)>>)
      text += std::to_string(each);
    else
      text += each;
  }
  return text;
}

std::string in_bytes(std::int64_t bytes) { return bytes_text(static_cast<double>(bytes)); }

std::string shape_of(const TensorSummary& tensor) { return "[" + joined(tensor.shape, ", ") + "]"; }

void print_tensors(const ModelSummary& model) {
  Table table({"tensor", "type", "shape", "bytes", "part"});
  for (const TensorSummary& each : model.tensors)
    table.add({each.name, each.type, shape_of(each), std::to_string(each.bytes), each.kind});
  std::printf("\n%s", table.text().c_str());
}

void print_teams(const ModelSummary& model) {
  Table table({"ranks", "weights, largest rank", "smallest", "all ranks", "KV cache, a token",
               "state, a sequence"});
  std::string impossible;
  for (const TeamSummary& each : model.teams) {
    if (!each.refusals.empty()) {
      impossible += "not with " + std::to_string(each.size) +
                    (each.size == 1 ? " rank:\n  " : " ranks:\n  ") +
                    joined(each.refusals, "\n  ") + "\n";
      continue;
    }
    const auto& bytes = each.weight_bytes;
    table.add({std::to_string(each.size), in_bytes(*std::max_element(bytes.begin(), bytes.end())),
               in_bytes(*std::min_element(bytes.begin(), bytes.end())),
               in_bytes(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0})),
               in_bytes(each.caches.token_bytes()), in_bytes(each.caches.sequence_bytes())});
  }
  if (!impossible.empty()) impossible.insert(0, "\n");
  std::printf(
      "\non each rank, besides %s of rotary table for each position of --max-context:\n%s%s",
      in_bytes(model.rope_bytes_per_position).c_str(), table.text().c_str(), impossible.c_str());
}

void print_ranks(const TeamSummary& team) {
  if (!team.refusals.empty()) return;
  Table table({"rank", "weights", "holds"});
  for (std::size_t rank = 0; rank < team.shares.size(); ++rank)
    table.add({std::to_string(rank), in_bytes(team.weight_bytes[rank]), team.shares[rank]});
  std::printf("\n%s", table.text().c_str());
}

void print(const ModelSummary& model, const std::string& chat, const Options& options) {
  const auto say = [](const std::string& what, const std::string& words) {
    std::printf("%-18s%s\n", what.c_str(), words.c_str());
  };
  say("architecture", model.architecture);
  if (options.weights.format == LoadFormat::kDummy)
    say("files", "none are read: the tensors are those that the config asks for");
  for (const NamedWords& each : model.words) say(each.name, each.words);
  say("ends at",
      model.eos_ids.empty() ? "no id of the configs" : "ids " + joined(model.eos_ids, ", "));
  say("chat template", chat);
  say("tensors", std::to_string(model.tensors.size()) + ", " + in_bytes(all_bytes(model)));
  say("keys not read", model.unread_keys.empty() ? "none" : joined(model.unread_keys, ", "));
  Table kinds({"part", "type", "tensors", "bytes"});
  for (const Kind& each : kinds_of(model))
    kinds.add({each.kind, each.type, std::to_string(each.tensors), in_bytes(each.bytes)});
  std::printf("\n%s", kinds.text().c_str());
  print_teams(model);
  if (options.tp > 0) print_ranks(model.teams.front());
  if (options.tensors) print_tensors(model);
}

nlohmann::json json_of(const TeamSummary& team) {
  nlohmann::json out{
      {"ranks", team.size}, {"possible", team.refusals.empty()}, {"reasons", team.refusals}};
  if (!team.refusals.empty()) return out;
  out["weight_bytes"] = team.weight_bytes;
  out["shares"] = team.shares;
  out["kv_bytes_per_token"] = team.caches.token_bytes();
  out["state_bytes_per_sequence"] = team.caches.sequence_bytes();
  return out;
}

void print_json(const ModelSummary& model, bool has_chat, const std::string& chat,
                const Options& options) {
  nlohmann::json words = nlohmann::json::object(), numbers = words;
  for (const NamedWords& each : model.words) words[each.name] = each.words;
  for (const NamedNumber& each : model.numbers) {
    const auto whole = static_cast<std::int64_t>(each.value);
    if (static_cast<double>(whole) == each.value)
      numbers[each.name] = whole;
    else
      numbers[each.name] = each.value;
  }
  nlohmann::json kinds = nlohmann::json::array(), list = kinds, teams = kinds;
  for (const Kind& each : kinds_of(model))
    kinds.push_back({{"part", each.kind},
                     {"type", each.type},
                     {"tensors", each.tensors},
                     {"bytes", each.bytes}});
  for (const TensorSummary& each : model.tensors)
    if (options.tensors)
      list.push_back({{"name", each.name},
                      {"type", each.type},
                      {"shape", each.shape},
                      {"bytes", each.bytes},
                      {"part", each.kind}});
  for (const TeamSummary& each : model.teams) teams.push_back(json_of(each));
  nlohmann::json out{{"model", options.model},
                     {"architecture", model.architecture},
                     {"weights", name(options.weights.format)},
                     {"words", words},
                     {"numbers", numbers},
                     {"eos_ids", model.eos_ids},
                     {"chat_template", has_chat},
                     {"unread_keys", model.unread_keys},
                     {"tensors", {{"count", model.tensors.size()}, {"bytes", all_bytes(model)}}},
                     {"parts", kinds},
                     {"rope_bytes_per_position", model.rope_bytes_per_position},
                     {"teams", teams}};
  if (!has_chat) out["why_no_chat_template"] = chat;
  if (options.tensors) out["tensors"]["list"] = list;
  std::printf("%s\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

Status run(Options options, int* exit_code) {
  std::vector<int> sizes{options.tp};
  if (options.tp == 0) {
    sizes.resize(kMaxRanks);
    std::iota(sizes.begin(), sizes.end(), 1);
  }
  if (!has_weights(options.model)) options.weights.format = LoadFormat::kDummy;
  TENON_TRY(check_weights(options.weights));
  TENON_ASSIGN(const ModelSummary model, inspect_model(options.model, sizes, options.weights));
  const Status chat = ChatTemplate::load(checkpoint_directory(options.model)).status();
  const std::string words = chat ? "yes" : "no: " + std::string(chat.message());
  if (options.json) {
    print_json(model, static_cast<bool>(chat), words.substr(chat ? 0 : 4), options);
  } else {
    print(model, words, options);
  }
  if (options.tp > 0 && !model.teams.front().refusals.empty()) *exit_code = 1;
  return Status::ok();
}

}  // namespace

Command add_inspect(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  auto exit_code = std::make_shared<int>(0);
  CLI::App* app = parent.add_subcommand(
      "inspect", "what a checkpoint is, and what each rank would hold, without loading it");
  app->add_option("MODEL", options->model,
                  "a checkpoint's directory; a config.json without weights is enough")
      ->required();
  app->add_option("--tp", options->tp,
                  "only this number of ranks, rank by rank; ends with 1 where it is not possible")
      ->check(whole_number(1, kMaxRanks));
  add_weights_options(*app, options->weights);
  app->add_flag("--tensors", options->tensors, "list every tensor");
  app->add_flag("--json", options->json, "print one JSON object and nothing else");
  return {app, [options, exit_code] { return run(*options, exit_code.get()); }, exit_code};
}

}  // namespace tenon::apps
