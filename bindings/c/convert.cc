#include "bindings/c/convert.h"

namespace tenon::c {
namespace {

// No struct of this interface will ever be longer: a larger number was never a size.
constexpr std::uint64_t kMostStructBytes = 4096;
constexpr std::size_t kMostTextBytes = 255;

Status refuse(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// DLPack's numbers.
enum : std::int32_t { kHost = 1, kCuda = 2, kCudaHost = 3, kRocm = 10, kCudaManaged = 13 };
enum : std::uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kE4m3fn = 10, kE4m3fnuz };

Result<Device> device_of(std::string_view what, const tenon_tensor& tensor, Device wanted) {
  const auto lies = [&](std::string_view where) {
    return refuse(std::string(what) + " lies in " + std::string(where) + "; accepted: memory of " +
                  std::string(name(wanted.target)) + ":" + std::to_string(wanted.index));
  };
  switch (tensor.device_type) {
    case kHost:
      if (!is_host(wanted.target)) return lies("host memory");
      if (tensor.device_id != 0 && tensor.device_id != wanted.index)
        return lies("host memory number " + std::to_string(tensor.device_id));
      return wanted;
    case kCuda:
      if (wanted != Device{Target::kCuda, tensor.device_id})
        return lies("memory of cuda:" + std::to_string(tensor.device_id));
      return wanted;
    case kRocm:
      if (wanted != Device{Target::kHip, tensor.device_id})
        return lies("memory of hip:" + std::to_string(tensor.device_id));
      return wanted;
    case kCudaHost: return lies("pinned host memory (DLPack device 3)");
    case kCudaManaged: return lies("managed memory (DLPack device 13)");
    default: return lies("memory of DLPack device " + std::to_string(tensor.device_type));
  }
}

Result<DType> type_of(std::string_view what, const tenon_tensor& tensor, DType expected) {
  const auto is = [&](std::uint8_t code, int bits) {
    return tensor.type_code == code && tensor.type_bits == bits && tensor.type_lanes == 1;
  };
  const int expected_bits = static_cast<int>(8 * size_of(expected));
  if (is(kUnsigned, expected_bits)) return expected;
  if (is(kFloat, 32)) return DType::kF32;
  if (is(kBfloat, 16)) return DType::kBF16;
  if (is(kFloat, 16)) return DType::kF16;
  if (is(kE4m3fn, 8)) return DType::kE4M3;
  if (is(kE4m3fnuz, 8)) return DType::kE4M3Fnuz;
  if (is(kInt, 32)) return DType::kI32;
  if (is(kInt, 64)) return DType::kI64;
  if (is(kUnsigned, 8)) return DType::kU8;
  return refuse(std::string(what) + " has DLPack type (" + std::to_string(tensor.type_code) + ", " +
                std::to_string(tensor.type_bits) + ", " + std::to_string(tensor.type_lanes) +
                "); accepted: " + std::string(name(expected)) + ", or unsigned integers of " +
                std::to_string(expected_bits) + " bits that hold its bits");
}

}  // namespace

Result<std::size_t> bytes_that_count(const GivenStruct& given) {
  if (given.at == nullptr) return refuse("the " + std::string(given.name) + " is null");
  std::uint64_t size = 0;
  std::memcpy(&size, given.at, sizeof size);
  if (size < given.least_bytes || size > kMostStructBytes)
    return refuse("the size of the " + std::string(given.name) + " is " + std::to_string(size) +
                  "; accepted: " + std::to_string(given.least_bytes) + " to " +
                  std::to_string(kMostStructBytes) + ", what sizeof says where it is compiled");
  const auto* bytes = static_cast<const unsigned char*>(given.at);
  for (std::size_t at = given.known_bytes; at < size; ++at)
    if (bytes[at] != 0)
      return Status::error(Code::kUnsupported,
                           "the " + std::string(given.name) +
                               " asks for something behind its first " +
                               std::to_string(given.known_bytes) +
                               " bytes that this library is too old to know; accepted: zeros");
  return std::min<std::size_t>(size, given.known_bytes);
}

Status write_text(std::string_view text, char* to, std::uint64_t* bytes) {
  if (bytes == nullptr) return refuse("there is no number of bytes: it is null");
  if (to == nullptr && *bytes != 0)
    return refuse("the text is null but " + std::to_string(*bytes) + " bytes long; accepted: 0");
  if (*bytes != 0) {
    const std::size_t count = text.copy(to, static_cast<std::size_t>(*bytes - 1));
    to[count] = 0;
  }
  *bytes = text.size() + 1;
  return Status::ok();
}

Result<std::string> read_text(std::string_view what, const char* text) {
  if (text == nullptr) return std::string();
  const std::size_t bytes = strnlen(text, kMostTextBytes + 1);
  if (bytes > kMostTextBytes)
    return refuse(std::string(what) + " is longer than " + std::to_string(kMostTextBytes) +
                  " bytes, the most that is accepted");
  return std::string(text, bytes);
}

Result<DType> dtype_of(std::string_view what, std::int32_t number) {
  switch (number) {
    case TENON_F32: return DType::kF32;
    case TENON_BF16: return DType::kBF16;
    case TENON_F16: return DType::kF16;
    case TENON_E4M3FN: return DType::kE4M3;
    case TENON_E4M3FNUZ: return DType::kE4M3Fnuz;
    default:
      return refuse(std::string(what) + " is " + std::to_string(number) +
                    "; accepted: 0 to 4, TENON_F32 to TENON_E4M3FNUZ");
  }
}

Result<TensorView> tensor_of(std::string_view what, const tenon_tensor* tensor, Device device,
                             DType expected) {
  if (tensor == nullptr) return refuse(std::string(what) + " is null");
  TensorView view;
  TENON_ASSIGN(view.device, device_of(what, *tensor, device));
  TENON_ASSIGN(view.dtype, type_of(what, *tensor, expected));
  if (tensor->num_dims < 0 || tensor->num_dims > static_cast<int>(view.shape.size()) ||
      (tensor->num_dims > 0 && tensor->shape == nullptr))
    return refuse(std::string(what) + " has " + std::to_string(tensor->num_dims) +
                  " dimensions and " + (tensor->shape == nullptr ? "no shape" : "a shape") +
                  "; accepted: 0 to " + std::to_string(view.shape.size()) + " with a shape");
  view.num_dims = tensor->num_dims;
  std::int64_t dense = 1, elements = 1;
  for (int i = view.num_dims - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    view.shape[at] = tensor->shape[i];
    const bool says_nothing = tensor->strides == nullptr || view.shape[at] <= 1;
    view.stride[at] = says_nothing ? dense : tensor->strides[i];
    if (view.shape[at] < 0 || view.stride[at] < 0 ||
        __builtin_mul_overflow(elements, view.shape[at], &elements) ||
        elements > (std::int64_t{1} << 48) || view.stride[at] > (std::int64_t{1} << 48))
      return refuse(std::string(what) + ": dimension " + std::to_string(i) + " has " +
                    std::to_string(view.shape[at]) + " elements " +
                    std::to_string(view.stride[at]) +
                    " apart; accepted: 0 or more of each, and no more than memory can hold");
    dense *= std::max<std::int64_t>(view.shape[at], 1);
  }
  view.data = static_cast<std::byte*>(tensor->data) + tensor->byte_offset;
  if (tensor->data == nullptr) {
    if (elements != 0) return refuse(std::string(what) + " has no memory: data is null");
    view.data = nullptr;
  }
  return view;
}

}  // namespace tenon::c
