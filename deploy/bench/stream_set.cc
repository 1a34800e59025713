#include "deploy/bench/stream_set.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace moebius {

StreamSet::StreamSet(EventLoop& loop, const Url& url,
                     const std::vector<nlohmann::json>& bodies,
                     CompletionOptions options, bool repeat)
    : repeat_(repeat) {
  for (const nlohmann::json& body : bodies) {
    streams_.push_back(std::make_unique<Stream>(loop, url, options));
    streams_.back()->body = body.dump();
  }
  for (const auto& stream : streams_) Begin(*stream);
}

void StreamSet::Begin(Stream& stream) {
  ++num_running_;
  stream.client.Begin(
      "/v1/completions", stream.body,
      [this, &stream] {
        ++stream.events;
        ++total_events_;
        stream.last_event = Clock::now();
      },
      [this, &stream](CompletionResult result) {
        --num_running_;
        if (!result.status.ok() && status_.ok()) status_ = result.status;
        stream.results.push_back(std::move(result));
        if (repeat_ && status_.ok()) Begin(stream);
      });
}

size_t StreamSet::min_events() const {
  size_t least = std::numeric_limits<size_t>::max();
  for (const auto& stream : streams_) least = std::min(least, stream->events);
  return streams_.empty() ? 0 : least;
}

bool StreamSet::AllHeardSince(Clock::time_point time) const {
  return std::all_of(streams_.begin(), streams_.end(), [&](const auto& s) {
    return s->last_event > time || !s->client.busy();
  });
}

double StreamSet::LongestGapMs(Clock::time_point begin,
                               Clock::time_point end) const {
  double longest = 0;
  const auto look_at = [&](const CompletionResult& result) {
    for (size_t i = 1; i < result.times.size(); ++i) {
      const Clock::time_point from = result.times[i - 1];
      const Clock::time_point to = result.times[i];
      if (to < begin || from > end) continue;
      longest = std::max(longest, MillisecondsBetween(from, to));
    }
  };
  for (const auto& stream : streams_) {
    for (const CompletionResult& result : stream->results) look_at(result);
    if (stream->client.busy()) look_at(stream->client.current());
  }
  return longest;
}

}  // namespace moebius
