// What every bootstrap shares (barrier, losses and their watchers, agreement on a status) and the
// in-process one. Not here: TCP and the environment (bootstrap/socket.cc).
#include "tenon/comm/bootstrap/bootstrap.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <limits>

#include "tenon/comm/messages.h"

namespace tenon {

Status Bootstrap::barrier(std::string_view label, WaitBudget budget) {
  return exchange({}, {}, label, budget);
}

std::chrono::milliseconds Bootstrap::silence(int) const { return std::chrono::milliseconds(0); }

std::optional<Bootstrap::Loss> Bootstrap::loss() const {
  std::lock_guard lock(mutex_);
  return loss_;
}

int Bootstrap::watch(Watcher lost) {
  std::lock_guard lock(mutex_);
  if (loss_) lost(*loss_);
  watchers_.emplace(next_id_, std::move(lost));
  return next_id_++;
}

void Bootstrap::unwatch(int id) {
  std::lock_guard lock(mutex_);
  watchers_.erase(id);
}

int Bootstrap::ask(Question given_up) {
  std::lock_guard lock(mutex_);
  questions_.emplace(next_id_, std::move(given_up));
  return next_id_++;
}

void Bootstrap::unask(int id) {
  std::lock_guard lock(mutex_);
  questions_.erase(id);
}

Status Bootstrap::given_up() const {
  std::lock_guard lock(mutex_);
  for (const auto& [id, question] : questions_) TENON_TRY(question());
  return Status::ok();
}

void Bootstrap::report(Loss loss) {
  std::lock_guard lock(mutex_);
  if (loss_) return;
  loss_ = std::move(loss);
  for (const auto& [id, watcher] : watchers_) watcher(*loss_);
}

Agreement exchange_votes(Bootstrap& bootstrap, const Status& mine, std::string_view label,
                         WaitBudget budget) {
  struct Vote {
    Code code;
    char text[400];
  };
  Vote vote{};
  vote.code = mine.code();
  copy_text(mine.message(), vote.text);
  std::vector<Vote> votes(static_cast<std::size_t>(bootstrap.size()));
  Status exchanged =
      bootstrap.exchange(bytes_of(vote), std::as_writable_bytes(std::span(votes)), label, budget);
  if (!exchanged) return {exchanged, Status::ok()};
  for (std::size_t rank = 0; rank < votes.size(); ++rank) {
    if (votes[rank].code == Code::kOk) continue;
    return {Status::ok(), Status::error(votes[rank].code,
                                        "rank " + std::to_string(rank) + ": " + votes[rank].text)};
  }
  return {};
}

Status agree(Bootstrap& bootstrap, const Status& mine, std::string_view label, WaitBudget budget) {
  const Agreement votes = exchange_votes(bootstrap, mine, label, budget);
  return votes.exchanged ? votes.agreed : votes.exchanged;
}

namespace {

// What one rank brought to one call.
struct Post {
  std::vector<std::byte> bytes;
  std::string label;
};

using Posts = std::vector<std::optional<Post>>;  // by rank

class LocalBootstrap;

// Shared by the handles of all ranks.
struct LocalTeam {
  explicit LocalTeam(int num_ranks)
      : size(num_ranks),
        members(static_cast<std::size_t>(num_ranks)),
        num_ended(static_cast<std::size_t>(num_ranks)) {}

