// Metrics as text, in the two formats that scrapers ask for. Pure.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/types/span.h"
#include "common/base/histogram.h"

namespace moebius {

enum class MetricsFormat {
  kPrometheus,   // text format 0.0.4
  kOpenMetrics,  // 1.0.0
};

// The Content-Type of each.
std::string_view MetricsContentType(MetricsFormat format);

// MetricsWriter
//
// A family is begun and its samples follow; a counter's name ends with
// "_total". The formats differ in three places: OpenMetrics names a counter's
// family without "_total", writes the bounds of buckets as floats, and ends
// with "# EOF". Bounds are floats in both, as Python's client, and so vLLM,
// writes them. Labels are escaped; names are ours.
class MetricsWriter {
 public:
  using Label = std::pair<std::string_view, std::string_view>;
  using Labels = std::initializer_list<Label>;

  explicit MetricsWriter(MetricsFormat format) : format_(format) {}

  // Of every sample that follows, in front of its own.
  void SetCommonLabels(Labels labels);

  void BeginGauge(std::string_view name, std::string_view help) {
    Begin(name, help, "gauge");
  }
  void BeginCounter(std::string_view name, std::string_view help) {
    Begin(name, help, "counter");
  }
  void BeginHistogram(std::string_view name, std::string_view help) {
    Begin(name, help, "histogram");
  }
  // A sample of the family begun last.
  void Add(double value, Labels labels = {}) { Sample("", labels, value); }
  void Add(const Histogram& histogram, Labels labels = {}) {
    Add(histogram, histogram.bounds(), labels);
  }
  // With the buckets of `bounds` alone, which are some of the histogram's.
  void Add(const Histogram& histogram, absl::Span<const double> bounds,
           Labels labels = {});

  // Families of one sample.
  void Gauge(std::string_view name, std::string_view help, double value);
  void Counter(std::string_view name, std::string_view help, double value);

  // The whole text; the writer is done.
  std::string Finish();

 private:
  void Begin(std::string_view name, std::string_view help,
             std::string_view type);
  void Sample(std::string_view suffix, Labels labels, double value,
              std::string_view bound = "");
  void AppendLabel(std::string_view name, std::string_view value);

  const MetricsFormat format_;
  std::string common_;  // as it is written
  std::string name_;
  std::string out_;
};

}  // namespace moebius
