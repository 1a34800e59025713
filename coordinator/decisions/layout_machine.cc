#include "coordinator/decisions/layout_machine.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Result = absl::StatusOr<Transition>;

absl::Status CheckRank(Rank rank, int num_ranks) {
  if (rank >= 0 && rank < num_ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rank ", rank, " is not of a group of ", num_ranks));
}

absl::Status Impossible(absl::string_view what, Epoch epoch,
                        absl::string_view state) {
  return absl::FailedPreconditionError(
      absl::StrCat(what, " of epoch ", epoch.value, " while ", state));
}

template <typename State>
Result Unchanged(const State& state) {
  return Transition{state, {}};
}

Result BackToSteady(const Preparing& state, std::string reason) {
  return Transition{
      Steady{state.from, state.epoch},
      {SendAbort{state.epoch}, Refused{state.epoch, std::move(reason)}}};
}

// One handler for each (state, event) pair; none is left to a default.
struct Handler {
  StepId next_unissued;
  int num_ranks;

  // ---- Steady: every epoch up to `proposed` is over.
  static Result Over(const Steady& s, Epoch epoch, absl::string_view what) {
    if (epoch > s.proposed) return Impossible(what, epoch, "steady");
    return Unchanged(s);
  }
  Result operator()(const Steady& s, const Requested& e) const {
    if (!e.target.divides(num_ranks)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a group of ", num_ranks,
                       " ranks has no layout with tp_size ", e.target.tp_size));
    }
    if (e.target == s.layout) return Transition{s, {NothingToDo{s.layout}}};
    const Epoch epoch = s.proposed.next();
    return Transition{
        Preparing{s.layout, e.target, epoch, RankSet::All(num_ranks)},
        {SendPrepare{epoch, e.target}}};
  }
  Result operator()(const Steady& s, const PlanRefused& e) const {
    return Over(s, e.epoch, "a refused plan");
  }
  Result operator()(const Steady& s, const PreparedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Over(s, e.epoch, "PREPARED");
  }
  Result operator()(const Steady& s, const RefusedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Over(s, e.epoch, "a refusal");
  }
  Result operator()(const Steady& s, const PrepareExpired& e) const {
    return Over(s, e.epoch, "a timer");
  }
  Result operator()(const Steady& s, const SwitchedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Over(s, e.epoch, "SWITCHED");
  }
  Result operator()(const Steady& s, const SwitchExpired& e) const {
    return Over(s, e.epoch, "a timer");
  }
  Result operator()(const Steady& s, const GroupHalts&) const {
    return Unchanged(s);
  }

  // ---- Preparing
  Result operator()(const Preparing& s, const Requested&) const {
    return Transition{s, {Busy{s.epoch}}};
  }
  Result operator()(const Preparing& s, const PlanRefused& e) const {
    if (e.epoch < s.epoch) return Unchanged(s);
    if (e.epoch > s.epoch || s.unprepared != RankSet::All(num_ranks)) {
      return Impossible("a refused plan", e.epoch, "preparing");
    }
    // PREPARE was never sent, so there is nothing to abort.
    return Transition{Steady{s.from, s.epoch}, {Refused{s.epoch, e.reason}}};
  }
  Result operator()(const Preparing& s, const PreparedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.epoch < s.epoch) return Unchanged(s);
    if (e.epoch > s.epoch) return Impossible("PREPARED", e.epoch, "preparing");
    Preparing next = s;
    next.unprepared = s.unprepared.without(e.rank);
    if (!next.unprepared.empty()) return Unchanged(next);
    return Transition{Committing{s.from, s.target, s.epoch, next_unissued,
                                 RankSet::All(num_ranks)},
                      {LogDecision{s.epoch, s.target, next_unissued},
                       SendCommit{s.epoch, next_unissued}}};
  }
  Result operator()(const Preparing& s, const RefusedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.epoch < s.epoch) return Unchanged(s);
    // A rank that said yes is bound by it.
    if (e.epoch > s.epoch || !s.unprepared.contains(e.rank)) {
      return Impossible("a refusal", e.epoch, "preparing");
    }
    return BackToSteady(s, absl::StrCat("rank ", e.rank, ": ", e.reason));
  }
  Result operator()(const Preparing& s, const PrepareExpired& e) const {
    if (e.epoch < s.epoch) return Unchanged(s);
    if (e.epoch > s.epoch) return Impossible("a timer", e.epoch, "preparing");
    std::string silent;
    for (Rank r = 0; r < num_ranks; ++r) {
      if (s.unprepared.contains(r)) absl::StrAppend(&silent, " ", r);
    }
    return BackToSteady(
        s, absl::StrCat("no answer to PREPARE in time from rank", silent));
  }
  Result operator()(const Preparing& s, const SwitchedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.epoch < s.epoch) return Unchanged(s);
    return Impossible("SWITCHED", e.epoch, "preparing");
  }
  Result operator()(const Preparing& s, const SwitchExpired& e) const {
    if (e.epoch < s.epoch) return Unchanged(s);
    return Impossible("a switch timer", e.epoch, "preparing");
  }
  Result operator()(const Preparing& s, const GroupHalts&) const {
    // Halted workers forget what they have prepared: nothing is to be sent.
    return Transition{
        Steady{s.from, s.epoch},
        {Refused{s.epoch, "the group was halted while it prepared"}}};
  }

  // ---- Committing: only SWITCHED leads on.
  static Result Late(const Committing& s, Epoch epoch, absl::string_view what) {
    if (epoch > s.epoch) return Impossible(what, epoch, "committing");
    return Unchanged(s);
  }
  Result operator()(const Committing& s, const Requested&) const {
    return Transition{s, {Busy{s.epoch}}};
  }
  Result operator()(const Committing& s, const PlanRefused& e) const {
    if (e.epoch < s.epoch) return Unchanged(s);
    return Impossible("a refused plan", e.epoch, "committing");
  }
  Result operator()(const Committing& s, const PreparedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    return Late(s, e.epoch, "PREPARED");
  }
  Result operator()(const Committing& s, const RefusedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.epoch < s.epoch) return Unchanged(s);
    return Impossible("a refusal", e.epoch, "committing");
  }
  Result operator()(const Committing& s, const PrepareExpired& e) const {
    return Late(s, e.epoch, "a timer");
  }
  Result operator()(const Committing& s, const SwitchedBy& e) const {
    RETURN_IF_ERROR(CheckRank(e.rank, num_ranks));
    if (e.epoch < s.epoch) return Unchanged(s);
    if (e.epoch > s.epoch) return Impossible("SWITCHED", e.epoch, "committing");
    Committing next = s;
    next.unswitched = s.unswitched.without(e.rank);
    if (!next.unswitched.empty()) return Unchanged(next);
    return Transition{Steady{s.target, s.epoch}, {Done{s.epoch, s.target}}};
  }
  Result operator()(const Committing& s, const SwitchExpired& e) const {
    if (e.epoch < s.epoch) return Unchanged(s);
    if (e.epoch > s.epoch) return Impossible("a timer", e.epoch, "committing");
    return Transition{s, {ReportStalled{s.epoch, s.unswitched}}};
  }
  Result operator()(const Committing& s, const GroupHalts&) const {
    Committing next = s;
    next.unswitched = RankSet::All(num_ranks);
    return Unchanged(next);
  }
};

}  // namespace

absl::StatusOr<Transition> Next(const LayoutState& state,
                                const LayoutEvent& event, StepId next_unissued,
                                int num_ranks) {
  return std::visit(Handler{next_unissued, num_ranks}, state, event);
}

Layout LayoutOf(const LayoutState& state) {
  if (const auto* steady = std::get_if<Steady>(&state)) return steady->layout;
  if (const auto* preparing = std::get_if<Preparing>(&state)) {
    return preparing->from;
  }
  return std::get<Committing>(state).target;
}

}  // namespace moebius
