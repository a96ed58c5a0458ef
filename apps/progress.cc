#include "apps/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "apps/table.h"

namespace tenon::apps {
namespace {

constexpr double kSureAfter_s = 0.5;  // rates and times left are guesses before

}  // namespace

std::string bytes_text(double bytes) {
  constexpr const char* kUnits[] = {" kB", " MB", " GB", " TB"};
  if (bytes < 1000) return fixed(bytes, 0) + " B";
  std::size_t unit = 0;
  for (bytes /= 1000; bytes >= 999.5 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1000;
  return fixed(bytes, bytes < 10 ? 2 : bytes < 100 ? 1 : 0) + kUnits[unit];
}

std::string duration_text(double seconds) {
  if (!(seconds < 1e8)) return "years";
  const auto whole = static_cast<long long>(std::ceil(std::max(0.0, seconds)));
  const long long minutes = whole / 60, hours = minutes / 60;
  if (hours > 0) return std::to_string(hours) + " h " + std::to_string(minutes % 60) + " min";
  if (minutes > 0) return std::to_string(minutes) + " min " + std::to_string(whole % 60) + " s";
  return std::to_string(whole) + " s";
}

std::size_t terminal_columns(int file) {
  if (isatty(file) == 0) return 0;
  winsize size{};
  if (ioctl(file, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

Progress::Screen Progress::standard_error() {
  Screen screen;
  screen.write = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
  screen.now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  screen.columns = terminal_columns(STDERR_FILENO);
  screen.terminal = screen.columns > 0;
  return screen;
}

Progress::Progress(std::string doing, std::string done_word, Screen screen)
    : doing_(std::move(doing)), done_word_(std::move(done_word)), screen_(std::move(screen)) {}

Progress::~Progress() { erase(); }

void Progress::erase() {
  if (shown_ > 0) screen_.write("\r" + std::string(shown_, ' ') + "\r");
  shown_ = 0;
}

std::string Progress::line(double done, double total, double passed_s,
                           std::string_view detail) const {
  const bool bytes = !done_word_.empty(), sure = passed_s >= kSureAfter_s && done > 0;
  std::string text = doing_;
  if (bytes) text += " " + bytes_text(done) + " of " + bytes_text(total);
  if (!detail.empty()) text.append(" ").append(detail);
  text += ", " + fixed(total > 0 ? std::floor(100 * done / total) : 100, 0) + " %";
  if (!sure) return text;
  if (bytes) text += ", " + bytes_text(done / passed_s) + "/s";
  return text + ", " + duration_text(passed_s * (total - done) / done) + " left";
}

void Progress::update(double done, double total, std::string_view detail) {
  const double now = screen_.now_s();
  if (start_s_ < 0) start_s_ = last_s_ = now;
  const double passed = now - start_s_;
  if (done >= total) {
    if (ended_) return;
    ended_ = true;
    erase();
    const bool limited = passed >= kSureAfter_s && !detail.empty();
    if (done_word_.empty() || (screen_.terminal && !limited)) return;
    std::string text = done_word_ + " " + bytes_text(total) + " in ";
    text += fixed(passed, passed < 1 ? 2 : 1) + " s";
    if (passed >= kSureAfter_s) text += ", " + bytes_text(total / passed) + "/s";
    if (limited) text.append(", limited by ").append(detail);
    screen_.write(text + "\n");
    return;
  }
  ended_ = false;
  const bool first = screen_.terminal && shown_ == 0;
  if (!first && now - last_s_ < (screen_.terminal ? kTerminalEvery_s : kElsewhereEvery_s)) return;
  last_s_ = now;
  std::string text = line(done, total, passed, detail);
  if (!screen_.terminal) return screen_.write(text + "\n");
  text.resize(std::min(text.size(), screen_.columns > 0 ? screen_.columns - 1 : text.size()));
  const std::size_t length = text.size();
  if (shown_ > length) text.append(shown_ - length, ' ');
  shown_ = length;
  screen_.write("\r" + text);
}

}  // namespace tenon::apps
