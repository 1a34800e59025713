// Completions that stream side by side while something is done to the group.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "deploy/client/completion_stream.h"
#include "deploy/client/event_loop.h"

namespace moebius {

// StreamSet
//
// Threading: the loop's thread.
class StreamSet {
 public:
  // Begins a stream for each body. `repeat`: as one ends, it begins again,
  // until Finish().
  StreamSet(EventLoop& loop, const Url& url,
            const std::vector<nlohmann::json>& bodies,
            CompletionOptions options, bool repeat);

  // Begins no more; those under way go on.
  void Finish() { repeat_ = false; }

  bool done() const { return num_running_ == 0; }
  // Output events so far: of the stream that has the fewest, and of all.
  size_t min_events() const;
  size_t total_events() const { return total_events_; }
  // Each stream has had an event since this moment (or has ended).
  bool AllHeardSince(Clock::time_point time) const;

  // First error of a stream.
  const absl::Status& status() const { return status_; }

  // Ended completions of a stream, in order.
  const std::vector<CompletionResult>& results(size_t stream) const {
    return streams_[stream]->results;
  }
  size_t size() const { return streams_.size(); }

  // The longest wait between two events of one completion that overlaps the
  // time from `begin` to `end`, in milliseconds. Of one under way, as far as it
  // has come.
  double LongestGapMs(Clock::time_point begin, Clock::time_point end) const;
  // The longest of all.
  double LongestGapMs() const {
    return LongestGapMs(Clock::time_point::min(), Clock::time_point::max());
  }

 private:
  struct Stream {
    Stream(EventLoop& loop, const Url& url, CompletionOptions options)
        : client(loop, url, options) {}
    CompletionStream client;
    std::string body;
    size_t events = 0;
    Clock::time_point last_event;
    std::vector<CompletionResult> results;
  };
  void Begin(Stream& stream);

  std::vector<std::unique_ptr<Stream>> streams_;
  bool repeat_;
  size_t num_running_ = 0;
  size_t total_events_ = 0;
  absl::Status status_;
};

}  // namespace moebius
