#include "common/layout/kv_plan.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// A page that must come from another rank, and the place in the new tables that
// waits for its new id.
struct PendingMove {
  PageId src_page = 0;
  uint32_t request = 0;
  uint32_t table = 0;
  uint32_t entry = 0;
};

// First-in first-out list of the moves of one (destination, source) pair.
struct MoveQueue {
  std::vector<PendingMove> moves;
  size_t next = 0;
  size_t size() const { return moves.size() - next; }
};

// Where a rank's pages of a head come from: tables beside one another, of ranks
// that take turns.
struct Feed {
  const RankTable* sources = nullptr;
  int num_sources = 0;
  int column = 0;  // of the head in each
  uint32_t* turn = nullptr;
};

using RankCounts = std::array<int64_t, kMaxRanks>;

class Planner {
 public:
  Planner(const AttentionShape& shape, Layout from, Layout to,
          absl::Span<const KvTable> requests,
          const std::vector<std::vector<PageId>>& free_pages)
      : shape_(shape),
        n_(shape.num_ranks),
        from_(from),
        to_(to),
        requests_(requests),
        free_(free_pages) {
    CHECK(static_cast<int>(free_pages.size()) == n_);
    uint32_t highest = 0;
    for (const KvTable& request : requests_) {
      CHECK(static_cast<int>(request.tables.size()) == from_.tp_size);
      const Rank first = from_.first_rank(OldGroupOf(request));
      for (Rank r = 0; r < from_.tp_size; ++r) {
        const RankTable& table = request.tables[r];
        CHECK(table.rank == first + r && table.rank < n_);
        CHECK(table.pages.size() == size_t(request.num_blocks) * table.num_kv);
        held_[table.rank] += static_cast<int64_t>(table.pages.size());
        for (const PageId page : table.pages) highest = std::max(highest, page);
      }
    }
    stride_ = size_t{highest} + 1;
    readers_.assign(stride_ * n_, 0);
    stays_.assign(stride_ * n_, false);
    plan_.tables.reserve(requests_.size());
  }

  // Chooses groups and sources.
  absl::Status PlanMoves(absl::Span<const int64_t> kv_tokens);
  absl::Status PlanWaves();
  KvPlan Take() { return std::move(plan_); }

 private:
  // Readers a source page still has.
  uint16_t& ReadersOf(Rank rank, PageId page) {
    return readers_[size_t(rank) * stride_ + page];
  }
  // The entry's new page is a copy of (src_rank, src_page), or that very page
  // when it is on the rank already.
  void Place(Rank src_rank, PageId src_page, Rank dst_rank, uint32_t request,
             uint32_t table, uint32_t entry);
  int OldGroupOf(const KvTable& request) const {
    return from_.group_of(request.tables[0].rank);
  }
  // New groups [first, last] with ranks of a request's old one.
  std::pair<int, int> NewGroupsOf(const KvTable& request) const {
    const Rank first = from_.first_rank(OldGroupOf(request));
    return {to_.group_of(first), to_.group_of(first + from_.tp_size - 1)};
  }
  // Requests by their turn to choose: those without a choice first.
  std::vector<uint32_t> TurnsToChoose(
      absl::Span<const int64_t> kv_tokens) const;
  absl::StatusOr<std::vector<int>> ChooseGroups(
      absl::Span<const int64_t> kv_tokens) const;
  void AddTables(const KvTable& from, int group);
  void PlanMovesOf(uint32_t request);
  void FindFeeds(uint32_t request);
  void ReleaseUnread();
  absl::Status CheckFinalCounts() const;
  void FillWave(std::vector<PageMove>& wave);
  int64_t Shortage(Rank rank) const {
    return pending_[rank] - static_cast<int64_t>(free_[rank].size());
  }

  const AttentionShape shape_;
  const int n_;
  const Layout from_;
  const Layout to_;
  const absl::Span<const KvTable> requests_;
  std::vector<std::vector<PageId>> free_;  // [rank], a stack
  RankCounts held_{};     // pages of all requests before the switch
  RankCounts kept_{};     // of those, pages that stay in use where they are
  RankCounts pending_{};  // moves into the rank still to be planned
  size_t stride_ = 0;
  std::vector<uint16_t> readers_;  // [rank][page]
  std::vector<bool> stays_;        // [rank][page]
  // [old group][head]: whose turn it is to send a block.
  std::vector<uint32_t> turns_;
  std::vector<Feed> feeds_;  // of the request in hand: [new rank][head]
  std::array<std::array<MoveQueue, kMaxRanks>, kMaxRanks> queues_;  // dst, src
  KvPlan plan_;
};

void Planner::Place(Rank src_rank, PageId src_page, Rank dst_rank,
                    uint32_t request, uint32_t table, uint32_t entry) {
  if (src_rank == dst_rank) {
    plan_.tables[request].tables[table].pages[entry] = src_page;
    stays_[size_t(src_rank) * stride_ + src_page] = true;
    ++kept_[src_rank];
    return;
  }
  ++ReadersOf(src_rank, src_page);
  ++pending_[dst_rank];
  queues_[dst_rank][src_rank].moves.push_back(
      {src_page, request, table, entry});
}

