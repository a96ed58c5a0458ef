// fp8_gemm grouped by expert, by the tensor cores of Hopper (sm_90a). The bits of a row are those
// of the dense variant sm90 for the expert's matrix: block sums by wgmma, an fma per block,
// segments added in order. Two forms: sm90_expert_tiles.cuh for prompts, and here the one for
// experts that have a few rows each.
//
// A block of threads takes 128 columns of at most 64 rows of one expert, and all of k. Which, it
// finds from the offsets: the grid has as many blocks as any grouping of so many rows can need, and
// those without a tile end. The weight is the operand with 64 rows of the instruction, rows of x
// are its N side. One wave, the producer, fills a ring of stages: 128 bytes of k of 128 columns,
// and of the rows, which are one tile, or a tile each where row_of scatters them. Two warpgroups
// multiply. Sums of earlier segments wait in shared memory.
#include "tenon/device/cuda_hip/sm90/lanes.cuh"
#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/fp8_gemm/call.cuh"
#include "tenon/ops/fp8_gemm/sm90_expert_tiles.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

using namespace sm90;

constexpr int kRows = 64, kColumns = 128;  // of a tile
constexpr int kWarps = 8, kConsumers = kWarps * kWave, kThreads = kConsumers + kWave;
constexpr int kWeightBytes = kColumns * kProductBlock, kXBytes = kRows * kProductBlock;
constexpr int kStageBytes = kWeightBytes + kXBytes;
constexpr int kSums = kRows / 2;          // of a thread
constexpr int kOutStride = kColumns + 4;  // floats between rows of results in shared memory
constexpr int kMostStages = 8;
static_assert(2 * kStageBytes >= kRows * kOutStride * 4);  // results lie where the ring was

struct ExpertsCall {
  TensorMap x, weight;  // x in tiles of kRows rows, or of one where row_of is given
  GemmCall gemm;
  GemmScales scales;
  Segments cut;
  int column_tiles = 1, stages = 2;
};

// Where things lie in shared memory behind the ring, in bytes.
struct Shared {
  int scales, whole, barriers, bytes;
};
TENON_HD constexpr Shared shared_of(int stages, const Segments& cut) {
  Shared at{};
  at.scales = stages * kStageBytes;
  at.whole = at.scales + cut.num_blocks * kRows * 4;
  at.barriers = at.whole + (cut.count > 1 ? kSums * kConsumers * 4 : 0);
  at.bytes = at.barriers + 2 * stages * 8;
  return at;
}

// What a block of threads makes; num_rows 0: nothing.
struct Tile {
  int expert, first_row, num_rows, first_column;
};

// Tiles go by expert, then by columns, then by rows: neighbours read the same part of the weight.
// Every wave finds the same, each lane looking at a range of experts.
TENON_DEVICE Tile find_tile(const ExpertsCall& call) {
  const GemmCall& gemm = call.gemm;
  const int share = (gemm.experts + kWave - 1) / kWave, lane = thread_id() % kWave;
  const int begin = lane * share < gemm.experts ? lane * share : gemm.experts;
  const int end = begin + share < gemm.experts ? begin + share : gemm.experts;
  int row_tiles = 0, row = gemm.offsets[begin];
  TENON_NO_UNROLL
  for (int first = begin; first < end; first += 8) {  // so that no load waits for another
    int next[8];
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) next[i] = gemm.offsets[first + i < end ? first + i + 1 : end];
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) {
      row_tiles += (next[i] - row + kRows - 1) / kRows;
      row = next[i];
    }
  }
  const int mine = block_id() - sum_before(row_tiles) * call.column_tiles;
  const std::uint32_t owners = ballot(mine >= 0 && mine < row_tiles * call.column_tiles);
  if (owners == 0) return {};
  Tile tile{};
  const int owner = lowest_one(owners);
  if (lane == owner) {
    int expert = begin, left = mine, rows = 0;
    for (;; ++expert) {
      rows = gemm.offsets[expert + 1] - gemm.offsets[expert];
      const int tiles = (rows + kRows - 1) / kRows * call.column_tiles;
      if (left < tiles) break;
      left -= tiles;
    }
    const int tiles = (rows + kRows - 1) / kRows, at = left % tiles * kRows;
    tile = {expert, gemm.offsets[expert] + at, rows - at < kRows ? rows - at : kRows,
            left / tiles * kColumns};
  }
  return {shuffle_from(tile.expert, owner), shuffle_from(tile.first_row, owner),
          shuffle_from(tile.num_rows, owner), shuffle_from(tile.first_column, owner)};
}

