// Ranks are threads of this process. Every arm runs the same inputs; times are per call, the
// slowest rank's, the median over repeats. On devices the calls of a repeat are one graph.
#include "apps/bench/boundary.h"

#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "apps/table.h"
#include "tenon/comm/bootstrap.h"
#include "tenon/comm/collectives.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/fp8.h"
#include "tenon/core/guard.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/rmsnorm/rmsnorm.h"
#include "tests/support/boundary_oracle.h"

namespace tenon::apps {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;

constexpr int kGroup = 128;
constexpr int kNumArms = 4;
constexpr std::size_t kSumChunkBytes = std::size_t{8} << 20;
constexpr const char* kArms[kNumArms] = {"split", "fused2", "fused1", "fused1bf16"};

struct Shape {
  int rows, hidden;
};

// What one shape gave: microseconds per arm, and whether every rank's bytes equal the oracle's.
struct Row {
  Shape shape{};
  double us[kNumArms] = {};
  bool equal[kNumArms] = {};
  std::string variant;
  double floor_bytes = 0;
};

// One rank's buffers, inputs and plans for one shape.
class Bench {
 public:
  static Result<Bench> make(const BoundaryBench& options, Shape shape, Communicator& comm,
                            const Mailbox& mailbox, const Mailbox& sum_mailbox, Stream& stream);
  Status run_arm(int arm);
  Status reset() { return stream_->copy(residual_.data(), residual_in_.data(), row_bytes()); }
  Result<bool> matches_oracle(int arm);
  std::string variant() const { return std::string(one_.variant_name); }

 private:
  std::size_t row_bytes() const {
    return static_cast<std::size_t>(shape_.rows) * static_cast<std::size_t>(shape_.hidden) * 2;
  }
  TensorView rows_of(const Buffer& buffer) const {
    return view(buffer.data(), dtype_, comm_->device(), {shape_.rows, shape_.hidden});
  }
  NormedRows outputs(bool bf16, bool fp8) const;
  fused::Args fused_args(bool bf16) const;
  rmsnorm::Args norm_args(bool bf16, bool fp8) const;
  fp8_quant::Args quant_args() const;
  void fill_inputs();

