// How large the cases of a run are. TEST_SMALL in the environment asks for few and small ones,
// which still launch every form of every kernel: for tools under which a kernel takes hundreds of
// times as long.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <vector>

namespace tenon::test {

inline bool is_small_run() { return std::getenv("TEST_SMALL") != nullptr; }

// What a loop over sizes goes through: all of them, in a small run the few.
template <class T>
std::vector<T> sizes(std::initializer_list<T> all, std::initializer_list<T> few) {
  return is_small_run() ? few : all;
}

// The same of one number.
inline int size(int usual, int small) { return is_small_run() ? small : usual; }

// Numbers of rows up to `most`: every step-th one below `close` and every wide-th one above; in a
// small run those beside the limits of tiles.
inline std::vector<int> row_counts(int most, int close, int step, int wide) {
  std::vector<int> counts;
  if (is_small_run()) {
    for (const int each : {1, 8, 9, 17, 33, 64, 65, 130, 300})
      if (each <= most) counts.push_back(each);
    return counts;
  }
  for (int count = 1; count <= most; count += count < close ? step : wide) counts.push_back(count);
  return counts;
}

}  // namespace tenon::test
