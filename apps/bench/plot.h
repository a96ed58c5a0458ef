// A small SVG writer: panels of lines over two logarithmic axes, with ticks and a legend.
#pragma once

#include <string>
#include <vector>

namespace tenon::apps {

struct Line {
  std::string name;
  int color = 0;  // an index: the same for what belongs together
  bool dashed = false;
  struct Point {
    double x, y;  // both positive
  };
  std::vector<Point> points;  // by rising x
};

struct Panel {
  std::string title;
  std::vector<Line> lines;
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Panel> panels;
};

std::string svg(const Plot& plot);

}  // namespace tenon::apps
