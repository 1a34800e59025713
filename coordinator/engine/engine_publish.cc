// EngineHost's snapshot, for status and metrics.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/layout/kv_room.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {

void EngineHost::PublishKv() {
  std::array<uint32_t, kMaxRanks> total{}, free{};
  const int num_ranks = group_.num_ranks();
  for (Rank r = 0; r < num_ranks; ++r) {
    total[r] = scheduler_->num_pages(r);
    free[r] = scheduler_->free_pages(r);
    status_.workers[r].pages_free = free[r];
  }
  const AttentionShape shape = Attention();
  const auto tokens = [&](const auto& pages, Layout layout) {
    return KvRoomTokens(shape, layout,
                        absl::MakeConstSpan(pages).first(num_ranks));
  };
  const Layout now = scheduler_->layout();
  const uint64_t all = tokens(total, now), free_now = tokens(free, now);
  const auto copies = [&shape](Layout layout) {
    return std::max(1, layout.tp_size / shape.num_kv_heads);
  };
  status_.kv.assign(1, {now, all, free_now, copies(now)});
  for (const Layout other : policy_->config().candidates) {
    if (other == now) continue;
    const uint64_t there = tokens(total, other);
    status_.kv.push_back(
        {other, there, there - std::min(there, all - free_now), copies(other)});
  }
}

void EngineHost::PublishSwitches(Clock::time_point now) {
  status_.switch_state = switches_->state_name();
  status_.switches_total = switches_->num_done();
  status_.switches_checked_total = switches_->num_checked();
  status_.switches_refused_total = switches_->num_refused();
  status_.last_switch = switches_->last();
  status_.totals.switches = switches_->totals();
  status_.switch_under_way = switches_->under_way();
  status_.recent_switches = switches_->recent();
  status_.load = policy_->smoothed_load();
  const PolicyOutlook outlook = policy_->OutlookAt(now, scheduler_->layout());
  const PolicyConfig& config = policy_->config();
  status_.policy = {.automatic = policy_->automatic(),
                    .wants = outlook.wants,
                    .dwell_left_ms = outlook.dwell_left_ms};
  for (size_t i = 0; i < config.thresholds.size(); ++i) {
    status_.policy.edges.push_back(
        {config.candidates[i], config.candidates[i + 1], UpperEdge(config, i),
         LowerEdge(config, i)});
  }
}

void EngineHost::Publish() {
  if (scheduler_.has_value()) {
    const SchedulerCounters counters = scheduler_->counters();
    status_.layout = scheduler_->layout();
    status_.running = counters.running;
    status_.waiting = counters.waiting;
    status_.prompt_tokens_total = counters.prompt_tokens;
    status_.preemptions_total = counters.preemptions;
    status_.dropped_tokens_total = counters.dropped_tokens;
    const Clock::time_point now = Now();
    status_.ended_recently = ended_.Count(now);
    status_.steps_per_s = steps_.PerSecond(now);
    status_.tokens_per_s = tokens_.PerSecond(now);
    PublishSwitches(now);
    PublishKv();
  }
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    status_.workers[r].connected = group_.member(r).joined;
  }
  if (options_.journal != nullptr) {
    const Journal& journal = *options_.journal;
    status_.journal_trouble = journal.healthy() ? "" : journal.trouble();
    status_.journal_bytes = journal.size_bytes();
  }
  if (std::exchange(operations_changed_, false)) {
    status_.operations = std::make_shared<const std::vector<KnownOperation>>(
        options_.journal->state().operations());
  }
  ++status_.version;
  absl::MutexLock lock(&mutex_);
  published_ = status_;
  if (published_.ready && !published_.journal_trouble.empty()) {
    published_.ready = false;
    published_.not_ready_reason = absl::StrCat(
        "the journal cannot be written: ", published_.journal_trouble);
  }
  queued_ = static_cast<int>(status_.waiting);
  for (const Submission& submission : inbox_.submissions) {
    queued_ += static_cast<int>(submission.generations.size());
  }
}

}  // namespace moebius
