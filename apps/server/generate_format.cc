// /generate: every event of a stream has all the text so far.
#include <map>

#include "apps/server/format.h"
#include "apps/server/json_text.h"

namespace tenon::server {
namespace {

class GenerateFormat final : public Format {
 public:
  explicit GenerateFormat(AnswerHead head) : head_(std::move(head)) {}

  std::string part(const ChoicePart& part) override {
    ChoicePart& all = so_far_[part.index];
    const bool seen = add(all, part) || part.end.has_value();
    if (!seen) return {};
    Json out = one(all);
    if (head_.is_list) out["index"] = part.index;
    return data_event(out);
  }

  std::string end(const Usage&) override { return "data: [DONE]\n\n"; }

  std::string broken(const ApiError& error) override {
    return "data: " + error_body(Dialect::kGenerate, error, head_.id) + "\n\ndata: [DONE]\n\n";
  }

  std::string whole(const std::vector<ChoicePart>& choices, const Usage&) override {
    if (!head_.is_list) return to_text(one(choices.at(0)));
    Json out = Json::array();
    for (const ChoicePart& each : choices) out.push_back(one(each));
    return to_text(out);
  }

 private:
  // True where something came.
  static bool add(ChoicePart& all, const ChoicePart& part) {
    all.index = part.index;
    if (all.pieces.empty()) all.pieces.emplace_back();
    for (const AnswerPiece& each : part.pieces) all.pieces[0].text += each.text;
    all.tokens.insert(all.tokens.end(), part.tokens.begin(), part.tokens.end());
    all.told.insert(all.told.end(), part.told.begin(), part.told.end());
    all.prompt_told.insert(all.prompt_told.end(), part.prompt_told.begin(), part.prompt_told.end());
    all.end = part.end;
    all.usage = part.usage;
    all.seconds = part.seconds;
    return !part.pieces.empty() || !part.tokens.empty();
  }

  Json one(const ChoicePart& all) const {
    std::string text;
    for (const AnswerPiece& each : all.pieces) text += each.text;
    Json reason;
    if (all.end && all.end->reason == Ending::Reason::kLength)
      reason = {{"type", "length"}, {"length", all.usage.completion_tokens}};
    else if (all.end && !all.end->stop.empty())
      reason = {{"type", "stop"}, {"matched", all.end->stop}};
    else if (all.end)
      reason = {{"type", "stop"},
                {"matched", all.tokens.empty() ? Json() : Json(all.tokens.back())}};
    Json out{{"text", text},
             {"output_ids", all.tokens},
             {"meta_info",
              {{"id", head_.id},
               {"finish_reason", reason},
               {"prompt_tokens", all.usage.prompt_tokens},
               {"completion_tokens", all.usage.completion_tokens},
               {"cached_tokens", all.usage.cached_tokens},
               {"e2e_latency", all.seconds}}}};
    if (head_.told_likeliest < 0) return out;
    Json& info = out["meta_info"];
    info["input_token_logprobs"] = own_of(all.prompt_told);
    info["output_token_logprobs"] = own_of(all.told);
    if (head_.told_likeliest == 0) return out;
    info["input_top_logprobs"] = likeliest_of(all.prompt_told);
    info["output_top_logprobs"] = likeliest_of(all.told);
    return out;
  }

  // Log probability, id and text, as SGLang has them.
  Json triple(Json logprob, std::int32_t id, const std::string& bytes) const {
    return Json::array({std::move(logprob), id, head_.shows_token_texts ? Json(bytes) : Json()});
  }
  Json own_of(const std::vector<ToldToken>& told) const {
    Json out = Json::array();
    for (const ToldToken& each : told)
      out.push_back(
          triple(each.logprob ? Json(finite(*each.logprob)) : Json(), each.id, each.bytes));
    return out;
  }
  Json likeliest_of(const std::vector<ToldToken>& told) const {
    Json out = Json::array();
    for (const ToldToken& each : told) {
      Json list;
      if (each.logprob) list = Json::array();
      for (const auto& [id, bytes, logprob] : each.likeliest)
        list.push_back(triple(finite(logprob), id, bytes));
      out.push_back(std::move(list));
    }
    return out;
  }

  const AnswerHead head_;
  std::map<std::size_t, ChoicePart> so_far_;
};

}  // namespace

std::unique_ptr<Format> make_generate_format(AnswerHead head) {
  return std::make_unique<GenerateFormat>(std::move(head));
}

}  // namespace tenon::server
