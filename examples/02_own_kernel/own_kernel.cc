// A kernel of one's own in front of a boundary: a row-parallel product writes each rank's addend,
// the boundary sums, adds, normalises. Eagerly and as a recording, judged by tenon/reference.
//   own_kernel [TARGET]      cpu where none is named; cuda where the library has it
#include <cstdio>
#include <cstring>
#include <thread>

#include "product.h"
#include "tenon/boundary/boundary.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/reference/boundary.h"

#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  namespace tenon::space::product {                         \
  extern const own::Product product;                        \
  }
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY

const own::Product* own::product_of(tenon::Target target) {
  switch (target) {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  case tenon::Target::k##enumerator:                        \
    return &tenon::space::product::product;
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY
    default: return nullptr;
  }
}

namespace {

using namespace tenon;

constexpr int kRanks = 2, kRows = 5, kDepth = 64, kHidden = 512;

// Numbers between -1 and 1 in bf16, the same on every machine.
std::vector<std::uint16_t> numbers(std::size_t count, std::uint32_t seed) {
  std::vector<std::uint16_t> made(count);
  for (std::uint16_t& each : made) {
    seed = seed * 1664525u + 1013904223u;
    each = to_bf16(static_cast<float>(seed >> 8) * 0x1p-23f - 1.0f).bits;
  }
  return made;
}

std::vector<std::uint16_t> inputs_of(int rank) { return numbers(kRows * kDepth, 10u + rank); }
std::vector<std::uint16_t> weights_of(int rank) { return numbers(kHidden * kDepth, 20u + rank); }

std::vector<std::uint16_t> addend_of(int rank) {  // the definition in product.h, in plain C++
  const std::vector<std::uint16_t> x = inputs_of(rank), weight = weights_of(rank);
  std::vector<std::uint16_t> made;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kHidden; ++column) {
      float sum = 0.0f;
      for (int k = 0; k < kDepth; ++k)
        sum = __builtin_fmaf(to_float(bf16{x[row * kDepth + k]}),
                             to_float(bf16{weight[column * kDepth + k]}), sum);
      made.push_back(to_bf16(sum).bits);
    }
  }
  return made;
}

struct Memory {  // bf16 on a device
  Buffer buffer;
  bf16* data() const { return buffer.as<bf16>(); }
  TensorView tensor(std::initializer_list<std::int64_t> shape) const {
    return view(buffer.data(), DType::kBF16, buffer.device(), shape);
  }
};
Result<Memory> on_device(Stream& stream, const std::vector<std::uint16_t>& from) {
  TENON_ASSIGN(Buffer made, Buffer::allocate(stream.device(), from.size() * 2));
  TENON_TRY(stream.copy(made.data(), from.data(), from.size() * 2));
  return Memory{std::move(made)};
}

Status run_rank(int rank, Target target, std::shared_ptr<Bootstrap> team) {
  const own::Product* const product = own::product_of(target);
  if (product == nullptr) return Status::error(Code::kUnsupported, "no kernel for this target");
  TENON_ASSIGN(const Device device, nth_device(target, rank));
  const CommOptions options{.rank = rank, .size = kRanks, .bootstrap = std::move(team)};
  TENON_ASSIGN(auto comm, Communicator::create(options, device));
  TENON_ASSIGN(auto channel, BoundaryChannel::make({.hidden = kHidden, .max_rows = kRows}, *comm));
  const BoundarySpec spec{
      .site = "own kernel", .hidden = kHidden, .max_rows = kRows, .want_fp8 = false};
  TENON_ASSIGN(Boundary boundary, Boundary::make(spec, channel));
  TENON_ASSIGN(Stream stream, Stream::create(device));

  reference::BoundaryCase shape{.rows = kRows, .hidden = kHidden, .team = kRanks};
  shape.want_fp8 = false;
  reference::BoundaryInputs in;
  for (int each = 0; each < kRanks; ++each) in.addends.push_back(addend_of(each));
  in.residual = numbers(kRows * kHidden, 30);
  const std::vector<std::uint16_t> norm_weight = numbers(kHidden, 40);
  in.weight.assign(norm_weight.begin(), norm_weight.end());

  TENON_ASSIGN(Memory x, on_device(stream, inputs_of(rank)));
  TENON_ASSIGN(Memory weight, on_device(stream, weights_of(rank)));
  TENON_ASSIGN(Memory addend, on_device(stream, std::vector<std::uint16_t>(kRows * kHidden)));
  TENON_ASSIGN(Memory residual, on_device(stream, in.residual));
  TENON_ASSIGN(Memory norm, on_device(stream, norm_weight));
  TENON_ASSIGN(Memory rows, on_device(stream, std::vector<std::uint16_t>(kRows * kHidden)));
  const own::ProductArgs args{x.data(), weight.data(), addend.data(), kRows, kDepth, kHidden};

  // [step]
  const auto step = [&]() -> Status {
    TENON_TRY(product->run(args, comm->may_start_early(), stream));
    return boundary.run({addend.tensor({kRows, kHidden})}, residual.tensor({kRows, kHidden}),
                        norm.tensor({kHidden}), {.bf16 = rows.tensor({kRows, kHidden})}, stream);
  };
  TENON_TRY(step());
  TENON_TRY(Graph::begin(stream));
  TENON_TRY(step());
  TENON_ASSIGN(Graph graph, Graph::end(stream));
  TENON_TRY(graph.replay(stream));
  // [/step]

  std::vector<std::uint16_t> found(kRows * kHidden);
  TENON_TRY(stream.copy(found.data(), rows.buffer.data(), found.size() * 2));
  TENON_TRY(stream.synchronize());
  TENON_TRY(comm->health());
  in.residual = reference::boundary(shape, in).residual;  // of the first step
  if (found != reference::boundary(shape, in).norm)
    return Status::error(Code::kInternal, "these are not the rows of the reference");
  return Status::ok();
}

}  // namespace

int main(int count, char** words) {
  Target target = Target::kCpu;
  for (const Target each : built_targets())
    if (count == 2 && name(each) == words[1]) target = each;
  if (count > 2 || (count == 2 && name(target) != words[1])) {
    std::fprintf(stderr, "usage: own_kernel [TARGET], one that the library was built for\n");
    return 2;
  }
  auto team = local_bootstrap(kRanks);
  Status status[kRanks];
  std::thread other([&, handle = std::move(team[1])] { status[1] = run_rank(1, target, handle); });
  status[0] = run_rank(0, target, std::move(team[0]));
  other.join();
  for (const Status& each : status)
    std::puts(each ? "the bits of the reference" : each.to_string().c_str());
  return status[0] && status[1] ? 0 : 1;
}
