#include "coordinator/status/metrics_writer.h"

#include <charconv>
#include <cmath>

namespace moebius {
namespace {

constexpr std::string_view kTotal = "_total";

// The shortest decimal that reads back as the same number.
void AppendNumber(double value, std::string* out) {
  if (!std::isfinite(value)) {
    out->append(std::isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
    return;
  }
  char text[40];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  out->append(text, end.ptr);
}

// A bucket's, as a float: "1.0".
std::string BoundText(double bound) {
  std::string text;
  AppendNumber(bound, &text);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

}  // namespace

std::string_view MetricsContentType(MetricsFormat format) {
  return format == MetricsFormat::kOpenMetrics
             ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
             : "text/plain; version=0.0.4; charset=utf-8";
}

void MetricsWriter::SetCommonLabels(Labels labels) {
  std::string text = std::move(out_);
  out_.clear();
  for (const auto& [name, value] : labels) AppendLabel(name, value);
  common_ = std::exchange(out_, std::move(text));
}

void MetricsWriter::Begin(std::string_view name, std::string_view help,
                          std::string_view type) {
  name_ = name;
  std::string_view family = name;
  if (format_ == MetricsFormat::kOpenMetrics && type == "counter") {
    family.remove_suffix(kTotal.size());
  }
  out_.append("# HELP ").append(family).append(" ").append(help);
  out_.append("\n# TYPE ").append(family).append(" ").append(type);
  out_ += '\n';
}

void MetricsWriter::AppendLabel(std::string_view name, std::string_view value) {
  out_.append(name).append("=\"");
  for (const char c : value) {
    if (c == '\n') {
      out_ += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out_ += '\\';
    out_ += c;
  }
  out_ += "\",";
}

void MetricsWriter::Sample(std::string_view suffix, Labels labels, double value,
                           std::string_view bound) {
  out_.append(name_).append(suffix);
  const size_t before = out_.size();
  out_ += '{';
  out_ += common_;
  for (const auto& [name, text] : labels) AppendLabel(name, text);
  if (!bound.empty()) AppendLabel("le", bound);
  if (out_.size() == before + 1) {
    out_.resize(before);
  } else {
    out_.back() = '}';  // in place of the last comma
  }
  out_ += ' ';
  AppendNumber(value, &out_);
  out_ += '\n';
}

void MetricsWriter::Add(const Histogram& histogram,
                        absl::Span<const double> bounds, Labels labels) {
  for (const double bound : bounds) {
    Sample("_bucket", labels, histogram.AtMost(bound), BoundText(bound));
  }
  Sample("_bucket", labels, histogram.count(), "+Inf");
  Sample("_count", labels, histogram.count());
  Sample("_sum", labels, histogram.sum());
}

void MetricsWriter::Gauge(std::string_view name, std::string_view help,
                          double value) {
  BeginGauge(name, help);
  Add(value);
}

void MetricsWriter::Counter(std::string_view name, std::string_view help,
                            double value) {
  BeginCounter(name, help);
  Add(value);
}

std::string MetricsWriter::Finish() {
  if (format_ == MetricsFormat::kOpenMetrics) out_ += "# EOF\n";
  return std::move(out_);
}

}  // namespace moebius
