#include "coordinator/bench/throughput_bench.h"

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxSpecificationBytes = 1 << 20;
constexpr int kMaxCases = 1000;
constexpr int kMaxRepeat = 1000;
constexpr int kMaxTimeLimitSeconds = 86400;

absl::Status TimeIsOver() {
  return absl::DeadlineExceededError("the time is over, nothing was measured");
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(path, kMaxSpecificationBytes));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object() || !json.contains("cases") ||
      !json["cases"].is_array() || json["cases"].size() > kMaxCases) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": not a specification {\"cases\": [...], \"repeat\": n}"));
  }
  return json;
}

absl::StatusOr<int> ReadCount(const Json& json, const char* key, int fallback,
                              int most) {
  if (!json.contains(key)) return fallback;
  const Json& value = json[key];
  if (!value.is_number_integer() || value < 1 || value > most) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": allowed is a whole number from 1 to ", most));
  }
  return value.get<int>();
}

}  // namespace

void ThroughputBench::Ready() {
  absl::MutexLock lock(&mutex_);
  ready_ = true;
}

void ThroughputBench::Fail(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  failed_ = std::move(status);
}

void ThroughputBench::OnOutputs(const std::vector<Output>& outputs) {
  const auto now = Clock::now();
  absl::MutexLock lock(&mutex_);
  for (const Output& output : outputs) {
    const int count = static_cast<int>(output.tokens.size());
    if (waiting_for_first_ == 0) tokens_after_first_ += count;
    if (count > 0 && started_.try_emplace(output.request, true).second) {
      --waiting_for_first_;
      if (waiting_for_first_ == 0) all_first_ = now;
    }
    if (output.finish.has_value()) {
      if (*output.finish != FinishReason::kLength) {
        failed_ = absl::InternalError("a stream ended early");
      }
      --unfinished_;
    }
  }
  last_ = now;
}

absl::Status ThroughputBench::SwitchTo(EngineHost& engine,
                                       const std::string& layout) {
  if (layout != "ep" && layout != "tp") {
    return absl::InvalidArgumentError("layout: allowed is ep or tp");
  }
  // The answer may come when we have given up.
  struct Answer {
    absl::Mutex mutex;
    bool came ABSL_GUARDED_BY(mutex) = false;
    absl::Status status ABSL_GUARDED_BY(mutex);
  };
  const auto answer = std::make_shared<Answer>();
  engine.SetLayout(layout == "ep" ? LayoutChoice::kEp : LayoutChoice::kTp,
                   [answer](absl::StatusOr<SwitchReport> report) {
                     absl::MutexLock lock(&answer->mutex);
                     answer->came = true;
                     answer->status = report.status();
                   });
  absl::MutexLock lock(&answer->mutex);
  if (!answer->mutex.AwaitWithTimeout(absl::Condition(&answer->came),
                                      deadline_.left())) {
    return TimeIsOver();
  }
  return answer->status;
}

nlohmann::ordered_json ThroughputBench::ResultOf(
    const nlohmann::ordered_json& spec, const Case& one,
    const std::vector<Figures>& runs) {
  std::vector<double> decode, prefill;
  for (const Figures& figures : runs) {
    decode.push_back(figures.decode_per_s);
    prefill.push_back(figures.prefill_per_s);
  }
  Json result = spec;
  result["layout"] = one.layout;
  result["runs"] = runs.size();
  result["decode_tokens_per_s"] = Median(decode);
  result["prefill_tokens_per_s"] = Median(prefill);
  result["step_ms_median"] =
      one.output_tokens < 2 ? 0.0 : 1000.0 * one.streams / Median(decode);
  return result;
}

