#include "apps/explain.h"

#include "apps/rank_threads.h"
#include "apps/table.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"

namespace tenon::apps {
namespace {

// Every rank makes the boundaries, since that is collective.
Result<Explanation> plan_all(const BoundaryQuestion& question, int rank,
                             std::shared_ptr<Bootstrap> bootstrap) {
  CommOptions options;
  options.rank = rank;
  options.size = question.tp;
  options.bootstrap = std::move(bootstrap);
  TENON_ASSIGN(const Device device, nth_device(question.target, rank));
  TENON_ASSIGN(auto comm, Communicator::create(options, device));
  return explain_boundary(question.hidden, question.max_rows, *comm);
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
  TENON_ASSIGN(auto found, on_rank_threads<Explanation>(question.tp, [&](int rank) {
                 return plan_all(question, rank, bootstraps[static_cast<std::size_t>(rank)]);
               }));
  return std::move(found[0]);
}

std::string text_of(const BoundaryQuestion& question, const Explanation& found) {
  Table table({"outputs", "rows up to", "stage", "variant", "blocks x threads", "mailbox",
               "why not a more fused one"});
  for (const BoundaryUse& use : found.uses)
    table.add({use.site, std::to_string(use.max_rows), std::string(name(use.stage)), use.variant,
               std::to_string(use.blocks) + " x " + std::to_string(use.threads),
               mebibytes(use.mailbox_bytes),
               use.reason.empty() ? "it is the most fused" : use.reason});
  return "\nboundary of " + std::to_string(question.hidden) + " wide rows, " +
         std::to_string(question.tp) + " ranks on " + std::string(name(question.target)) + " (" +
         found.transport + ")\n" + table.text();
}

nlohmann::json json_of(const BoundaryQuestion& question, const Explanation& found) {
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
  return {{"hidden", question.hidden},
          {"ranks", question.tp},
          {"target", name(question.target)},
          {"transport", found.transport},
          {"buckets", list}};
}

}  // namespace tenon::apps
