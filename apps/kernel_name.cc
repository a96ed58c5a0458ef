#include "apps/kernel_name.h"

#include "apps/options.h"

namespace tenon::apps {
namespace {

void remove_all(std::string& text, const std::string& part) {
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at))
    text.erase(at, part.size());
}

// Where the arguments begin: the last parenthesis that opens outside of any other bracket.
std::size_t end_of_name(const std::string& text) {
  int depth = 0;
  std::size_t found = text.size();
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char each = text[at];
    if (each == '(' && depth == 0) found = at;
    if (each == '(' || each == '<') ++depth;
    if (each == ')' || each == '>') --depth;
  }
  return found;
}

}  // namespace

std::string short_kernel_name(const std::string& name) {
  std::string text = name;
  remove_all(text, "(anonymous namespace)::");
  for (const std::string& target : target_names()) remove_all(text, "tenon::" + target + "::");
  text.resize(end_of_name(text));
  remove_all(text, "tenon::");
  if (text.starts_with("void ")) text.erase(0, 5);
  return text;
}

}  // namespace tenon::apps
