// Which block of which grid this thread is running: set by cpu/runtime.cc, read by cpu/device.cuh.
#pragma once

namespace tenon {

struct CpuBlock {
  int block = 0, num_blocks = 1;
  void* shared = nullptr;  // dynamic shared memory of this block
};
inline thread_local CpuBlock cpu_block;

}  // namespace tenon