struct Ring {
  std::byte* stages;
  Mbarrier *full, *empty;
  TENON_HD std::byte* weight(int stage) const { return stages + stage * kStageBytes; }
  TENON_HD std::byte* x(int stage) const { return weight(stage) + kWeightBytes; }
};

// The producer. Where rows of x are scattered, each is a copy of its own, asked for by a lane.
TENON_DEVICE void fill_ring(const ExpertsCall& call, const Tile& tile, const Ring& ring) {
  const GemmCall& gemm = call.gemm;
  const int lane = thread_id() % kWave;
  const bool scattered = gemm.row_map != nullptr;
  std::int32_t token[kRows / kWave];  // of rows lane, lane + 32
  TENON_UNROLL
  for (int i = 0; i < kRows / kWave; ++i) {
    const int row = lane + i * kWave;
    token[i] = scattered && row < tile.num_rows ? gemm.row_map[tile.first_row + row] : 0;
  }
  // A part of the weight is read by neighbours at about the same time, then never again; x stays.
  const std::uint64_t once = policy_evict_first(), often = policy_evict_last();
  const int weight_row = tile.expert * gemm.n + tile.first_column;
  const int x_bytes = scattered ? tile.num_rows * kProductBlock : kXBytes;
  RingPlace place;
  TENON_NO_UNROLL
  for (int block = 0; block < call.cut.num_blocks; ++block) {
    Mbarrier* const full = &ring.full[place.stage];
    std::byte* const x = ring.x(place.stage);
    const int byte = block * kProductBlock;
    barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
    if (lane == 0) {
      barrier_arrive_expect(full, static_cast<std::uint32_t>(kWeightBytes + x_bytes));
      copy_tile(ring.weight(place.stage), &call.weight, byte, weight_row, full, once);
      if (!scattered) copy_tile(x, &call.x, byte, tile.first_row, full, often);
    }
    sync_wave();
    if (scattered) {
      TENON_UNROLL
      for (int i = 0; i < kRows / kWave; ++i) {
        const int row = lane + i * kWave;
        if (row < tile.num_rows)
          copy_tile(x + row * kProductBlock, &call.x, byte, token[i], full, often);
      }
    }
    place.next(call.stages);
  }
}

// The products of scales, [blocks of k, kRows]. A thread has one row. Rows that do not exist get
// those of the last one.
TENON_DEVICE void make_scales(const ExpertsCall& call, const Tile& tile, float* to) {
  constexpr int kLoads = 4, kStep = kConsumers / kRows;
  const int row = thread_id() % kRows;
  const std::int64_t token =
      token_of(call.gemm, tile.first_row + (row < tile.num_rows ? row : tile.num_rows - 1));
  const float* x = call.scales.x + token * call.scales.x_row_stride;
  const float* weight = call.scales.weight + tile.expert * call.scales.weight_expert_stride +
                        tile.first_column / kProductBlock * call.scales.weight_row_stride;
  TENON_NO_UNROLL
  for (int first = thread_id() / kRows; first < call.cut.num_blocks; first += kLoads * kStep) {
    float of_x[kLoads], of_weight[kLoads];
    TENON_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int wanted = first + i * kStep;
      const int block = wanted < call.cut.num_blocks ? wanted : first;
      of_x[i] = x[block * call.scales.x_block_stride];
      of_weight[i] = weight[block];
    }
    TENON_UNROLL
    for (int i = 0; i < kLoads; ++i)
      if (first + i * kStep < call.cut.num_blocks)
        to[(first + i * kStep) * kRows + row] = of_x[i] * of_weight[i];
  }
}

