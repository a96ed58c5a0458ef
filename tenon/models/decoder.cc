// The forward pass, and how it is put together: each rank alone, then all ranks together.
#include "tenon/models/decoder.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "tenon/boundary/boundary.h"
#include "tenon/core/guard.h"
#include "tenon/device/launch_timer.h"

namespace tenon {
namespace {

constexpr int kBlockTokens = 64;

// Rows of one step, at the addresses they have in every step.
struct StepRows {
  PartialRows partial;  // this rank's addend
  TensorView residual;
  NormedRows x;  // both forms; each boundary fills those that its consumer reads
  StepRows first(std::int64_t rows) const {
    return {{partial.addend.rows(0, rows)}, residual.rows(0, rows), first_rows(x, rows)};
  }
};

// A boundary, once for each stage policy, with the weight of its norm.
struct Site {
  std::vector<Boundary> arms;
  TensorView norm;
  NormedForms forms;

  Status run(const StepRows& rows, int arm, Stream& stream) {
    LaunchTimer::name_section("boundary");
    NormedRows out;
    if (forms.bf16) out.bf16 = rows.x.bf16;
    if (forms.fp8) out.fp8 = rows.x.fp8;
    return arms[static_cast<std::size_t>(arm)].run(rows.partial, rows.residual, norm, out, stream);
  }
};

struct Layer {
  Mixer mixer;
  Site after_mixer;
  Mlp mlp;
  Site after_mlp;
  std::string_view mixer_name, mlp_name;  // of their sections in a timed pass
};

// What a layer consists of before the ranks have agreed on its boundaries.
struct Parts {
  Mixer mixer;
  Mlp mlp;
  TensorView first_norm, second_norm;
};

class Decoder final : public Model {
 public:
  CacheLayout cache_layout() const override { return caches_; }
  int vocab_size() const override { return spec_.vocab_width * num_ranks_; }
  int num_ids() const override { return spec_.num_ids; }
  std::vector<std::int32_t> eos_ids() const override { return spec_.eos_ids; }
  std::int64_t weight_bytes() const override { return spec_.weight_bytes; }
  Result<StepOutput> forward(const StepView& step, CacheViews caches, Stream& stream) override;
  Result<LogitsShard> logits_of(const TensorView& rows, Stream& stream) override;
  std::vector<BoundaryUse> boundary_uses(const StepCounts& steps) const override;
  ModelMemory memory() const override;
  StepCost step_cost(const StepLoad& load) const override { return tenon::step_cost(spec_, load); }

  // This rank's part of the construction: scratch and plans. Not collective.
  Status prepare(DecoderSpec spec, const ModelOptions& options, const Communicator& comm,
                 Scratch& scratch);
  // The ranks' common part: every boundary.
  Status join(const ModelOptions& options, Communicator& comm);

 private:
  Status make_rows(Scratch& scratch);
  Status make_layer(const DecoderLayer& from, LayerContext& context, std::size_t first_cache);
  Status make_layers(LayerContext& context, int rank);
  Status check(const StepView& step, CacheViews caches) const;
  struct ArmOptions {
    const ModelOptions& model;
    StagePolicy policy;
    std::shared_ptr<BoundaryChannel> channel;
  };
  Status make_arm(const ArmOptions& options);
  Status make_site(std::size_t index, std::string_view kind, const TensorView& norm,
                   NormedForms forms, const ArmOptions& options);
  void list_uses();

  // Steps of an arm with more than `above` and at most `most` tokens run so many sites as the row
  // `use` of uses_ says.
  struct BucketSites {
    std::size_t use;
    int arm, above, most;
    std::uint64_t sites;
  };

