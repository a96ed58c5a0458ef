// Times what one stream is given, launch by launch: a pair of events around each kernel, copy and
// fill that a thread enqueues while its timer runs. Backends ask for the thread's timer at every
// launch, which is all that it costs when there is none. The events also keep kernels from
// overlapping: a pass takes longer with a timer than without.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tenon/device/runtime.h"

namespace tenon {

class LaunchTimer {
 public:
  struct Entry {
    std::string_view section;  // the last name_section() before it; empty: none
    std::string what;          // the kernel with its namespaces, "copy" or "fill"; kernels of host
                               // targets have no name: "kernel"
    double us = 0;
  };

  // For at most `capacity` launches between start() and stop().
  static Result<LaunchTimer> make(Stream& stream, int capacity);

  // From start() to stop() this thread's launches on the stream are timed. They may be captured:
  // then each replay takes new times. Between the two a timer must not move.
  void start();
  void stop();
  // Of what was run last; waits for it. Less what a pair of events takes with nothing in between.
  // An error where there were more launches than the capacity.
  Result<std::vector<Entry>> read();

  // For models and steps: what this thread enqueues from now on belongs to this part of a pass.
  // `name` must live for ever.
  static void name_section(std::string_view name);

  // For backends: the timer of this thread that runs and times this stream, or null.
  static LaunchTimer* of(const void* stream);
  Status before();
  Status after(std::string what);

 private:
  explicit LaunchTimer(Stream& stream) : stream_(&stream) {}
  struct Mark {
    Event begin, end;
  };
  Stream* stream_;
  std::vector<Mark> marks_;  // of the entries, then those with nothing in between
  std::vector<Entry> entries_;
  std::size_t missed_ = 0;  // launches past the capacity
};

// For backends: does `work`, timed where a timer wants to know; what() says what it is.
template <class What, class Work>
Status timed(const void* stream, const What& what, const Work& work) {
  LaunchTimer* const timer = LaunchTimer::of(stream);
  if (timer == nullptr) [[likely]]
    return work();
  TENON_TRY(timer->before());
  TENON_TRY(work());
  return timer->after(what());
}

}  // namespace tenon
