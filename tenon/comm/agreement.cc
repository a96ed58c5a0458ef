// How ranks compare values: everybody gets everybody's texts, so all find the same difference.
#include "tenon/comm/agreement.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>

#include "tenon/comm/messages.h"

namespace tenon {

void Fields::add(std::string_view name, std::string text) {
  fields_.push_back({std::string(name), std::move(text)});
}
void Fields::operator()(std::string_view name, std::string_view value) {
  add(name, "\"" + std::string(value) + "\"");
}
void Fields::operator()(std::string_view name, bool value) { add(name, value ? "true" : "false"); }
void Fields::operator()(std::string_view name, float value) {
  char text[32];
  const auto [end, error] = std::to_chars(std::begin(text), std::end(text), value);
  add(name, std::string(std::begin(text), end));
}
void Fields::operator()(std::string_view name, DType value) {
  const std::string_view known = tenon::name(value);
  const bool is_known = dtype_named(known) == value;
  add(name, is_known ? std::string(known) : "number " + std::to_string(static_cast<int>(value)));
}
void Fields::operator()(std::string_view name, ScaleLayout value) {
  const std::string_view known = tenon::name(value);
  const bool is_known = scale_layout_named(known) == value;
  add(name, is_known ? std::string(known) : "number " + std::to_string(static_cast<int>(value)));
}
void Fields::operator()(std::string_view name, std::chrono::milliseconds value) {
  add(name, std::to_string(value.count()) + " ms");
}

namespace {

constexpr std::string_view kLabel = "agree on equal values";
constexpr std::uint32_t kMostBytes = 1u << 20;  // of one rank's texts

// What one rank brought, as it travels: texts, each behind its length. First where it is, then name
// and value of each field in turn.
void put(std::string& packed, std::string_view text) {
  const auto length = static_cast<std::uint32_t>(text.size());
  packed.append(reinterpret_cast<const char*>(&length), sizeof length);
  packed += text;
}
std::string as_text(const Fields& fields, std::string_view where) {
  std::string packed;
  put(packed, where);
  for (const Fields::Field& each : fields.all()) {
    put(packed, each.name);
    put(packed, each.text);
  }
  return packed;
}
std::vector<std::string> unpack(std::string_view packed) {
  std::vector<std::string> texts;
  while (packed.size() >= sizeof(std::uint32_t)) {
    std::uint32_t length = 0;
    std::memcpy(&length, packed.data(), sizeof length);
    packed.remove_prefix(sizeof length);
    texts.emplace_back(packed.substr(0, length));
    packed.remove_prefix(std::min<std::size_t>(length, packed.size()));
  }
  return texts;
}

// "rank 1", "ranks 0 and 2", "ranks 0, 2 and 3".
std::string ranks_text(const std::vector<std::size_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

// "1e-06 on ranks 0 and 2, 1e-05 on rank 1"; empty where all are equal.
std::string difference(const std::vector<std::string>& of_ranks) {
  std::vector<std::string> values;  // each once, in the order of ranks
  for (const std::string& each : of_ranks)
    if (std::find(values.begin(), values.end(), each) == values.end()) values.push_back(each);
  if (values.size() == 1) return {};
  std::string text;
  for (const std::string& value : values) {
    std::vector<std::size_t> ranks;
    for (std::size_t rank = 0; rank < of_ranks.size(); ++rank)
      if (of_ranks[rank] == value) ranks.push_back(rank);
    text += (text.empty() ? "" : ", ") + value + " on " + ranks_text(ranks);
  }
  return text;
}

Status refuse(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// `brought` holds each rank's texts.
Status compare(const std::vector<std::vector<std::string>>& brought) {
  const auto texts_at = [&](std::size_t at) {
    std::vector<std::string> texts;
    for (const auto& each : brought) texts.push_back(each[at]);
    return texts;
  };
  const std::vector<std::string>& first = brought.front();
  bool same_names = true;
  for (const auto& each : brought) {
    same_names = same_names && each.size() == first.size();
    for (std::size_t at = 1; same_names && at < first.size(); at += 2)
      same_names = each[at] == first[at];
  }
  const std::string places = difference(texts_at(0));
  if (same_names) {
    std::string text;
    for (std::size_t at = 2; at < first.size(); at += 2)
      if (const std::string found = difference(texts_at(at)); !found.empty())
        text += first[at - 1] + ": " + found + "; ";
    if (!text.empty())
      return refuse(first[0] + ": the ranks disagree about " + text + "all must be equal");
    if (places.empty()) return Status::ok();
  }
  if (places.empty())
    return refuse(first[0] +
                  ": the ranks compare different things; all must run the same build of tenon");
  return refuse("the ranks are in different calls: " + places +
                "; every rank must make the same calls in the same order");
}

}  // namespace

Status agree_equal(Bootstrap& bootstrap, const Fields& fields, std::string_view where,
                   std::chrono::milliseconds deadline) {
  const std::string mine = as_text(fields, where);
  const auto own_bytes = static_cast<std::uint32_t>(std::min<std::size_t>(mine.size(), ~0u));
  std::vector<std::uint32_t> lengths(static_cast<std::size_t>(bootstrap.size()));
  TENON_TRY(bootstrap.exchange(bytes_of(own_bytes), std::as_writable_bytes(std::span(lengths)),
                               kLabel, deadline),
            where);
  const std::size_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (longest > kMostBytes)
    return refuse("values of " + std::to_string(longest) +
                  " bytes were to be compared; accepted: " + std::to_string(kMostBytes));
  std::string padded = mine;
  padded.resize(longest);
  std::string all(longest * lengths.size(), '\0');
  TENON_TRY(bootstrap.exchange(std::as_bytes(std::span(padded)),
                               std::as_writable_bytes(std::span(all)), kLabel, deadline),
            where);
  std::vector<std::vector<std::string>> brought;
  for (std::size_t rank = 0; rank < lengths.size(); ++rank)
    brought.push_back(unpack(std::string_view(all).substr(rank * longest, lengths[rank])));
  return compare(brought);
}

}  // namespace tenon