  DecoderSpec spec_;
  int num_ranks_ = 1;
  CacheLayout caches_;
  int max_tokens_ = 0, max_sequences_ = 0, max_logits_ = 0;
  std::vector<Buffer> scratch_;
  std::int64_t boundary_bytes_ = 0;
  StepRows rows_;
  std::optional<Embedding> embedding_;
  std::vector<Parts> parts_;  // moved into layers_ by join()
  std::vector<Site> sites_;   // moved into layers_ by join()
  std::optional<Site> after_embedding_;
  std::vector<Layer> layers_;
  std::optional<Head> head_;
  std::vector<BoundaryUse> uses_;  // as boundary_uses() answers before any step
  std::vector<BucketSites> bucket_sites_;
};

Status in_range(std::string_view what, std::int64_t found, std::int64_t least, std::int64_t most) {
  if (found >= least && found <= most) [[likely]]
    return Status::ok();
  return Status::error(Code::kInvalidArgument, "forward: the number of " + std::string(what) +
                                                   " is " + std::to_string(found) +
                                                   "; accepted: " + std::to_string(least) + " to " +
                                                   std::to_string(most));
}

Result<StepOutput> Decoder::forward(const StepView& step, CacheViews caches, Stream& stream) {
  TENON_TRY(check(step, caches));
  const StepRows rows = rows_.first(step.shape.tokens);

  LaunchTimer::name_section("embedding");
  TENON_TRY(embedding_->run(step.token_ids, rows.partial, stream));
  TENON_TRY(after_embedding_->run(rows, step.shape.arm, stream));
  for (Layer& layer : layers_) {
    LaunchTimer::name_section(layer.mixer_name);
    TENON_TRY(layer.mixer.run(rows.x, step, caches, rows.partial, stream));
    TENON_TRY(layer.after_mixer.run(rows, step.shape.arm, stream));
    LaunchTimer::name_section(layer.mlp_name);
    TENON_TRY(layer.mlp.run(rows.x, rows.partial, stream));
    TENON_TRY(layer.after_mlp.run(rows, step.shape.arm, stream));
  }
  LaunchTimer::name_section("head");
  StepOutput output;
  TENON_ASSIGN(output.logits, head_->run(rows.x, step.logit_rows, stream));
  if (step.wants_hidden) output.hidden = rows.x.bf16;
  return output;
}

// The last boundary's rows stay until the next step.
Result<LogitsShard> Decoder::logits_of(const TensorView& rows, Stream& stream) {
  TENON_TRY(in_range("rows of logits", rows.shape[0], 1, max_logits_));
  return head_->run(rows_.x, rows, stream);
}

Status Decoder::check(const StepView& step, CacheViews caches) const {
  const auto num_caches = static_cast<std::int64_t>(caches_.caches.size());
  TENON_TRY(in_range("tokens", step.shape.tokens, 1, max_tokens_));
  TENON_TRY(in_range("sequences", step.shape.sequences, 1, max_sequences_));
  TENON_TRY(in_range("rows of logits", step.shape.logits, 0, max_logits_));
  const auto num_arms = static_cast<std::int64_t>(after_embedding_->arms.size());
  TENON_TRY(in_range("the arm", step.shape.arm, 0, num_arms - 1));
  return in_range("caches", static_cast<std::int64_t>(caches.size()), num_caches, num_caches);
}

// A step runs every site once, in the bucket of its rows, recorded or not.
std::vector<BoundaryUse> Decoder::boundary_uses(const StepCounts& steps) const {
  std::vector<BoundaryUse> all = uses_;
  for (const BucketSites& each : bucket_sites_)
    all[each.use].count += each.sites * steps.between(each.above, each.most, each.arm);
  return all;
}

// What is the same of every answer of boundary_uses(): a row for each site's kind, bucket, stage
// and variant, and which steps count for it how often.
void Decoder::list_uses() {
  const auto add_bucket = [&](BoundaryUse use, int above, int arm) {
    use.count = 0;
    const auto same = std::find_if(uses_.begin(), uses_.end(), [&](const BoundaryUse& other) {
      return other.site == use.site && other.max_rows == use.max_rows && other.stage == use.stage &&
             other.variant == use.variant;
    });
    const auto at = static_cast<std::size_t>(same - uses_.begin());
    const int most = use.max_rows;
    if (same == uses_.end()) uses_.push_back(std::move(use));
    for (BucketSites& known : bucket_sites_)
      if (known.use == at && known.arm == arm && known.above == above) {
        ++known.sites;
        return;
      }
    bucket_sites_.push_back({.use = at, .arm = arm, .above = above, .most = most, .sites = 1});
  };
  const auto add = [&](const Site& site) {
    for (std::size_t arm = 0; arm < site.arms.size(); ++arm) {
      int above = 0;  // rows of the bucket before
      for (BoundaryUse& use : site.arms[arm].uses()) {
        const int most = use.max_rows;
        add_bucket(std::move(use), above, static_cast<int>(arm));
        above = most;
      }
    }
  };
  add(*after_embedding_);
  for (const Layer& layer : layers_) {
    add(layer.after_mixer);
    add(layer.after_mlp);
  }
}

std::int64_t bytes_of(const std::vector<Buffer>& memory) {
  std::int64_t bytes = 0;
  for (const Buffer& each : memory) bytes += static_cast<std::int64_t>(each.bytes());
  return bytes;
}

ModelMemory Decoder::memory() const {
  return {bytes_of(spec_.memory), bytes_of(scratch_), boundary_bytes_};
}

// --- construction ---------------------------------------------------------------------------

Status Decoder::make_rows(Scratch& scratch) {
  const std::int64_t hidden = spec_.hidden;
  TENON_ASSIGN(rows_.partial.addend, scratch.rows("partial", DType::kBF16, hidden));
  TENON_ASSIGN(rows_.residual, scratch.rows("residual", DType::kBF16, hidden));
  TENON_ASSIGN(rows_.x.bf16, scratch.rows("normed", DType::kBF16, hidden));
  if (hidden % 128 != 0) return Status::ok();  // no fp8 weight can read such rows
  TENON_ASSIGN(rows_.x.fp8, scratch.codes("normed", max_tokens_, hidden));
  return Status::ok();
}

std::vector<CacheSpec> cache_specs(const DecoderLayer& layer) {
  if (const auto* attention = std::get_if<AttentionSpec>(&layer.mixer))
    return cache_specs(*attention, kBlockTokens);
  return cache_specs(std::get<DeltaNetSpec>(layer.mixer));
}

Status Decoder::make_layer(const DecoderLayer& from, LayerContext& context,
                           std::size_t first_cache) {
  std::optional<Mixer> mixer;
  if (const auto* spec = std::get_if<AttentionSpec>(&from.mixer)) {
    TENON_ASSIGN(Attention attention, Attention::make(*spec, context));
    mixer.emplace(std::move(attention), first_cache);
  } else {
    TENON_ASSIGN(DeltaNet delta_net, DeltaNet::make(std::get<DeltaNetSpec>(from.mixer), context));
    mixer.emplace(std::move(delta_net), first_cache);
  }
  std::optional<Mlp> mlp;
  if (const auto* spec = std::get_if<ExpertsSpec>(&from.mlp)) {
    TENON_ASSIGN(Experts experts, Experts::make(*spec, context));
    mlp.emplace(std::move(experts));
  } else {
    TENON_ASSIGN(Dense dense,
                 Dense::make("mlp", std::get<DenseSpec>(from.mlp), context.partial, context));
    mlp.emplace(std::move(dense));
  }
  parts_.push_back({*std::move(mixer), *std::move(mlp), from.first_norm, from.second_norm});
  return Status::ok();
}

Status Decoder::make_layers(LayerContext& context, int rank) {
  const std::int32_t vocab_begin = rank * spec_.vocab_width;
  TENON_ASSIGN(embedding_, Embedding::make(spec_.embedding, vocab_begin, context));
  std::size_t first_cache = 0;
  for (const DecoderLayer& from : spec_.layers) {
    TENON_TRY(make_layer(from, context, first_cache));
    first_cache += cache_specs(from).size();
  }
  TENON_ASSIGN(head_, Head::make(spec_.head, vocab_begin, spec_.vocab_width, context));
  return Status::ok();
}

Status Decoder::prepare(DecoderSpec spec, const ModelOptions& options, const Communicator& comm,
                        Scratch& scratch) {
  if (spec.layers.empty())
    return Status::error(Code::kInternal, "the decoder has no layers; accepted: 1 and more");
  spec_ = std::move(spec);
  num_ranks_ = comm.size();
  max_tokens_ = options.max_tokens_per_step;
  max_sequences_ = options.max_sequences;
  max_logits_ = options.max_logits > 0 ? options.max_logits : options.max_sequences;
  caches_ = tenon::cache_layout(spec_);

  TENON_TRY(make_rows(scratch));
  TENON_ASSIGN(const PlanContext where, plan_context(comm));
  LayerContext context{.scratch = scratch,
                       .where = where,
                       .x = rows_.x,
                       .partial = rows_.partial.addend,
                       .max_sequences = max_sequences_,
                       .max_blocks = (options.max_context + kBlockTokens - 1) / kBlockTokens,
                       .max_logits = max_logits_,
                       .block_tokens = kBlockTokens};
  TENON_TRY(make_layers(context, comm.rank()));
  scratch_ = scratch.take_buffers();
  return Status::ok();
}

// Adds the boundary of one more arm to site number `index`, which the first arm makes.
Status Decoder::make_site(std::size_t index, std::string_view kind, const TensorView& norm,
                          NormedForms forms, const ArmOptions& options) {
  BoundarySpec spec;
  spec.site = kind;
  spec.hidden = spec_.hidden;
  spec.max_rows = max_tokens_;
  spec.weight_dtype = norm.dtype;
  spec.eps = spec_.eps;
  spec.offset = spec_.norm_offset;
  spec.fresh_residual = index == 0;
  spec.want_bf16 = forms.bf16;
  spec.want_fp8 = forms.fp8;
  spec.force_stage = policy_of_site(options.policy, index);
  spec.max_stage = options.model.max_stage;
  spec.force_variant = options.model.force_variant;
  if (index == sites_.size()) sites_.push_back({{}, norm, forms});
  TENON_ASSIGN(Boundary boundary, Boundary::make(spec, options.channel));
  sites_[index].arms.push_back(std::move(boundary));
  return Status::ok();
}

Status Decoder::make_arm(const ArmOptions& options) {
  const Parts& first = parts_.front();
  TENON_TRY(make_site(0, "embedding", first.first_norm, first.mixer.forms(), options));
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Parts* next = i + 1 < parts_.size() ? &parts_[i + 1] : nullptr;
    const std::size_t at = 2 * i + 1;
    TENON_TRY(make_site(at, "mixer", parts_[i].second_norm, parts_[i].mlp.forms(), options));
    TENON_TRY(
        next != nullptr
            ? make_site(at + 1, "mlp", next->first_norm, next->mixer.forms(), options)
            : make_site(at + 1, "final", spec_.final_norm, {.bf16 = true, .fp8 = false}, options));
  }
  return Status::ok();
}

// One for each arm.
std::vector<StagePolicy> policies_of(const ModelOptions& options) {
  std::vector<StagePolicy> policies;
  policies.reserve(1 + options.more_stages.size());
  policies.push_back(options.force_stage);
  for (const StagePolicy each : options.more_stages) policies.push_back(each);
  return policies;
}

BoundaryChannel::Spec channel_spec(int hidden, int max_rows, StagePolicy policy) {
  BoundaryChannel::Spec spec;
  spec.hidden = hidden;
  spec.max_rows = max_rows;
  spec.label = "model";
  spec.sharded_residual = policy != StagePolicy::kMixed;
  return spec;
}

Status Decoder::join(const ModelOptions& options, Communicator& comm) {
  for (const StagePolicy policy : policies_of(options)) {
    TENON_ASSIGN(auto channel,
                 BoundaryChannel::make(channel_spec(spec_.hidden, max_tokens_, policy), comm));
    boundary_bytes_ += channel->bytes();
    TENON_TRY(make_arm({options, policy, std::move(channel)}));
  }

  after_embedding_.emplace(std::move(sites_[0]));
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const DecoderLayer& from = spec_.layers[i];
    const bool attends = std::holds_alternative<AttentionSpec>(from.mixer);
    const bool routes = std::holds_alternative<ExpertsSpec>(from.mlp);
    layers_.push_back({std::move(parts_[i].mixer), std::move(sites_[2 * i + 1]),
                       std::move(parts_[i].mlp), std::move(sites_[2 * i + 2]),
                       attends ? "attention" : "delta net", routes ? "experts" : "mlp"});
  }
  parts_.clear();
  sites_.clear();
  list_uses();
  return Status::ok();
}

