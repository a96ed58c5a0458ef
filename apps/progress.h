// How far something long has come, on standard error: on a terminal a line that is written over,
// and gone at the end; elsewhere a line every few seconds, and one at the end. A rate that has a
// limit is told at the end everywhere.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace tenon::apps {

class Progress {
 public:
  // Where lines go, and what time it is.
  struct Screen {
    std::function<void(std::string_view text)> write;
    std::function<double()> now_s;
    bool terminal = false;
    std::size_t columns = 80;
  };
  static Screen standard_error();

  static constexpr double kTerminalEvery_s = 0.1, kElsewhereEvery_s = 5;

  // "loading", "loaded": bytes, with their rate. An empty `done_word` counts shares of something
  // else, and has no line at the end.
  explicit Progress(std::string doing, std::string done_word = {},
                    Screen screen = standard_error());
  ~Progress();  // leaves no half line behind
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // So much of so much, with a word about where that is; of bytes, at the end, with a word about
  // what limited their rate. The time runs from the first call.
  void update(double done, double total, std::string_view detail = {});

 private:
  std::string line(double done, double total, double passed_s, std::string_view detail) const;
  void erase();

  std::string doing_, done_word_;
  Screen screen_;
  double start_s_ = -1, last_s_ = 0;
  bool ended_ = false;
  std::size_t shown_ = 0;  // characters of the line that stands on the terminal
};

// "512 B", "3.5 kB", "1.25 GB".
std::string bytes_text(double bytes);
// "4 s", "1 min 20 s", "2 h 5 min".
std::string duration_text(double seconds);
// Columns of a terminal behind a file descriptor, or 0 where there is none.
std::size_t terminal_columns(int file);

}  // namespace tenon::apps
