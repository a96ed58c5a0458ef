#include "apps/bench/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "apps/table.h"

namespace tenon::apps {
namespace {

constexpr const char* kColors[] = {"#7f7f7f", "#1f77b4", "#2ca02c", "#17becf",
                                   "#ff7f0e", "#d62728", "#9467bd", "#8c564b"};
constexpr int kColumns = 3;
constexpr double kPanelWidth = 400, kPanelHeight = 320, kEdge = 16;
constexpr double kLeft = 52, kRight = 14, kAbove = 26, kBelow = 42;  // beside the axes of a panel

std::string number(double value) { return fixed(value, 1); }

// A tick's label: as short as it can be.
std::string label_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char each : text) {
    switch (each) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += each;
    }
  }
  return out;
}

std::string text_at(double x, double y, const std::string& text, const std::string& more) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + more + ">" + escape(text) +
         "</text>\n";
}

std::string stroke(double x1, double y1, double x2, double y2, const std::string& more) {
  return "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
         "\" y2=\"" + number(y2) + "\" " + more + "/>\n";
}

// Positions along one logarithmic axis.
struct Axis {
  double low, high;    // values at the ends
  double begin, size;  // pixels; size is negative where values rise to the left or up
  double at(double value) const {
    return begin + size * (std::log(value) - std::log(low)) / (std::log(high) - std::log(low));
  }
};

// Powers of two, thinned to at most nine.
std::vector<double> ticks_by_two(double low, double high) {
  const int first = static_cast<int>(std::ceil(std::log2(low) - 1e-9));
  const int last = static_cast<int>(std::floor(std::log2(high) + 1e-9));
  std::vector<double> ticks;
  for (int step = first; step <= last; step += (last - first) / 9 + 1)
    ticks.push_back(std::ldexp(1.0, step));
  return ticks;
}

// 1, 2 and 5 times the powers of ten; of many decades, the powers alone.
std::vector<double> ticks_by_ten(double low, double high) {
  std::vector<double> ticks;
  const bool many = std::log10(high / low) > 3;
  for (double decade = std::pow(10.0, std::floor(std::log10(low))); decade <= high; decade *= 10)
    for (const double step : {1.0, 2.0, 5.0})
      if (decade * step >= low && decade * step <= high && (step == 1.0 || !many))
        ticks.push_back(decade * step);
  return ticks;
}

struct Bounds {
  double low = 0, high = 0;
  void take(double value) {
    low = low == 0 ? value : std::min(low, value);
    high = std::max(high, value);
  }
  // Some room around what there is, and something where there is nothing.
  void widen(double factor) {
    if (low == 0) low = high = 1;
    low /= factor;
    high *= factor;
  }
};

std::string axes(const Axis& x, const Axis& y, const Plot& plot) {
  const double bottom = y.begin, top = y.begin + y.size, right = x.begin + x.size;
  std::string out = "<rect x=\"" + number(x.begin) + "\" y=\"" + number(top) + "\" width=\"" +
                    number(x.size) + "\" height=\"" + number(-y.size) +
                    "\" fill=\"none\" stroke=\"#444\"/>\n";
  for (const double tick : ticks_by_two(x.low, x.high)) {
    out += stroke(x.at(tick), bottom, x.at(tick), top, "stroke=\"#e4e4e4\"");
    out += text_at(x.at(tick), bottom + 14, label_of(tick), "text-anchor=\"middle\"");
  }
  for (const double tick : ticks_by_ten(y.low, y.high)) {
    out += stroke(x.begin, y.at(tick), right, y.at(tick), "stroke=\"#e4e4e4\"");
    out += text_at(x.begin - 5, y.at(tick) + 4, label_of(tick), "text-anchor=\"end\"");
  }
  out += text_at((x.begin + right) / 2, bottom + 30, plot.x_label, "text-anchor=\"middle\"");
  out += text_at(x.begin - 5, top - 8, plot.y_label, "text-anchor=\"end\"");
  return out;
}