// sums[4 j + 2 h + c] belongs to column 16 w + g + 8 h of the warpgroup's 64 and row 8 j + 2 p + c,
// for lane 4 g + p of warp w.
TENON_DEVICE void multiply(const ExpertsCall& call, const Ring& ring, const float* scales,
                           float4* whole, float (&sums)[kSums]) {
  // A value that the whole warp has, in a uniform register: see sm90/wgmma.cuh.
  const int group = shuffle_from(thread_id() / 128, 0);
  const int lane = thread_id() % kWave;
  const std::uint64_t weight = tile_descriptor(ring.stages + group * 64 * kProductBlock);
  const std::uint64_t x = tile_descriptor(ring.stages + kWeightBytes);
  RingPlace place;
  TENON_NO_UNROLL
  for (int segment = 0; segment < call.cut.count; ++segment) {
    const int end = call.cut.begin(segment + 1) / kProductBlock;
    TENON_UNROLL
    for (int e = 0; e < kSums; ++e) sums[e] = 0.0f;
    TENON_NO_UNROLL
    for (int block = call.cut.begin(segment) / kProductBlock; block < end; ++block) {
      barrier_wait(&ring.full[place.stage], place.parity);
      const int stage = place.stage * (kStageBytes / 16);
      float products[kSums] = {};
      wgmma_begin();
      TENON_UNROLL
      for (int k = 0; k < 4; ++k)
        add_product<kRows>(products, descriptor_at(weight, stage + 2 * k),
                           descriptor_at(x, stage + 2 * k), k > 0);
      wgmma_commit();
      wgmma_wait_all();
      hold_sums(products);
      if (lane == 0) barrier_arrive(&ring.empty[place.stage]);
      place.next(call.stages);
      const float* of_block = scales + block * kRows + 2 * (lane % 4);
      TENON_UNROLL
      for (int j = 0; j < kRows / 8; ++j) {
        const float2 scale = *reinterpret_cast<const float2*>(of_block + 8 * j);
        TENON_UNROLL
        for (int e = 4 * j; e < 4 * j + 4; ++e)
          sums[e] = fma_f(products[e], e % 2 == 0 ? scale.x : scale.y, sums[e]);
      }
    }
    if (call.cut.count == 1) return;
    TENON_UNROLL
    for (int j = 0; j < kSums / 4; ++j) {
      float4* const kept = whole + j * kConsumers + thread_id();
      float4 sum = {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
      if (segment > 0) {
        const float4 before = *kept;
        sum = {before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w};
      }
      *kept = sum;
    }
  }
  TENON_UNROLL
  for (int j = 0; j < kSums / 4; ++j) {
    const float4 sum = whole[j * kConsumers + thread_id()];
    sums[4 * j] = sum.x, sums[4 * j + 1] = sum.y, sums[4 * j + 2] = sum.z, sums[4 * j + 3] = sum.w;
  }
}

// Results meet in shared memory, so that a wave writes 128 columns of a row together.
TENON_DEVICE void store(const ExpertsCall& call, const Tile& tile, const float (&sums)[kSums],
                        float* results) {
  const GemmCall& gemm = call.gemm;
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  sync_first_threads<kConsumers>();  // nobody reads the ring any more
  TENON_UNROLL
  for (int e = 0; e < kSums; ++e) {
    const int row = e / 4 * 8 + 2 * (lane % 4) + e % 2;
    results[row * kOutStride + 16 * warp + lane / 4 + e % 4 / 2 * 8] = sums[e];
  }
  sync_first_threads<kConsumers>();
  const int column = tile.first_column + 4 * lane;
  for (int row = warp; row < tile.num_rows; row += kWarps) {
    const float4 four = *reinterpret_cast<const float4*>(results + row * kOutStride + 4 * lane);
    bf16* const to =
        static_cast<bf16*>(gemm.out) + (tile.first_row + row) * gemm.out_stride + column;
    if (!gemm.out_is_f32 && column + 3 < gemm.n && reinterpret_cast<std::uintptr_t>(to) % 8 == 0) {
      store8_bytes(to, convert_bf16x2(four.x, four.y), convert_bf16x2(four.z, four.w));
    } else {
      const float values[4] = {four.x, four.y, four.z, four.w};
      for (int i = 0; i < 4 && column + i < gemm.n; ++i)
        store_output(gemm, tile.first_row + row, column + i, values[i]);
    }
  }
}

TENON_KERNEL_RESIDENT(kThreads, 2) experts_kernel(TENON_ARGS(ExpertsCall) call) {
  TENON_SHARED_TILES(shared);
  const Shared at = shared_of(call.stages, call.cut);
  auto* const barriers = reinterpret_cast<Mbarrier*>(shared + at.barriers);
  const Ring ring{shared, barriers, barriers + call.stages};
  if (thread_id() == kConsumers) {
    TENON_NO_UNROLL
    for (int stage = 0; stage < call.stages; ++stage) {
      barrier_init(&ring.full[stage], 1);
      barrier_init(&ring.empty[stage], kWarps);
    }
    publish_barriers();
    prefetch_map(&call.weight);
    prefetch_map(&call.x);
  }
  sync_wave();
  sync_block();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  const Tile tile = find_tile(call);
  if (tile.num_rows == 0) return;
  if (thread_id() >= kConsumers) {
    fill_ring(call, tile, ring);
    return;
  }
  auto* const scales = reinterpret_cast<float*>(shared + at.scales);
  make_scales(call, tile, scales);
  sync_first_threads<kConsumers>();
  float sums[kSums];
  multiply(call, ring, scales, reinterpret_cast<float4*>(shared + at.whole), sums);
  store(call, tile, sums, reinterpret_cast<float*>(shared));
}

// As many stages as let two blocks, or else one, find room on a multiprocessor. Each has 1 KiB
// besides.
int stages_of(const Segments& cut, std::size_t most) {
  for (const int resident : {2, 1}) {
    const int room = (static_cast<int>(most) + 1024) / resident - 1024;
    int stages = 0;
    while (stages < kMostStages && shared_of(stages + 1, cut).bytes <= room) ++stages;
    if (stages >= 2) return stages;
  }
  return 0;
}

constexpr std::string_view kUnitsName = "expert_tiles_kernel";

// Rows for each expert from which on tiles of 64 of them are worth their start.
constexpr int kManyRows = 32;

void plan_units(const GemmCall& gemm, const PlanContext& where, Recipe* recipe) {
  const int pairs = gemm.rows / kUnitRows + gemm.experts;
  const int most = where.properties.num_units / kUnitCluster;
  const std::int64_t work = std::int64_t{1} * pairs * ceil_div(gemm.n, kUnitColumns);
  LaunchShape shape;
  shape.blocks = static_cast<int>(work < most ? work : most) * kUnitCluster;
  shape.threads = kTilesThreads;
  shape.shared_bytes = static_cast<std::size_t>(unit_shared_bytes(gemm.experts));
  shape.cluster = kUnitCluster;
  shape.early = where.may_start_early;
  recipe->launch(kUnitsName, shape);
}

// Ok, or why the form for many rows does not take this call.
Status takes_units(const GemmCall& gemm, const PlanContext& where) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  if (gemm.rows < kManyRows * gemm.experts)
    return no(std::to_string(gemm.rows) + " rows of " + std::to_string(gemm.experts) +
              " experts; tiles are for " + std::to_string(kManyRows) + " of each");
  const auto most = static_cast<int>(where.properties.max_shared_bytes);
  if (unit_shared_bytes(gemm.experts) > most)
    return no("a block has too little shared memory for " + std::to_string(gemm.experts) +
              " experts");
  return Status::ok();
}

