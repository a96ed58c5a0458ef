#include "tenon/device/launch_timer.h"

#include <algorithm>

namespace tenon {
namespace {

constexpr std::size_t kEmptyMarks = 9;  // odd: their median is one of them

thread_local LaunchTimer* running = nullptr;
thread_local const void* timed_stream = nullptr;
thread_local std::string_view section;

}  // namespace

Result<LaunchTimer> LaunchTimer::make(Stream& stream, int capacity) {
  LaunchTimer made(stream);
  const std::size_t count = static_cast<std::size_t>(capacity) + kEmptyMarks;
  made.marks_.reserve(count);
  made.entries_.reserve(static_cast<std::size_t>(capacity));
  for (std::size_t i = 0; i < count; ++i) {
    TENON_ASSIGN(Event begin, Event::create(stream.device()));
    TENON_ASSIGN(Event end, Event::create(stream.device()));
    made.marks_.push_back({std::move(begin), std::move(end)});
  }
  return made;
}

void LaunchTimer::start() {
  entries_.clear();
  missed_ = 0;
  running = this;
  timed_stream = stream_->native();
}

void LaunchTimer::stop() {
  running = nullptr;
  timed_stream = nullptr;
  section = {};
}

void LaunchTimer::name_section(std::string_view name) {
  if (running != nullptr) section = name;
}

LaunchTimer* LaunchTimer::of(const void* stream) {
  return running != nullptr && timed_stream == stream ? running : nullptr;
}

Status LaunchTimer::before() {
  const std::size_t at = entries_.size();
  if (at + kEmptyMarks >= marks_.size()) return Status::ok();
  if (at < kEmptyMarks) {  // so that these lie in the same pass
    Mark& empty = marks_[marks_.size() - 1 - at];
    TENON_TRY(empty.begin.record(*stream_));
    TENON_TRY(empty.end.record(*stream_));
  }
  return marks_[at].begin.record(*stream_);
}

Status LaunchTimer::after(std::string what) {
  const std::size_t at = entries_.size();
  if (at + kEmptyMarks >= marks_.size()) {
    ++missed_;
    return Status::ok();
  }
  entries_.push_back({section, std::move(what), 0});
  return marks_[at].end.record(*stream_);
}

Result<std::vector<LaunchTimer::Entry>> LaunchTimer::read() {
  if (missed_ > 0)
    return Status::error(Code::kInvalidArgument,
                         "the timer has room for " + std::to_string(entries_.size()) +
                             " launches and met " + std::to_string(entries_.size() + missed_));
  const auto passed = [](Mark& mark) { return mark.end.us_since(mark.begin); };
  std::vector<double> empty;
  for (std::size_t i = 0; i < std::min(entries_.size(), kEmptyMarks); ++i) {
    TENON_ASSIGN(const double us, passed(marks_[marks_.size() - 1 - i]));
    empty.push_back(us);
  }
  if (empty.empty()) return entries_;
  std::sort(empty.begin(), empty.end());
  const double least = empty[empty.size() / 2];
  std::vector<Entry> found = entries_;
  for (std::size_t i = 0; i < found.size(); ++i) {
    TENON_ASSIGN(const double us, passed(marks_[i]));
    found[i].us = std::max(0.0, us - least);
  }
  return found;
}

}  // namespace tenon
