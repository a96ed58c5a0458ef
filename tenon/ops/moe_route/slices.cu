// Variant slices of moe_route, for few tokens where waves have 32 lanes: several waves of a block
// share a token.
#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_route/moe_route.cuh"

namespace tenon::TENON_TARGET::moe_route {
namespace {

constexpr int kSlicesTokens = 8, kSlicesThreads = 512;  // at most

template <int kAtOnce>
TENON_KERNEL_MAX(kSlicesThreads)
slices_kernel(Route route) {
  TENON_DYNAMIC_SHARED(std::uint32_t, words);
  const ChoiceShape shape{route.tokens, route.experts, route.top_k};
  const ChoiceMemory memory =
      choice_memory(words, block_threads() / kWave, kAtOnce, route.tokens, route.top_k);
  route_together(route, [&](auto put) {
    choose_together<kAtOnce>(
        shape, memory, [&](int token, int expert) { return logit_at(route, token, expert); },
        [&](int token, int choice, int expert) { put(token, choice, code_of(route, expert)); });
    for (int pair = thread_id(); pair < route.tokens * route.top_k; pair += block_threads())
      route.weights[pair] = choice_weight(shape, memory, pair / route.top_k, pair % route.top_k);
  });
}

constexpr int kSlicesAtOnce = 4;  // tokens of a team, where there is more than one

int at_once(std::int64_t tokens) { return tokens == 1 ? 1 : kSlicesAtOnce; }

Status supports_slices(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t tokens = args.logits.shape[0], experts = args.logits.shape[1];
  if (tokens > kSlicesTokens)
    return Status::error(Code::kUnsupported,
                         std::to_string(tokens) + " tokens are over the limit of " +
                             std::to_string(kSlicesTokens) + "; more take a wave each");
  if (experts > kMostChoiceExperts || args.top_k > kMostChoices)
    return Status::error(Code::kUnsupported,
                         std::to_string(args.top_k) + " of " + std::to_string(experts) +
                             " experts; slices have up to " + std::to_string(kMostChoices) +
                             " of " + std::to_string(kMostChoiceExperts));
  LaunchShape shape;
  shape.threads = kChoiceSlices * kChoiceLanes;
  while (shape.threads < kSlicesThreads &&
         shape.threads * kSlicesAtOnce < tokens * kChoiceSlices * kChoiceLanes)
    shape.threads *= 2;
  shape.shared_bytes =
      4 * static_cast<std::size_t>(choice_words(shape.threads / kChoiceLanes, at_once(tokens),
                                                static_cast<int>(tokens), args.top_k));
  shape.early = where.may_start_early;
  recipe->launch("slices_kernel", shape);
  recipe->set("at once", at_once(tokens));
  return Status::ok();
}

Status launch_slices(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(
      stream, recipe.launches.front().shape,
      recipe.settings.front().value == 1 ? slices_kernel<1> : slices_kernel<kSlicesAtOnce>,
      route_of(args));
}

}  // namespace

TENON_DEFINE_VARIANT(slices, Args, supports_slices, launch_slices);

}  // namespace tenon::TENON_TARGET::moe_route
