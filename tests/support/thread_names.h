// The names that the threads of this process have at this moment, as top -H shows them.
#pragma once

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

namespace tenon::test {

inline std::set<std::string> thread_names() {
  std::set<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    names.insert(name);
  }
  return names;
}

}  // namespace tenon::test
