// The bytes and operations that a step of a decoder cannot do without.
#include <cmath>

#include "tenon/models/decoder.h"

namespace tenon {
namespace {

double bytes_of(const Matrix& matrix) {
  if (!matrix) return 0;
  const std::size_t scales = matrix.is_fp8() ? matrix.scale.bytes() : 0;
  return static_cast<double>(matrix.weight.bytes() + scales);
}

double elements_of(const TensorView& tensor) {
  return tensor.data == nullptr
             ? 0
             : static_cast<double>(tensor.bytes()) / static_cast<double>(size_of(tensor.dtype));
}

class Cost {
 public:
  explicit Cost(const StepLoad& load) : tokens_(static_cast<double>(load.tokens)), load_(load) {}

  // A product of all tokens, with every element of the weight.
  void add(const Matrix& matrix) {
    sum_.weight_bytes += bytes_of(matrix);
    sum_.flops += 2 * tokens_ * elements_of(matrix.weight);
  }
  void add(const DenseSpec& spec) {
    add(spec.gate_up);
    add(spec.down);
  }
  void add(const ExpertsSpec& spec) {
    add(spec.router);
    add(spec.shared);
    const double chosen = static_cast<double>(spec.top_k) / spec.experts;
    const double used = 1 - std::pow(1 - chosen, tokens_);
    for (const Matrix* each : {&spec.gate_up, &spec.down}) {
      sum_.weight_bytes += used * bytes_of(*each);
      sum_.flops += 2 * tokens_ * chosen * elements_of(each->weight);
    }
  }
  void add(const AttentionSpec& spec) {
    add(spec.qkv);
    add(spec.out);
    // Token i of a sequence's t in the step sees context − t + i positions.
    const double each = tokens_ / static_cast<double>(load_.sequences);
    const double seen = tokens_ * (static_cast<double>(load_.context) - (each - 1) / 2);
    sum_.flops += 4.0 * spec.q_heads * spec.head_dim * seen;
  }
  void add(const DeltaNetSpec& spec) {
    add(spec.qkvz);
    add(spec.ba);
    add(spec.out);
    // The recurrence: state · k, its update, state · q.
    sum_.flops += 6.0 * tokens_ * spec.v_heads * spec.head_dim * spec.head_dim;
  }
  void add_head(const TensorView& table) {
    const double elements = elements_of(table);
    sum_.weight_bytes += elements * static_cast<double>(size_of(table.dtype));
    sum_.flops += 2 * static_cast<double>(load_.sequences) * elements;
  }
  void add_caches(const CacheLayout& layout) {
    const auto sequences = static_cast<double>(load_.sequences);
    const auto read = static_cast<double>(load_.context) * sequences;
    sum_.cache_bytes += static_cast<double>(layout.token_bytes()) * (read + tokens_) +
                        2 * static_cast<double>(layout.sequence_bytes()) * sequences;
  }
  const StepCost& sum() const { return sum_; }

 private:
  double tokens_;
  StepLoad load_;
  StepCost sum_;
};

}  // namespace

StepCost step_cost(const DecoderSpec& spec, const StepLoad& load) {
  Cost cost(load);
  for (const DecoderLayer& layer : spec.layers) {
    std::visit([&](const auto& mixer) { cost.add(mixer); }, layer.mixer);
    std::visit([&](const auto& mlp) { cost.add(mlp); }, layer.mlp);
  }
  cost.add_head(spec.head);
  cost.add_caches(cache_layout(spec));
  return cost.sum();
}

}  // namespace tenon