absl::StatusOr<ThroughputBench::Figures> ThroughputBench::RunOnce(
    EngineHost& engine, const Case& one) {
  std::vector<Generation> generations(one.streams);
  std::mt19937 random(one.streams);
  for (Generation& generation : generations) {
    generation.prompt.resize(one.prompt_tokens);
    for (int32_t& token : generation.prompt) {
      token = static_cast<int32_t>(random() % vocab_size_);
    }
    generation.sampling.temperature = 0;
    generation.stop.ignore_eos = true;
    generation.stop.max_tokens = one.output_tokens;
  }
  {
    absl::MutexLock lock(&mutex_);
    started_.clear();
    waiting_for_first_ = unfinished_ = one.streams;
    tokens_after_first_ = 0;
  }
  const auto begin = Clock::now();
  RETURN_IF_ERROR(engine.Submit(std::move(generations), "").status());
  absl::MutexLock lock(&mutex_);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return unfinished_ == 0 || !failed_.ok();
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&over), deadline_.left())) {
    return TimeIsOver();
  }
  RETURN_IF_ERROR(failed_);
  const auto seconds = [](Clock::duration d) {
    return std::max(1e-9, std::chrono::duration<double>(d).count());
  };
  Figures figures;
  figures.prefill_per_s =
      double{1} * one.streams * one.prompt_tokens / seconds(all_first_ - begin);
  figures.decode_per_s = tokens_after_first_ / seconds(last_ - all_first_);
  return figures;
}

absl::Status ThroughputBench::WaitUntilReady() {
  absl::MutexLock lock(&mutex_);
  const auto up = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ready_ || !failed_.ok();
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&up), deadline_.left())) {
    return TimeIsOver();
  }
  return failed_;
}

// One warm-up that does not count, then `repeat` runs, as far as they come.
absl::Status ThroughputBench::RunCase(EngineHost& engine, const Case& one,
                                      int repeat, std::vector<Figures>& runs) {
  RETURN_IF_ERROR(SwitchTo(engine, one.layout));
  RETURN_IF_ERROR(RunOnce(engine, one).status());
  for (int i = 0; i < repeat; ++i) {
    ASSIGN_OR_RETURN(const Figures figures, RunOnce(engine, one));
    runs.push_back(figures);
  }
  return absl::OkStatus();
}

absl::Status ThroughputBench::Run(EngineHost& engine,
                                  const std::string& spec_path,
                                  const std::string& result_path) {
  ASSIGN_OR_RETURN(const Json spec, ReadJson(spec_path));
  ASSIGN_OR_RETURN(const int repeat, ReadCount(spec, "repeat", 3, kMaxRepeat));
  ASSIGN_OR_RETURN(const int limit_s,
                   ReadCount(spec, "time_limit_s", 600, kMaxTimeLimitSeconds));
  deadline_ = Deadline::After(absl::Seconds(limit_s));
  RETURN_IF_ERROR(WaitUntilReady());
  Json results = Json::array();
  absl::Status status;
  for (const Json& json : spec["cases"]) {
    Case one;
    ASSIGN_OR_RETURN(one.streams, ReadCount(json, "streams", 1, 65536));
    ASSIGN_OR_RETURN(one.prompt_tokens,
                     ReadCount(json, "prompt_tokens", 64, 1 << 20));
    ASSIGN_OR_RETURN(one.output_tokens,
                     ReadCount(json, "output_tokens", 128, 1 << 20));
    one.layout = json.value("layout", "ep");
    std::vector<Figures> runs;
    status = RunCase(engine, one, repeat, runs);
    if (!runs.empty()) results.push_back(ResultOf(json, one, runs));
    if (!status.ok()) break;
  }
  const bool cut_short = absl::IsDeadlineExceeded(status) && !results.empty();
  if (!cut_short) RETURN_IF_ERROR(status);
  std::ofstream file(result_path);
  file << Json{{"cut_short", cut_short}, {"cases", results}}.dump(2) << "\n";
  file.close();
  if (!file) {
    return absl::UnavailableError(absl::StrCat("cannot write ", result_path));
  }
  return absl::OkStatus();
}

}  // namespace moebius
