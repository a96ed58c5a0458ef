#include "tenon/reference/compare.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "tenon/reference/formats.h"

namespace tenon::reference {
namespace {

template <class Bits, class Same>
std::string first_difference(const char* what, int width, const std::vector<Bits>& expected,
                             const std::vector<Bits>& found, Same same) {
  if (expected.size() != found.size())
    return std::string(what) + " has " + std::to_string(found.size()) + " elements instead of " +
           std::to_string(expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == found[i] || same(expected[i], found[i])) continue;
    char text[96];
    std::snprintf(text, sizeof text, "[%zu][%zu] is 0x%x but must be 0x%x",
                  i / static_cast<std::size_t>(width), i % static_cast<std::size_t>(width),
                  static_cast<unsigned>(found[i]), static_cast<unsigned>(expected[i]));
    return what + std::string(text);
  }
  return {};
}

}  // namespace

std::string difference16(const char* what, const BoundaryCase& shape,
                         const std::vector<std::uint16_t>& expected,
                         const std::vector<std::uint16_t>& found) {
  return first_difference(what, shape.hidden, expected, found,
                          [&](std::uint16_t a, std::uint16_t b) {
                            return is_nan16(shape.dtype, a) && is_nan16(shape.dtype, b);
                          });
}

std::string difference(const BoundaryCase& shape, const BoundaryOutputs& expected,
                       const BoundaryOutputs& found) {
  std::string text = difference16("residual", shape, expected.residual, found.residual);
  if (text.empty()) text = difference16("norm", shape, expected.norm, found.norm);
  if (text.empty())
    text = first_difference("codes", shape.hidden, expected.codes, found.codes,
                            [&](std::uint8_t a, std::uint8_t b) {
                              return is_nan8(shape.fp8, a) && is_nan8(shape.fp8, b);
                            });
  if (!text.empty()) return text;
  if (shape.layout == ScaleLayout::kUe8m0Packed)
    return first_difference("scale bytes", 4, expected.scales, found.scales,
                            [](std::uint8_t, std::uint8_t) { return false; });
  const auto words = [](const std::vector<std::uint8_t>& bytes) {
    std::vector<std::uint32_t> out(bytes.size() / 4);
    if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  };
  return first_difference("scales", 1, words(expected.scales), words(found.scales),
                          [](std::uint32_t a, std::uint32_t b) {
                            return std::isnan(std::bit_cast<float>(a)) &&
                                   std::isnan(std::bit_cast<float>(b));
                          });
}

}  // namespace tenon::reference
