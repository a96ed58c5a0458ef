#include "tenon/models/reader_threads.h"

#include <utility>
#include <vector>

#include "tenon/core/thread.h"

namespace tenon {

int run_on_threads(int count, const std::function<void(int at)>& work) {
  std::vector<Thread> helpers;  // joined at the end
  helpers.reserve(static_cast<std::size_t>(count));
  for (int at = 1; at < count; ++at) {
    auto helper = start_thread("load", [&work, at] { work(at); });
    if (!helper) break;
    helpers.push_back(*std::move(helper));
  }
  work(0);
  return 1 + static_cast<int>(helpers.size());
}

}  // namespace tenon
