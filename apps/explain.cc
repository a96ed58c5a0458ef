#include "apps/explain.h"

#include <algorithm>

#include "apps/rank_threads.h"
#include "apps/table.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/layers/boundary.h"

namespace tenon::apps {
namespace {

struct Site {
  const char* outputs;
  bool fp8, bf16;
};
constexpr Site kSites[] = {{"fp8", true, false}, {"fp8+bf16", true, true}, {"bf16", false, true}};

// What one rank found: the plans of all sites, and through what the ranks would talk.
struct Answer {
  std::vector<std::vector<BoundaryUse>> uses;
  std::string transport;
};

// A channel for each site, so that nothing forces them to be alike.
Result<std::vector<BoundaryUse>> plan_site(const BoundaryQuestion& question, const Site& site,
                                           Communicator& comm) {
  BoundaryChannel::Spec channel_spec;
  channel_spec.hidden = question.hidden;
  channel_spec.max_rows = question.max_rows;
  TENON_ASSIGN(auto channel, BoundaryChannel::make(channel_spec, comm));
  BoundarySpec spec;
  spec.site = site.outputs;
  spec.hidden = question.hidden;
  spec.max_rows = question.max_rows;
  spec.want_fp8 = site.fp8;
  spec.want_bf16 = site.bf16;
  TENON_ASSIGN(const Boundary boundary, Boundary::make(spec, channel));
  return boundary.uses();
}

// Every rank makes the boundaries, since that is collective; rank 0's answer is everybody's.
Result<Answer> plan_all(const BoundaryQuestion& question, int rank,
                        std::shared_ptr<Bootstrap> bootstrap) {
  CommOptions options;
  options.rank = rank;
  options.size = question.tp;
  options.bootstrap = std::move(bootstrap);
  TENON_ASSIGN(const Device device, nth_device(question.target, rank));
  TENON_ASSIGN(auto comm, Communicator::create(options, device));
  Answer answer;
  answer.transport = comm->transport();
  for (const Site& site : kSites) {
    TENON_ASSIGN(auto uses, plan_site(question, site, *comm));
    answer.uses.push_back(std::move(uses));
  }
  return answer;
}

std::string mebibytes(std::size_t bytes) {
  return bytes == 0 ? "-" : fixed(static_cast<double>(bytes) / (1 << 20), 2) + " MiB";
}

}  // namespace

Result<Explanation> explain(const BoundaryQuestion& question) {
  if (question.tp < 1 || question.tp > kMaxRanks)
    return Status::error(Code::kInvalidArgument,
                         "env: --tp is " + std::to_string(question.tp) + "; accepted are 1 to 8");
  const auto bootstraps = local_bootstrap(question.tp);
  TENON_ASSIGN(const std::vector<Answer> found, on_rank_threads<Answer>(question.tp, [&](int rank) {
                 return plan_all(question, rank, bootstraps[static_cast<std::size_t>(rank)]);
               }));
  Explanation out{question, found[0].transport, {}};
  for (const auto& site : found[0].uses) out.uses.insert(out.uses.end(), site.begin(), site.end());
  return out;
}

std::string text_of(const Explanation& found) {
  Table table({"outputs", "rows up to", "stage", "variant", "blocks x threads", "mailbox",
               "why not a more fused one"});
  for (const BoundaryUse& use : found.uses)
    table.add({use.site, std::to_string(use.max_rows), std::string(name(use.stage)), use.variant,
               std::to_string(use.blocks) + " x " + std::to_string(use.threads),
               mebibytes(use.mailbox_bytes),
               use.reason.empty() ? "it is the most fused" : use.reason});
  return "\nboundary of " + std::to_string(found.question.hidden) + " wide rows, " +
         std::to_string(found.question.tp) + " ranks on " +
         std::string(name(found.question.target)) + " (" + found.transport + ")\n" + table.text();
}

nlohmann::json json_of(const Explanation& found) {
  nlohmann::json list = nlohmann::json::array();
  for (const BoundaryUse& use : found.uses)
    list.push_back({{"outputs", use.site},
                    {"rows", use.max_rows},
                    {"stage", static_cast<int>(use.stage)},
                    {"variant", use.variant},
                    {"blocks", use.blocks},
                    {"threads", use.threads},
                    {"mailbox_bytes", use.mailbox_bytes},
                    {"reason", use.reason}});
  return {{"hidden", found.question.hidden},
          {"ranks", found.question.tp},
          {"target", name(found.question.target)},
          {"transport", found.transport},
          {"buckets", list}};
}

}  // namespace tenon::apps