// The variant's bits are the same in both forms. Whether a plain product is taken depends on the
// weight and on the device alone: the bits of a row must not change with the number of rows.
Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (args.weight.num_dims != 3) return no("weight is one matrix; it is for experts");
  const GemmCall gemm = call_of(args).gemm;
  if (gemm.experts > 1 && gemm.expert_stride != gemm.n * gemm.weight_stride)
    return no("the matrices of the experts do not follow each other without a gap");
  const Status tiles = takes_units(gemm, where);
  if (tiles) {
    plan_units(gemm, where, recipe);
    return tiles;
  }
  if (args.activated) return tiles;
  const Segments cut = segments_of(gemm.n, gemm.k);
  const int stages = stages_of(cut, where.properties.max_shared_bytes);
  if (stages == 0)
    return no("k is " + std::to_string(gemm.k) + "; a block has too little shared memory for it");
  LaunchShape shape;
  const int experts = gemm.rows < gemm.experts ? gemm.rows : gemm.experts;  // that can have rows
  shape.blocks = (gemm.rows / kRows + experts) * ceil_div(gemm.n, kColumns);
  shape.threads = kThreads;
  shape.shared_bytes = static_cast<std::size_t>(shared_of(stages, cut).bytes);
  shape.early = where.may_start_early;
  recipe->launch("experts_kernel", shape);
  recipe->set("stages", stages);
  return Status::ok();
}