std::string style_of(const Line& line) {
  const auto color = static_cast<std::size_t>(line.color) % std::size(kColors);
  return std::string("stroke=\"") + kColors[color] + "\"" +
         (line.dashed ? " stroke-dasharray=\"5 3\"" : "");
}

std::string draw(const Line& line, const Axis& x, const Axis& y) {
  std::string points, dots;
  const auto color = static_cast<std::size_t>(line.color) % std::size(kColors);
  for (const Line::Point& each : line.points) {
    points += (points.empty() ? "" : " ") + number(x.at(each.x)) + "," + number(y.at(each.y));
    dots += "<circle cx=\"" + number(x.at(each.x)) + "\" cy=\"" + number(y.at(each.y)) +
            "\" r=\"2.2\" fill=\"" + kColors[color] + "\"/>\n";
  }
  return "<polyline points=\"" + points + "\" fill=\"none\" stroke-width=\"1.6\" " +
         style_of(line) + "/>\n" + dots;
}

// One entry per name, in the order in which they appear, in lines under the title. `bottom` becomes
// where they end.
std::string legend(const Plot& plot, double width, double* bottom) {
  std::vector<const Line*> seen;
  for (const Panel& panel : plot.panels)
    for (const Line& line : panel.lines)
      if (std::none_of(seen.begin(), seen.end(),
                       [&](const Line* other) { return other->name == line.name; }))
        seen.push_back(&line);
  std::string out;
  double x = kEdge, y = 40;
  for (const Line* each : seen) {
    const double length = 42 + 7 * static_cast<double>(each->name.size());
    if (x + length > width) {
      x = kEdge;
      y += 16;
    }
    out += stroke(x, y, x + 22, y, "stroke-width=\"2.5\" " + style_of(*each));
    out += text_at(x + 27, y + 4, each->name, "text-anchor=\"start\"");
    x += length;
  }
  *bottom = y + 16;
  return out;
}

std::string panel_at(const Plot& plot, const Panel& panel, double left, double top) {
  Bounds across, up;
  for (const Line& line : panel.lines)
    for (const Line::Point& each : line.points) {
      across.take(each.x);
      up.take(each.y);
    }
  across.widen(1.15);
  up.widen(1.3);
  const Axis x{across.low, across.high, left + kLeft, kPanelWidth - kLeft - kRight};
  const Axis y{up.low, up.high, top + kPanelHeight - kBelow, -(kPanelHeight - kAbove - kBelow)};
  std::string out = text_at(x.begin + x.size / 2, top + 18, panel.title,
                            "text-anchor=\"middle\" font-weight=\"bold\"");
  out += axes(x, y, plot);
  for (const Line& line : panel.lines) out += draw(line, x, y);
  return out;
}

}  // namespace

std::string svg(const Plot& plot) {
  const int count = static_cast<int>(plot.panels.size());
  const int columns = std::clamp(count, 2, kColumns), rows = (count + columns - 1) / columns;
  const double width = 2 * kEdge + columns * kPanelWidth;
  double top = 0;
  const std::string names = legend(plot, width, &top);
  const double height = top + rows * kPanelHeight + kEdge;
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(width) +
                    "\" height=\"" + number(height) + "\" viewBox=\"0 0 " + number(width) + " " +
                    number(height) + "\" font-family=\"sans-serif\" font-size=\"11\">\n";
  out += "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  out += text_at(kEdge, 22, plot.title, "font-size=\"15\" font-weight=\"bold\"");
  out += names;
  for (int i = 0; i < count; ++i) {
    const int column = i % columns, row = i / columns;
    out += panel_at(plot, plot.panels[static_cast<std::size_t>(i)], kEdge + column * kPanelWidth,
                    top + row * kPanelHeight);
  }
  return out + "</svg>\n";
}

}  // namespace tenon::apps