std::vector<uint32_t> Planner::TurnsToChoose(
    absl::Span<const int64_t> kv_tokens) const {
  std::vector<uint32_t> order, choosers;
  order.reserve(requests_.size());
  for (uint32_t q = 0; q < requests_.size(); ++q) {
    const auto [first, last] = NewGroupsOf(requests_[q]);
    (first == last ? order : choosers).push_back(q);
  }
  std::stable_sort(
      choosers.begin(), choosers.end(),
      [&](uint32_t a, uint32_t b) { return kv_tokens[a] > kv_tokens[b]; });
  order.insert(order.end(), choosers.begin(), choosers.end());
  return order;
}

absl::StatusOr<std::vector<int>> Planner::ChooseGroups(
    absl::Span<const int64_t> kv_tokens) const {
  const int64_t heads = HeadsOf(shape_, to_, 0).num_kv();
  const int num_groups = to_.num_groups(n_);
  // Head pages that the poorest rank of each group has. All pages of the
  // requests are given back by the switch.
  RankCounts room{}, tokens{}, count{};
  for (int group = 0; group < num_groups; ++group) {
    room[group] = std::numeric_limits<int64_t>::max();
    for (Rank r = to_.first_rank(group); r < to_.first_rank(group + 1); ++r) {
      room[group] = std::min(room[group],
                             static_cast<int64_t>(free_[r].size()) + held_[r]);
    }
  }
  std::vector<int> groups(requests_.size(), 0);
  for (const uint32_t q : TurnsToChoose(kv_tokens)) {
    const int64_t need = requests_[q].num_blocks * heads;
    const auto [first, last] = NewGroupsOf(requests_[q]);
    // Whether one without a choice has room, CheckFinalCounts() says.
    int best = first == last ? first : -1;
    for (int g = first; g <= last && first != last; ++g) {
      if (room[g] < need) continue;
      if (best < 0 || std::pair(tokens[g], count[g]) <
                          std::pair(tokens[best], count[best])) {
        best = g;
      }
    }
    if (best < 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the KV cache does not fit in ", std::string(LayoutName(to_, n_)),
          ": a request of ", requests_[q].num_blocks, " blocks needs ", need,
          " head pages on each of ", to_.tp_size, " ranks and where it can go ",
          "the roomiest have ",
          std::max(int64_t{0}, *std::max_element(room.begin() + first,
                                                 room.begin() + last + 1)),
          " left"));
    }
    room[best] -= need;
    tokens[best] += kv_tokens[q];
    ++count[best];
    groups[q] = best;
  }
  return groups;
}

void Planner::AddTables(const KvTable& from, int group) {
  KvTable& table = plan_.tables.emplace_back();
  table.slot = from.slot;
  table.num_blocks = from.num_blocks;
  for (Rank r = to_.first_rank(group); r < to_.first_rank(group + 1); ++r) {
    const HeadRange heads = HeadsOf(shape_, to_, r);
    RankTable& t = table.tables.emplace_back();
    t.rank = r;
    t.kv_begin = heads.kv_begin;
    t.num_kv = heads.num_kv();
    t.pages.assign(size_t(from.num_blocks) * t.num_kv, kNoPage);
  }
}

void Planner::FindFeeds(uint32_t request) {
  const KvTable& from = requests_[request];
  const int group = OldGroupOf(from);
  const int replicas = std::max(1, from_.tp_size / shape_.num_kv_heads);
  const int heads_of_rank = from.tables[0].num_kv;
  feeds_.clear();
  for (const RankTable& t : plan_.tables[request].tables) {
    for (int h = t.kv_begin; h < t.kv_begin + t.num_kv; ++h) {
      // Parts [first, first + replicas) of the old group hold the head.
      const int first = h * replicas / heads_of_rank;
      const int own = t.rank - from_.first_rank(group);
      Feed& feed = feeds_.emplace_back();
      feed.sources = &from.tables[first];
      feed.num_sources = replicas;
      if (own >= first && own < first + replicas) {
        feed.sources = &from.tables[own];
        feed.num_sources = 1;
      }
      feed.column = h - feed.sources->kv_begin;
      CHECK(feed.column >= 0 && feed.column < feed.sources->num_kv);
      feed.turn = &turns_[group * shape_.num_kv_heads + h];
    }
  }
}

// Block by block over all ranks, so that the readers of a replicated head come
// close together and its page is free early.
void Planner::PlanMovesOf(uint32_t request) {
  FindFeeds(request);
  const KvTable& to = plan_.tables[request];
  for (int block = 0; block < to.num_blocks; ++block) {
    size_t next = 0;
    for (uint32_t i = 0; i < to.tables.size(); ++i) {
      const RankTable& t = to.tables[i];
      for (int h = 0; h < t.num_kv; ++h) {
        const Feed& feed = feeds_[next++];
        const RankTable& s =
            feed.num_sources == 1
                ? *feed.sources
                : feed.sources[(*feed.turn)++ % feed.num_sources];
        Place(s.rank, s.pages[size_t(block) * s.num_kv + feed.column], t.rank,
              request, i, static_cast<uint32_t>(block * t.num_kv + h));
      }
    }
  }
}

