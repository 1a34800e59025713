#include "coordinator/decisions/membership.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Result = absl::StatusOr<MembershipTransition>;

absl::Status CheckRank(Rank rank, int num_ranks) {
  if (rank >= 0 && rank < num_ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rank ", rank, " is not of a group of ", num_ranks));
}

uint64_t RoundOf(const MembershipState& state) {
  return std::visit([](const auto& s) { return s.round; }, state);
}

// One handler for each (state, event) pair; none is left to a default.
struct Handler {
  int num_ranks;
  int max_asked;

  template <typename State>
  static Result Unchanged(const State& state) {
    return MembershipTransition{state, {}};
  }
  // A new round, of all ranks.
  Result Begin(const MembershipState& state) const {
    const uint64_t round = RoundOf(state) + 1;
    const RankSet all = RankSet::All(num_ranks);
    return MembershipTransition{Halting{all, round, 1, {}},
                                {SendHalt{round, all}}};
  }

  // ---- Gathering
  Result operator()(const Gathering& s, const WorkerJoined& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    Gathering next = s;
    next.missing = s.missing.without(e.rank);
    return next.missing.empty() ? Begin(next) : Unchanged(next);
  }
  Result operator()(const Gathering& s, const WorkerLost& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (s.missing.contains(e.rank)) return Unchanged(s);
    Gathering next = s;
    next.missing = s.missing.with(e.rank);
    return MembershipTransition{next, {ReplaceWorkers{RankSet::Of(e.rank)}}};
  }
  Result operator()(const Gathering& s, const GroupInterrupted&) const {
    return Unchanged(s);
  }
  Result operator()(const Gathering& s, const WorkerHalted& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Gathering& s, const WorkerLoaded& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Gathering& s, const RoundExpired&) const {
    return Unchanged(s);
  }

  // ---- Halting
  Result operator()(const Halting& s, const WorkerJoined& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Begin(s);
  }
  Result operator()(const Halting& s, const WorkerLost& e) const {
    return Lose(s, e.rank);
  }
  Result operator()(const Halting& s, const GroupInterrupted&) const {
    return Unchanged(s);
  }
  Result operator()(const Halting& s, const WorkerHalted& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.round != s.round) return Unchanged(s);
    Halting next = s;
    next.unhalted = s.unhalted.without(e.rank);
    if (e.empty) next.empty = s.empty.with(e.rank);
    if (!next.unhalted.empty()) return Unchanged(next);
    if (next.empty.empty()) return Go(s.round);
    return MembershipTransition{Loading{next.empty, s.round},
                                {SendLoad{s.round, next.empty}}};
  }
  Result operator()(const Halting& s, const WorkerLoaded& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Halting& s, const RoundExpired& e) const {
    if (e.round != s.round) return Unchanged(s);
    if (s.asked < max_asked) {
      Halting next = s;
      ++next.asked;
      return MembershipTransition{next, {SendHalt{s.round, s.unhalted}}};
    }
    return MembershipTransition{Gathering{s.unhalted, s.round},
                                {ReplaceWorkers{s.unhalted}}};
  }

  // ---- Loading
  Result operator()(const Loading& s, const WorkerJoined& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Begin(s);
  }
  Result operator()(const Loading& s, const WorkerLost& e) const {
    return Lose(s, e.rank);
  }
  Result operator()(const Loading& s, const GroupInterrupted&) const {
    return Begin(s);
  }
  Result operator()(const Loading& s, const WorkerHalted& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Loading& s, const WorkerLoaded& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.round != s.round) return Unchanged(s);
    const Loading next{s.unloaded.without(e.rank), s.round};
    return next.unloaded.empty() ? Go(s.round) : Unchanged(next);
  }
  Result operator()(const Loading& s, const RoundExpired& e) const {
    if (e.round != s.round) return Unchanged(s);
    return MembershipTransition{Gathering{s.unloaded, s.round},
                                {ReplaceWorkers{s.unloaded}}};
  }

  // ---- Running
  Result operator()(const Running& s, const WorkerJoined& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Begin(s);
  }
  Result operator()(const Running& s, const WorkerLost& e) const {
    return Lose(s, e.rank);
  }
  Result operator()(const Running& s, const GroupInterrupted&) const {
    return Begin(s);
  }
  Result operator()(const Running& s, const WorkerHalted& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Running& s, const WorkerLoaded& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Unchanged(s);
  }
  Result operator()(const Running& s, const RoundExpired&) const {
    return Unchanged(s);
  }

  static Result Go(uint64_t round) {
    return MembershipTransition{Running{round}, {ResumeGroup{round}}};
  }
  Result Lose(const MembershipState& state, Rank rank) const {
    RETURN_IF_ERROR(CheckRank(rank, num_ranks));
    const RankSet lost = RankSet::Of(rank);
    return MembershipTransition{Gathering{lost, RoundOf(state)},
                                {ReplaceWorkers{lost}}};
  }
};

}  // namespace

absl::StatusOr<MembershipTransition> Next(const MembershipState& state,
                                          const MembershipEvent& event,
                                          int num_ranks, int max_asked) {
  return std::visit(Handler{num_ranks, max_asked}, state, event);
}

}  // namespace moebius