// The construction as far as one rank does it alone, without memory.
Result<ModelPlan> plan_decoder(DecoderFiles& files, const ModelOptions& options,
                               const Communicator& comm) {
  ModelPlan plan;
  TENON_ASSIGN(DecoderSpec spec, files.count(options, comm.device()));
  plan.memory.weights = spec.weight_bytes;
  for (const StagePolicy policy : policies_of(options)) {
    const auto wanted = channel_spec(spec.hidden, options.max_tokens_per_step, policy);
    TENON_ASSIGN(const std::int64_t bytes, BoundaryChannel::count_bytes(wanted, comm));
    plan.memory.boundaries += bytes;
  }
  Decoder decoder;
  Scratch scratch(comm.device(), options.max_tokens_per_step);
  TENON_TRY(decoder.prepare(std::move(spec), options, comm, scratch));
  plan.memory.scratch = scratch.bytes();
  plan.caches = decoder.cache_layout();
  plan.vocab_size = decoder.vocab_size();
  return plan;
}

Status check_options(const ModelOptions& options) {
  if (options.max_logits < 0)
    return Status::error(Code::kInvalidArgument, "max_logits is " +
                                                     std::to_string(options.max_logits) +
                                                     "; accepted: 0 (one per sequence) and more");
  const std::array<std::pair<const char*, int>, 3> sizes{
      {{"max_tokens_per_step", options.max_tokens_per_step},
       {"max_sequences", options.max_sequences},
       {"max_context", options.max_context}}};
  for (const auto& [name, value] : sizes)
    if (value < 1)
      return Status::error(
          Code::kInvalidArgument,
          std::string(name) + " is " + std::to_string(value) + "; accepted: 1 and more");
  const auto check_policy = [](const char* option, StagePolicy found) {
    if (found <= StagePolicy::kMixed) return Status::ok();
    return Status::error(Code::kInvalidArgument, std::string(option) + " is " +
                                                     std::to_string(static_cast<int>(found)) +
                                                     "; accepted: 0 (free), 1, 2, 3, or 4 (mixed)");
  };
  for (const StagePolicy each : options.more_stages)
    TENON_TRY(check_policy("one of more_stages", each));
  return check_policy("force_stage", options.force_stage);
}

}  // namespace