absl::Status Planner::PlanMoves(absl::Span<const int64_t> kv_tokens) {
  turns_.assign(size_t(from_.num_groups(n_)) * shape_.num_kv_heads, 0);
  ASSIGN_OR_RETURN(const std::vector<int> groups, ChooseGroups(kv_tokens));
  for (uint32_t q = 0; q < requests_.size(); ++q) {
    AddTables(requests_[q], groups[q]);
    PlanMovesOf(q);
  }
  return absl::OkStatus();
}

// Replicas that nobody reads are free from the start, below the pages that
// were free before: those are taken first.
void Planner::ReleaseUnread() {
  std::vector<std::vector<PageId>> unread(n_);
  for (const KvTable& request : requests_) {
    for (const RankTable& table : request.tables) {
      for (const PageId page : table.pages) {
        if (ReadersOf(table.rank, page) == 0 &&
            !stays_[size_t(table.rank) * stride_ + page]) {
          unread[table.rank].push_back(page);
        }
      }
    }
  }
  for (Rank r = 0; r < n_; ++r) {
    free_[r].insert(free_[r].begin(), unread[r].begin(), unread[r].end());
  }
}

absl::Status Planner::CheckFinalCounts() const {
  for (Rank r = 0; r < n_; ++r) {
    // Read before ReleaseUnread has moved anything: free + held is the room.
    const int64_t room = static_cast<int64_t>(free_[r].size()) + held_[r];
    const int64_t need = kept_[r] + pending_[r];
    if (need > room) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the KV cache does not fit in ", std::string(LayoutName(to_, n_)),
          ": rank ", r, " would hold ", need, " head pages and has room for ",
          room));
    }
  }
  return absl::OkStatus();
}

// Takes as many moves as there are free destinations. Sources on ranks that
// are short of pages go first: their pages are what the next wave needs.
void Planner::FillWave(std::vector<PageMove>& wave) {
  std::array<Rank, kMaxRanks> by_need{};
  for (Rank r = 0; r < n_; ++r) by_need[r] = r;
  RankCounts shortage{};
  for (Rank r = 0; r < n_; ++r) shortage[r] = Shortage(r);
  std::stable_sort(by_need.begin(), by_need.begin() + n_,
                   [&](Rank a, Rank b) { return shortage[a] > shortage[b]; });
  for (Rank dst = 0; dst < n_; ++dst) {
    for (int i = 0; i < n_ && !free_[dst].empty(); ++i) {
      const Rank src = by_need[i];
      MoveQueue& queue = queues_[dst][src];
      while (queue.size() > 0 && !free_[dst].empty()) {
        const PendingMove& move = queue.moves[queue.next++];
        const PageId page = free_[dst].back();
        free_[dst].pop_back();
        --pending_[dst];
        plan_.tables[move.request].tables[move.table].pages[move.entry] = page;
        wave.push_back({src, move.src_page, dst, page});
      }
    }
  }
}

absl::Status Planner::PlanWaves() {
  if (absl::Status status = CheckFinalCounts(); !status.ok()) return status;
  ReleaseUnread();
  int64_t left = 0;
  for (Rank r = 0; r < n_; ++r) left += pending_[r];
  const int64_t total = left;
  while (left > 0) {
    if (static_cast<int>(plan_.waves.size()) == kMaxKvWaves) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "too few free head pages to switch to ",
          std::string(LayoutName(to_, n_)), ": after ", kMaxKvWaves, " waves ",
          left, " of ", total, " pages would still have to move"));
    }
    std::vector<PageMove> wave;
    FillWave(wave);
    if (wave.empty()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no free head page where one is needed to switch to ",
                       std::string(LayoutName(to_, n_)), ": ", left, " of ",
                       total, " pages cannot be moved"));
    }
    left -= static_cast<int64_t>(wave.size());
    // Free for the next wave, once the last reader is served.
    for (const PageMove& move : wave) {
      if (--ReadersOf(move.src_rank, move.src_page) == 0 &&
          !stays_[size_t(move.src_rank) * stride_ + move.src_page]) {
        free_[move.src_rank].push_back(move.src_page);
      }
    }
    plan_.waves.push_back(std::move(wave));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<KvPlan> PlanKv(
    const AttentionShape& shape, Layout from, Layout to,
    absl::Span<const KvTable> requests, absl::Span<const int64_t> kv_tokens,
    const std::vector<std::vector<PageId>>& free_pages) {
  CHECK(static_cast<int>(free_pages.size()) == shape.num_ranks);
  CHECK(HeadsDivide(shape, from));
  CHECK(HeadsDivide(shape, to));
  CHECK(kv_tokens.size() == requests.size());
  if (from == to) {
    KvPlan plan;
    plan.tables.assign(requests.begin(), requests.end());
    return plan;
  }
  Planner planner(shape, from, to, requests, free_pages);
  RETURN_IF_ERROR(planner.PlanMoves(kv_tokens));
  RETURN_IF_ERROR(planner.PlanWaves());
  return planner.Take();
}

}  // namespace moebius
