// What this build and machine can do, as values. Not here: how it is printed (env.cc).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::apps {

// "compiler": "GNU 12.2.0".
struct NamedText {
  std::string name, text;
};

struct MachineDevice {
  Target target{};
  int index = -1;  // -1: the target has no device, and `why_not` says why
  std::string name, why_not;
  int units = 0;
  std::uint64_t memory_bytes = 0;
};

// A transport between two ranks of one target; an empty reason means that it works.
struct MachineTransport {
  std::string name;
  Target target{};
  std::string why_not_threads, why_not_processes;
};

struct MachineOp {
  std::string name;
  Target target{};
  std::vector<std::string> variants;  // in order of preference
};

struct MachineInstruction {
  std::string name;
  bool here = false;
};

struct MachineLink {
  Target target{};
  int from = 0, to = 0;
  double latency_us = 0, gbytes_per_s = 0;
};

struct Machine {
  std::vector<NamedText> build;  // version, commit, compiler, targets
  std::vector<NamedText>
      software;  // the system, drivers and vendors' libraries, where there are any
  long cores = 0;
  int own_cores = 0;  // that this process may use; 0: not known
  double memory_bytes = 0;
  std::vector<MachineInstruction> instructions;  // by which the cpu target chooses variants
  std::vector<MachineDevice> devices;
  std::vector<MachineTransport> transports;
  std::vector<MachineOp> ops;
};

// Starts nothing.
Machine look_at_machine();

// Measures what lies between the devices of each target that has two or more, with a team of one
// rank on each.
Result<std::vector<MachineLink>> measure_links();

}  // namespace tenon::apps