  Shape shape_{};
  DType dtype_{};
  Communicator* comm_ = nullptr;
  const Mailbox* mailbox_ = nullptr;
  const Mailbox* sum_mailbox_ = nullptr;
  Stream* stream_ = nullptr;
  testing::BoundaryCase case_;
  testing::BoundaryInputs inputs_;
  testing::BoundaryOutputs expected_;
  std::vector<std::uint16_t> weight_host_;
  Buffer partial_, residual_in_, residual_, weight_, sum_, normed_, codes_, scales_;
  Plan split_norm_, split_quant_, fused2_norm_, one_, one_bf16_;
};

// Rank-distinct numbers whose sum depends on its order, the same on every rank.
void Bench::fill_inputs() {
  case_.rows = shape_.rows;
  case_.hidden = shape_.hidden;
  case_.team = comm_->size();
  case_.dtype = case_.weight_dtype = dtype_;
  case_.group = kGroup;
  inputs_ = testing::make_inputs(case_, 1234, true);
  weight_host_.assign(inputs_.weight.begin(), inputs_.weight.end());
}

NormedRows Bench::outputs(bool bf16, bool fp8) const {
  NormedRows out;
  if (bf16) out.bf16 = rows_of(normed_);
  if (fp8)
    out.fp8 = QuantView{
        view(codes_.data(), DType::kE4M3, comm_->device(), {shape_.rows, shape_.hidden}),
        view(scales_.data(), DType::kF32, comm_->device(), {shape_.rows, shape_.hidden / kGroup}),
        kGroup, ScaleLayout::kRow};
  return out;
}

fused::Args Bench::fused_args(bool bf16) const {
  fused::Args args;
  args.partial.addend = rows_of(partial_);
  args.residual = rows_of(residual_);
  args.weight = view(weight_.data(), dtype_, comm_->device(), {shape_.hidden});
  args.out = outputs(bf16, true);
  args.spread_residual = true;
  return args;
}

rmsnorm::Args Bench::norm_args(bool bf16, bool fp8) const {
  rmsnorm::Args args;
  args.y = rows_of(sum_);
  args.residual = rows_of(residual_);
  args.weight = view(weight_.data(), dtype_, comm_->device(), {shape_.hidden});
  args.out = outputs(bf16, fp8);
  return args;
}

fp8_quant::Args Bench::quant_args() const {
  fp8_quant::Args args;
  args.in = rows_of(normed_);
  args.out = outputs(false, true);
  return args;
}

Result<Bench> Bench::make(const BoundaryBench& options, Shape shape, Communicator& comm,
                          const Mailbox& mailbox, const Mailbox& sum_mailbox, Stream& stream) {
  Bench bench;
  bench.shape_ = shape;
  bench.dtype_ = options.dtype;
  bench.comm_ = &comm;
  bench.mailbox_ = &mailbox;
  bench.sum_mailbox_ = &sum_mailbox;
  bench.stream_ = &stream;
  bench.fill_inputs();
  const Device device = comm.device();
  const std::size_t bytes = bench.row_bytes();
  const std::size_t groups =
      static_cast<std::size_t>(shape.rows) * static_cast<std::size_t>(shape.hidden / kGroup);
  for (Buffer* each :
       {&bench.partial_, &bench.residual_in_, &bench.residual_, &bench.sum_, &bench.normed_}) {
    TENON_ASSIGN(*each, Buffer::allocate(device, bytes));
  }
  TENON_ASSIGN(bench.codes_, Buffer::allocate(device, bytes / 2));
  TENON_ASSIGN(bench.scales_, Buffer::allocate(device, groups * 4));
  TENON_ASSIGN(bench.weight_, Buffer::allocate(device, static_cast<std::size_t>(shape.hidden) * 2));
  const auto& addend = bench.inputs_.addends[static_cast<std::size_t>(comm.rank())];
  TENON_TRY(stream.copy(bench.partial_.data(), addend.data(), bytes));
  TENON_TRY(stream.copy(bench.residual_in_.data(), bench.inputs_.residual.data(), bytes));
  TENON_TRY(
      stream.copy(bench.weight_.data(), bench.weight_host_.data(), bench.weight_host_.size() * 2));
  TENON_ASSIGN(const Situation where, situation(comm));
  TENON_ASSIGN(bench.split_norm_, rmsnorm::plan(bench.norm_args(true, false), where));
  TENON_ASSIGN(bench.split_quant_, fp8_quant::plan(bench.quant_args(), where));
  TENON_ASSIGN(bench.fused2_norm_, rmsnorm::plan(bench.norm_args(false, true), where));
  TENON_ASSIGN(bench.one_, fused::plan(bench.fused_args(false), where, options.variant));
  TENON_ASSIGN(bench.one_bf16_, fused::plan(bench.fused_args(true), where, options.variant));
  return bench;
}

Status Bench::run_arm(int arm) {
  const PartialRows partial{rows_of(partial_)};
  switch (arm) {
    case 0:
      TENON_TRY(collectives::all_reduce(*sum_mailbox_, partial, rows_of(sum_), *stream_));
      TENON_TRY(rmsnorm::run(split_norm_, norm_args(true, false), *stream_));
      return fp8_quant::run(split_quant_, quant_args(), *stream_);
    case 1:
      TENON_TRY(collectives::all_reduce(*sum_mailbox_, partial, rows_of(sum_), *stream_));
      return rmsnorm::run(fused2_norm_, norm_args(false, true), *stream_);
    case 2: return fused::run(one_, fused_args(false), mailbox_->team(), *stream_);
    default: return fused::run(one_bf16_, fused_args(true), mailbox_->team(), *stream_);
  }
}

template <class T>
Result<std::vector<T>> fetch(Stream& stream, const Buffer& from) {
  std::vector<T> host(from.bytes() / sizeof(T));
  TENON_TRY(stream.copy(host.data(), from.data(), from.bytes()));
  TENON_TRY(stream.synchronize());
  return host;
}

// Byte for byte: residual, codes, scales, and the bf16 rows where the arm makes them.
Result<bool> Bench::matches_oracle(int arm) {
  if (expected_.residual.empty()) expected_ = testing::boundary_oracle(case_, inputs_);
  testing::BoundaryOutputs found;
  TENON_ASSIGN(found.residual, fetch<std::uint16_t>(*stream_, residual_));
  TENON_ASSIGN(found.codes, fetch<std::uint8_t>(*stream_, codes_));
  TENON_ASSIGN(found.scales, fetch<std::uint8_t>(*stream_, scales_));
  TENON_ASSIGN(found.norm, fetch<std::uint16_t>(*stream_, normed_));
  const bool makes_bf16 = arm == 0 || arm == 3;
  if (!makes_bf16) found.norm = expected_.norm;
  return testing::difference(case_, expected_, found).empty();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Everything that the rank threads share.
struct Meeting {
  explicit Meeting(int ranks) : gate(ranks), us(static_cast<std::size_t>(ranks)) {}
  std::barrier<> gate;
  std::vector<double> us;  // this repeat's time of each rank
  std::vector<Row> rows;   // written by rank 0
  std::vector<char> equal;
};

// Some calls of one arm, one after the other, as often as wanted.
class Calls {
 public:
  static Result<Calls> make(Bench& bench, int arm, int count, Stream& stream) {
    Calls calls(bench, arm, count, stream);
    if (is_host(stream.device().target)) return calls;
    TENON_TRY(Graph::begin(stream));
    const Status recorded = calls.enqueue();
    auto graph = Graph::end(stream);
    TENON_TRY(recorded);
    TENON_TRY(graph.status());
    calls.graph_.emplace(*std::move(graph));
    TENON_ASSIGN(Event begin, Event::create(stream.device()));
    TENON_ASSIGN(Event end, Event::create(stream.device()));
    calls.begin_.emplace(std::move(begin));
    calls.end_.emplace(std::move(end));
    return calls;
  }

  // Microseconds per call: on devices as their clock sees it, else from here to here.
  Result<double> run() {
    if (graph_) {
      TENON_TRY(begin_->record(*stream_));
      TENON_TRY(graph_->replay(*stream_));
      TENON_TRY(end_->record(*stream_));
      TENON_ASSIGN(const double passed, end_->us_since(*begin_));
      return passed / count_;
    }
    const auto begin = std::chrono::steady_clock::now();
    TENON_TRY(enqueue());
    TENON_TRY(stream_->synchronize());
    const std::chrono::duration<double, std::micro> passed =
        std::chrono::steady_clock::now() - begin;
    return passed.count() / count_;
  }

 private:
  Calls(Bench& bench, int arm, int count, Stream& stream)
      : bench_(&bench), arm_(arm), count_(count), stream_(&stream) {}
  Status enqueue() {
    for (int i = 0; i < count_; ++i) TENON_TRY(bench_->run_arm(arm_));
    return Status::ok();
  }

  Bench* bench_;
  int arm_, count_;
  Stream* stream_;
  std::optional<Graph> graph_;
  std::optional<Event> begin_, end_;
};

Status measure(const BoundaryBench& options, Bench& bench, Communicator& comm, Stream& stream,
               Meeting& meeting, Row& row) {
  const auto rank = static_cast<std::size_t>(comm.rank());
  for (int arm = 0; arm < kNumArms; ++arm) {
    TENON_TRY(bench.reset());
    TENON_TRY(bench.run_arm(arm));
    TENON_TRY(stream.synchronize());
    TENON_TRY(comm.health());
    TENON_ASSIGN(const bool equal, bench.matches_oracle(arm));
    std::int32_t agreed[1] = {equal ? 1 : 0};
    TENON_TRY(comm.agree_min(agreed));
    row.equal[arm] = agreed[0] == 1;
  }
  std::vector<Calls> calls;
  for (int arm = 0; arm < kNumArms; ++arm) {
    TENON_ASSIGN(Calls of_arm, Calls::make(bench, arm, options.iterations, stream));
    calls.push_back(std::move(of_arm));
  }
  std::vector<double> times[kNumArms];
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (int arm = 0; arm < kNumArms; ++arm) {  // interleaved: drift meets every arm alike
      for (int i = 0; i < options.warm_up; ++i) TENON_TRY(bench.run_arm(arm));
      TENON_TRY(stream.synchronize());
      meeting.gate.arrive_and_wait();
      TENON_ASSIGN(meeting.us[rank], calls[static_cast<std::size_t>(arm)].run());
      meeting.gate.arrive_and_wait();
      times[arm].push_back(*std::max_element(meeting.us.begin(), meeting.us.end()));
      meeting.gate.arrive_and_wait();
    }
    TENON_TRY(comm.health());
  }
  for (int arm = 0; arm < kNumArms; ++arm) row.us[arm] = median(times[arm]);
  return Status::ok();
}

Status run_rank(const BoundaryBench& options, const std::shared_ptr<Bootstrap>& bootstrap, int rank,
                Meeting& meeting) {
  CommOptions comm_options;
  comm_options.rank = rank;
  comm_options.size = options.tp;
  comm_options.bootstrap = bootstrap;
  TENON_ASSIGN(const Device device, nth_device(options.target, rank));
  TENON_ASSIGN(auto comm, Communicator::create(comm_options, device));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  const int max_rows = *std::max_element(options.rows.begin(), options.rows.end());
  for (const int hidden : options.hidden) {
    TENON_ASSIGN(
        Mailbox mailbox,
        comm->mailbox(fused::mailbox_bytes(max_rows, hidden, options.dtype, options.tp), "bench"));
    TENON_ASSIGN(Mailbox sum_mailbox,
                 comm->mailbox(collectives::all_reduce_mailbox_bytes(options.tp, kSumChunkBytes),
                               "bench all-reduce"));
    for (const int rows : options.rows) {
      const Shape shape{rows, hidden};
      TENON_ASSIGN(Bench bench, Bench::make(options, shape, *comm, mailbox, sum_mailbox, stream));
      Row row;
      row.shape = shape;
      row.variant = bench.variant();
      TENON_TRY(measure(options, bench, *comm, stream, meeting, row));
      if (rank != 0) continue;
      meeting.rows.push_back(row);
      if (isatty(STDERR_FILENO) != 0)
        std::fprintf(stderr, "\rbench boundary: %d × %d done   ", rows, hidden);
    }
  }
  return Status::ok();
}

std::string ratio(double slow, double fast) { return fixed(slow / fast, 2) + "x"; }

Table table_of(const BoundaryBench& options, const std::vector<Row>& rows) {
  Table table({"device", "ranks", "rows", "hidden", "variant", "split_us", "fused2_us", "fused1_us",
               "fused1bf16_us", "split/fused1", "split/fused2", "fused2/fused1bf16",
               "equals_oracle"});
  for (const Row& row : rows) {
    std::string equal;
    for (int arm = 0; arm < kNumArms; ++arm)
      if (!row.equal[arm]) equal += (equal.empty() ? "NOT " : " NOT ") + std::string(kArms[arm]);
    table.add({std::string(name(options.target)), std::to_string(options.tp),
               std::to_string(row.shape.rows), std::to_string(row.shape.hidden), row.variant,
               fixed(row.us[0], 2), fixed(row.us[1], 2), fixed(row.us[2], 2), fixed(row.us[3], 2),
               ratio(row.us[0], row.us[2]), ratio(row.us[0], row.us[1]),
               ratio(row.us[1], row.us[3]), equal.empty() ? "yes" : equal});
  }
  return table;
}

nlohmann::json json_of(const BoundaryBench& options, const std::vector<Row>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& row : rows) {
    nlohmann::json entry{{"rows", row.shape.rows},
                         {"hidden", row.shape.hidden},
                         {"variant", row.variant},
                         {"bytes_per_rank", std::int64_t{2} * row.shape.rows * row.shape.hidden}};
    for (int arm = 0; arm < kNumArms; ++arm) {
      entry[std::string(kArms[arm]) + "_us"] = row.us[arm];
      entry[std::string(kArms[arm]) + "_equals_oracle"] = row.equal[arm];
    }
    list.push_back(entry);
  }
  return {{"device", name(options.target)}, {"ranks", options.tp},
          {"dtype", name(options.dtype)},   {"iterations", options.iterations},
          {"repeats", options.repeats},     {"results", list}};
}