CacheLayout cache_layout(const DecoderSpec& spec) {
  CacheLayout layout;
  layout.block_tokens = kBlockTokens;
  for (std::size_t i = 0; i < spec.layers.size(); ++i)
    for (CacheSpec& each : cache_specs(spec.layers[i])) {
      each.name.insert(0, "layer " + std::to_string(i) + " ");
      layout.caches.push_back(std::move(each));
    }
  return layout;
}

Result<std::unique_ptr<Model>> open_decoder(DecoderFiles& files, const std::string& directory,
                                            const ModelOptions& options, Communicator& comm,
                                            Stream& stream) {
  // A rank that fails alone must not leave the others waiting in the collective part.
  const auto seen = guarded([&]() -> Result<Facts> {
    TENON_TRY(check_options(options));
    return files.look(options, comm);
  });
  const Facts none;
  TENON_TRY(agree_on_facts(seen.status(), seen ? *seen : none, comm, "checkpoint"),
            "load " + directory);
  if (options.planned) {
    const auto plan = guarded([&] { return plan_decoder(files, options, comm); });
    TENON_TRY(comm.agree_after_load(plan.status(), "plan"), "load " + directory);
    TENON_TRY(options.planned(*plan), "load " + directory);
  }
  auto decoder = std::make_unique<Decoder>();
  const Status mine = guarded([&]() -> Status {
    TENON_ASSIGN(DecoderSpec spec, files.load(options, stream));
    Scratch scratch(stream, options.max_tokens_per_step);
    return decoder->prepare(std::move(spec), options, comm, scratch);
  });
  TENON_TRY(comm.agree_after_load(mine, "load"), "load " + directory);
  TENON_TRY(decoder->join(options, comm), "load " + directory);
  return std::unique_ptr<Model>(std::move(decoder));
}

}  // namespace tenon
