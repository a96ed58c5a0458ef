#include "tenon/layers/caches.h"

namespace tenon {

std::int64_t CacheSpec::part_bytes() const {
  std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  for (const std::int64_t extent : shape) bytes *= extent;
  return bytes;
}

TensorView CacheSpec::tensor(void* data, Device device, std::int64_t parts) const {
  TENON_CHECK(shape.size() <= 3);
  TensorView made;
  made.data = data;
  made.dtype = dtype;
  made.device = device;
  made.num_dims = 1 + static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (std::size_t dim = shape.size(); dim > 0; --dim) {
    made.shape[dim] = shape[dim - 1];
    made.stride[dim] = stride;
    stride *= shape[dim - 1];
  }
  made.shape[0] = parts;
  made.stride[0] = stride;
  return made;
}

std::int64_t CacheLayout::part_bytes(CacheSpec::Per per) const {
  std::int64_t bytes = 0;
  for (const CacheSpec& each : caches)
    if (each.per == per) bytes += each.part_bytes();
  return bytes;
}

}  // namespace tenon
