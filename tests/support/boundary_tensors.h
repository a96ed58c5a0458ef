// One rank's tensors of a boundary on a device, for tests of every op and layer that makes
// NormedRows: inputs from reference::BoundaryInputs, outputs poisoned, gaps between rows and guards
// behind tensors that nobody may touch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/reference/boundary.h"

namespace tenon::test {

// Rows of bytes with `gap` bytes between them and a guard behind.
class GuardedRows {
 public:
  GuardedRows(Device device, std::int64_t rows, std::int64_t row_bytes, std::int64_t gap);
  void* data() const { return memory_.data(); }
  std::int64_t stride_bytes() const { return row_bytes_ + gap_; }
  void poison(Stream& stream) const;                   // everything
  void write(Stream& stream, const void* rows) const;  // compact rows; gaps keep the poison
  // Compact rows; appends a sentence to `damage` when a gap or the guard has changed.
  std::vector<std::uint8_t> read(Stream& stream, const char* what, std::string& damage) const;

 private:
  std::int64_t rows_, row_bytes_, gap_;
  Buffer memory_;
};

class BoundaryTensors {
 public:
  // gap: elements between rows of every tensor but the scales; a multiple of 16.
  BoundaryTensors(const reference::BoundaryCase& shape, const reference::BoundaryInputs& inputs,
                  int rank, Device device, Stream& stream, int gap = 0);

  TensorView addend, residual, weight;
  NormedRows out;

  // Puts the residual back and poisons every output.
  void reset(Stream& stream) const;
  // What the op wrote. `damage` gets a sentence if it wrote where it must not.
  reference::BoundaryOutputs read(Stream& stream, std::string& damage) const;

 private:
  const reference::BoundaryCase shape_;
  const std::vector<std::uint16_t> residual_in_;
  GuardedRows addend_rows_, residual_rows_, weight_rows_, norm_rows_, code_rows_, scale_rows_;
};

}  // namespace tenon::test
