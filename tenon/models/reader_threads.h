// Work that several threads share while a checkpoint is read.
#pragma once

#include <functional>

namespace tenon {

// Calls work(0) on this thread and work(1) to work(count − 1) on others, or on as many of them as
// the system has; returns how many were called, when all have returned. work() throws nothing.
int run_on_threads(int count, const std::function<void(int at)>& work);

}  // namespace tenon