// x of a call, in tiles of so many rows, or of one where they are scattered; weights of all
// experts.
Result<TensorMap> x_tiles(const Args& args, const GemmCall& gemm, int tile_rows) {
  return sm90_map(gemm.x, args.x.data.shape[0], gemm.k, gemm.x_stride,
                  gemm.row_map == nullptr ? tile_rows : 1);
}
Result<TensorMap> weight_tiles(const GemmCall& gemm, int tile_rows) {
  return sm90_map(gemm.weight, std::int64_t{gemm.experts} * gemm.n, gemm.k, gemm.weight_stride,
                  tile_rows);
}

Status launch_units(const Recipe& recipe, const Args& args, Stream& stream) {
  const Fp8Call operands = call_of(args);
  TilesCall call;
  call.gemm = operands.gemm;
  call.scales = operands.scales;
  call.activated = quant_spec(args.activated);
  call.cut = segments_of(call.gemm.n, call.gemm.k);
  if (call.gemm.row_map == nullptr) {
    TENON_ASSIGN(call.x, x_tiles(args, call.gemm, kUnitRows / kUnitCluster));
  }
  TENON_ASSIGN(call.weight, weight_tiles(call.gemm, kTileSide / 2));
  return tenon::launch(stream, recipe.launches.front().shape,
                       args.activated       ? expert_tiles_kernel<true, true>
                       : call.cut.count > 1 ? expert_tiles_kernel<false, true>
                                            : expert_tiles_kernel<false, false>,
                       call);
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Fp8Call operands = call_of(args);
  const GemmCall& gemm = operands.gemm;
  if (gemm.rows == 0) return Status::ok();
  if (recipe.launches.front().kernel == kUnitsName) return launch_units(recipe, args, stream);
  ExpertsCall call;
  call.gemm = gemm;
  call.scales = operands.scales;
  call.cut = segments_of(gemm.n, gemm.k);
  call.column_tiles = ceil_div(gemm.n, kColumns);
  call.stages = recipe.setting("stages");
  TENON_ASSIGN(call.weight, weight_tiles(gemm, kColumns));
  TENON_ASSIGN(call.x, x_tiles(args, gemm, kRows));
  return tenon::launch(stream, recipe.launches.front().shape, experts_kernel, call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90_experts, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_gemm