Status validate(const BoundaryBench& options) {
  const auto refuse = [](std::string why) {
    return Status::error(Code::kInvalidArgument, "bench boundary: " + std::move(why));
  };
  if (options.tp < 1 || options.tp > kMaxRanks)
    return refuse("--tp is " + std::to_string(options.tp) + "; accepted are 1 to 8");
  for (const int rows : options.rows)
    if (rows < 1 || rows > 8192)
      return refuse("--rows has " + std::to_string(rows) + "; accepted are 1 to 8192");
  for (const int hidden : options.hidden)
    if (hidden < kGroup || hidden > 16384 || hidden % kGroup != 0)
      return refuse("--hidden has " + std::to_string(hidden) +
                    "; accepted are multiples of 128 up to 16384");
  if (options.rows.empty() || options.hidden.empty()) return refuse("no shapes were given");
  if (options.iterations < 1 || options.repeats < 1) return refuse("nothing to repeat");
  return Status::ok();
}

}  // namespace

Status run(const BoundaryBench& options) {
  TENON_TRY(validate(options));
  Meeting meeting(options.tp);
  const auto bootstraps = local_bootstrap(options.tp);
  std::vector<Status> statuses(static_cast<std::size_t>(options.tp));
  std::vector<std::thread> threads;
  threads.reserve(statuses.size());
  for (int rank = 0; rank < options.tp; ++rank)
    threads.emplace_back([&, rank] {
      const auto at = static_cast<std::size_t>(rank);
      statuses[at] = guarded([&] { return run_rank(options, bootstraps[at], rank, meeting); });
      if (!statuses[at]) meeting.gate.arrive_and_drop();
    });
  for (std::thread& each : threads) each.join();
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%40s\r", "");
  for (Status& each : statuses) TENON_TRY(each);
  const Table table = table_of(options, meeting.rows);
  const std::string json = json_of(options, meeting.rows).dump(2) + "\n";
  std::fputs(options.json_to_stdout ? json.c_str() : table.text().c_str(), stdout);
  if (!options.csv_path.empty()) TENON_TRY(write_file(options.csv_path, table.csv()));
  if (!options.json_path.empty()) TENON_TRY(write_file(options.json_path, json));
  for (const Row& row : meeting.rows)
    for (const bool equal : row.equal)
      if (!equal)
        return Status::error(Code::kInternal, "bench boundary: an arm differs from the oracle");
  return Status::ok();
}

}  // namespace tenon::apps