  // Forgets the calls that nobody will read any more: every rank has ended them, well or badly, or
  // has left.
  void forget_ended() {
    rounds.erase(rounds.begin(),
                 rounds.lower_bound(*std::min_element(num_ended.begin(), num_ended.end())));
  }

  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, Posts> rounds;  // by number of the call
  std::vector<LocalBootstrap*> members;   // null once the rank has left
  std::vector<std::uint64_t> num_ended;   // calls of each rank; the largest number: it has left
};

class LocalBootstrap final : public Bootstrap {
 public:
  LocalBootstrap(std::shared_ptr<LocalTeam> team, int rank) : team_(std::move(team)), rank_(rank) {
    team_->members[static_cast<std::size_t>(rank)] = this;
  }
  ~LocalBootstrap() override {
    std::lock_guard lock(team_->mutex);
    team_->members[static_cast<std::size_t>(rank_)] = nullptr;
    team_->num_ended[static_cast<std::size_t>(rank_)] = std::numeric_limits<std::uint64_t>::max();
    team_->forget_ended();
    team_->changed.notify_all();
  }
  int rank() const override { return rank_; }
  int size() const override { return team_->size; }

  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  WaitBudget budget) override {
    TENON_CHECK(all.size() == mine.size() * static_cast<std::size_t>(size()));
    std::unique_lock lock(team_->mutex);
    const Status status = exchange_locked(lock, mine, all, label, budget.deadline);
    ++team_->num_ended[static_cast<std::size_t>(rank_)];
    team_->forget_ended();
    return status;
  }

  void abort(std::string_view why) override {
    const Loss mine{rank_, gave_up_text(rank_, why)};
    std::lock_guard lock(team_->mutex);
    for (LocalBootstrap* member : team_->members)
      if (member != nullptr) member->report(mine);
    team_->changed.notify_all();
  }

 private:
  // `lock` holds the team's mutex, but for the waits.
  Status exchange_locked(std::unique_lock<std::mutex>& lock, std::span<const std::byte> mine,
                         std::span<std::byte> all, std::string_view label,
                         std::chrono::milliseconds deadline) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + deadline;
    const std::uint64_t call = team_->num_ended[static_cast<std::size_t>(rank_)];
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, std::string(label) + ": " + lost->why);
    Posts& posts = team_->rounds[call];
    posts.resize(static_cast<std::size_t>(size()));
    posts[static_cast<std::size_t>(rank_)] = Post{{mine.begin(), mine.end()}, std::string(label)};
    team_->changed.notify_all();
    for (int peer = 0; peer < size(); ++peer) {
      const auto& post = posts[static_cast<std::size_t>(peer)];
      while (!post) {
        if (const auto lost = loss())
          return Status::error(Code::kPeerLost, sentence(peer, call, label) + ": " + lost->why);
        if (team_->members[static_cast<std::size_t>(peer)] == nullptr)
          return Status::error(Code::kPeerLost, sentence(peer, call, label) + ", which has left");
        if (Clock::now() >= end)
          return Status::error(Code::kTimeout, sentence(peer, call, label) + " for " +
                                                   seconds_text(deadline) + ": deadline");
        if (team_->changed.wait_until(lock, std::min(end, Clock::now() + kLook)) ==
            std::cv_status::no_timeout)
          continue;
        lock.unlock();  // an answer may take its time, and needs nothing that this lock guards
        const Status given = given_up();
        lock.lock();
        if (!given && !post) return Status(given).with(sentence(peer, call, label));
      }
      if (post->label != label || post->bytes.size() != mine.size())
        return different_call(rank_, label, mine.size(), peer, post->label, post->bytes.size(),
                              call);
      if (!mine.empty())
        std::memcpy(all.data() + mine.size() * static_cast<std::size_t>(peer), post->bytes.data(),
                    mine.size());
    }
    return Status::ok();
  }

  std::string sentence(int peer, std::uint64_t call, std::string_view label) const {
    return waited_text(rank_, peer, call, label);
  }

  const std::shared_ptr<LocalTeam> team_;
  const int rank_;
};

}  // namespace

std::vector<std::shared_ptr<Bootstrap>> local_bootstrap(int size) {
  auto team = std::make_shared<LocalTeam>(size);
  std::vector<std::shared_ptr<Bootstrap>> handles;
  handles.reserve(static_cast<std::size_t>(size));
  for (int rank = 0; rank < size; ++rank)
    handles.push_back(std::make_shared<LocalBootstrap>(team, rank));
  return handles;
}

}  // namespace tenon
