// Bootstrap: how ranks find each other and exchange a few bytes on the host. Five functions, and a
// watch that tells at once when another rank gave up or died. Nothing here moves tensors.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

// How long a wait for other ranks may last.
struct WaitBudget {
  WaitBudget(std::chrono::milliseconds longest) : deadline(longest) {}
  // With a rank that is alive until `longest`, with one of which nothing is heard any more for
  // `quiet` only: for what takes a long time on some ranks. A process is heard of all the time,
  // whatever its threads do; ranks of one process are always alive.
  WaitBudget(std::chrono::milliseconds longest, std::chrono::milliseconds quiet)
      : deadline(longest), silence(quiet) {}
  std::chrono::milliseconds deadline;
  std::chrono::milliseconds silence{0};  // 0: no matter
};

class Bootstrap {
 public:
  virtual ~Bootstrap() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // all[r] = rank r's `mine`, in rank order. Collective: the same order of calls, number of bytes
  // and label everywhere, which is checked. Blocks at most the deadline; the error names the
  // awaited rank, the number of the call and the label. At most 16 MiB.
  virtual Status exchange(std::span<const std::byte> mine, std::span<std::byte> all,
                          std::string_view label, WaitBudget budget) = 0;
  // Collective: returns when every rank has called it.
  Status barrier(std::string_view label, WaitBudget budget);

  // Tells every rank to give up. Their exchanges end with kPeerLost and this text, now and later;
  // one that is in progress may do so even though every rank has joined it.
  virtual void abort(std::string_view why) = 0;

  // Since something was heard of that rank's process, which is heard of all the time, whatever its
  // threads do; 0 for ranks of this process. Any thread, at once.
  virtual std::chrono::milliseconds silence(int of_rank) const;

  // Another rank gave up or died: which one, and a sentence that names it.
  struct Loss {
    int rank = 0;
    std::string why;
  };
  std::optional<Loss> loss() const;

  // Calls `lost` once, from any thread, as soon as there is a loss; at once if there is one
  // already. It must not call back into this object, and throws nothing: there may be no memory.
  // The loss stays where it is as long as this object lives. No call is in progress after unwatch()
  // has returned.
  using Watcher = std::function<void(const Loss& loss)>;
  int watch(Watcher lost);
  void unwatch(int id);

  // Ok, or why nobody should wait any more: for failures that spread on other ways than this one.
  // Asked in every exchange that waits, again and again, on its thread. The same rules as for
  // watchers. An exchange ends with what it says.
  using Question = std::function<Status()>;
  int ask(Question given_up);
  void unask(int id);

 protected:
  // What the questions say now, and how often an exchange that waits looks.
  Status given_up() const;
  static constexpr std::chrono::milliseconds kLook{20};
  // Keeps the first loss and tells the watchers. Needs no memory.
  void report(Loss loss);

 private:
  mutable std::mutex mutex_;
  std::optional<Loss> loss_;
  std::map<int, Watcher> watchers_;
  std::map<int, Question> questions_;
  int next_id_ = 0;
};

// One handle per rank for ranks that are threads of this process. Destroying a handle means that
// the rank has left: an exchange that still awaits it ends with kPeerLost.
std::vector<std::shared_ptr<Bootstrap>> local_bootstrap(int size);

// What a launcher tells a process about itself.
struct Launch {
  int rank = 0, size = 1, local_rank = 0;
  std::string address = {};  // of rank 0: a host name or an IP address
  int port = 0;              // where rank 0 listens
  // What proves that a process is a rank of this job: the same on all ranks. Empty: whoever claims
  // to be a rank is believed.
  std::string secret = {};
  bool listen_all = false;  // rank 0 listens at every address of its host, not at `address`
  // Ok, or why rank 0 should not wait any more for ranks that have not connected. Asked while it
  // waits, again and again.
  std::function<Status()> given_up = {};
};

// Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; rank and size also from
// SLURM_PROCID, SLURM_NTASKS or OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE. The secret is
// TENON_SECRET, else the launcher's id of the job: TORCHELASTIC_RUN_ID, SLURM_JOB_ID or
// PMIX_NAMESPACE. The error names each variable that is missing, or the one that is malformed, what
// was found and what is accepted. `variable` returns null for what is not set.
Result<Launch> read_launch(const std::function<const char*(const char* name)>& variable);

// True when this process was started by a launcher: rank, size, address and port are all set.
// Where only some of torchrun's are, that is no launcher: says so in the log.
bool was_launched(const std::function<const char*(const char* name)>& variable);

// Number of this process among those of its host, which is the device it takes (nth_device): what
// the launcher says, or the rank where there is none.
int local_rank_or(int rank, const std::function<const char*(const char* name)>& variable);

// Ranks that are processes meet over TCP: rank 0 listens, the others call until the deadline.
// Collective. A process that dies is noticed when its connection closes.
Result<std::shared_ptr<Bootstrap>> socket_bootstrap(const Launch& launch,
                                                    std::chrono::milliseconds deadline);

// One status for all: ok if every rank brought ok, otherwise the first failure in rank order, with
// that rank's number in front. Collective.
Status agree(Bootstrap& bootstrap, const Status& mine, std::string_view label, WaitBudget budget);

// The same, but what the ranks brought apart from whether they could tell each other: only the
// latter leaves them out of step.
struct Agreement {
  Status exchanged, agreed;
};
Agreement exchange_votes(Bootstrap& bootstrap, const Status& mine, std::string_view label,
                         WaitBudget budget);

}  // namespace tenon
