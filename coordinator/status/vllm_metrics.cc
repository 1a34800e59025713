#include "coordinator/status/vllm_metrics.h"

#include <string>

#include "common/base/ids.h"
#include "coordinator/status/kv_usage.h"

namespace moebius {
namespace {

// Gauges that a router looks at before it sends a request.
void AddLoad(const EngineStatus& status, MetricsWriter& out) {
  out.Gauge("vllm:num_requests_running", "Generations that take part in steps.",
            status.running);
  out.Gauge("vllm:num_requests_waiting", "Generations accepted and waiting.",
            status.waiting);
  const double usage = KvUsage(status);
  out.Gauge("vllm:kv_cache_usage_perc",
            "Share of the KV pools in use, 0 to 1, of all ranks together.",
            usage);
  out.Gauge("vllm:gpu_cache_usage_perc", "The same under its older name.",
            usage);
}

void AddConfig(const EngineStatus& status, const ServerInfo& info,
               MetricsWriter& out) {
  const uint64_t kv_tokens = status.kv.empty() ? 0 : status.kv.front().tokens;
  out.BeginGauge("vllm:cache_config_info",
                 "Tokens of a KV block, and blocks that the group holds in the "
                 "layout of now; always 1.");
  out.Add(1, {{"block_size", std::to_string(kPageTokens)},
              {"num_gpu_blocks", std::to_string(kv_tokens / kPageTokens)}});
  out.BeginGauge("vllm:lora_requests_info",
                 "No adapters are served; the value is the start in seconds.");
  out.Add(info.started_unix_s, {{"max_lora", "0"},
                                {"running_lora_adapters", ""},
                                {"waiting_lora_adapters", ""}});
}

void AddCounters(const EngineStatus& status, MetricsWriter& out) {
  out.Counter("vllm:prompt_tokens_total",
              "Prompt tokens of generations that were admitted.",
              status.prompt_tokens_total);
  out.Counter("vllm:generation_tokens_total", "Tokens generated.",
              status.generated_tokens_total);
  out.Counter("vllm:num_preemptions_total",
              "Generations put back to be computed again.",
              status.preemptions_total);
  out.BeginCounter("vllm:request_success_total",
                   "Generations that have ended, by how.");
  const GenerationTotals& totals = status.totals.generations;
  out.Add(totals.of(FinishReason::kStop), {{"finished_reason", "stop"}});
  out.Add(totals.of(FinishReason::kLength), {{"finished_reason", "length"}});
  out.Add(totals.of(FinishReason::kAbort), {{"finished_reason", "abort"}});
  out.Add(totals.of(FinishReason::kError), {{"finished_reason", "error"}});
  // Prefixes are not cached, so none was ever looked up.
  constexpr std::string_view kNoCache =
      "Prefixes are not cached here: always 0.";
  for (const std::string_view name :
       {"vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_hits_total"}) {
    out.Counter(name, kNoCache, 0);
  }
  out.Gauge("vllm:gpu_prefix_cache_hit_rate", kNoCache, 0);
}

void AddHistograms(const EngineStatus& status, const ServerInfo& info,
                   const FrontMetrics::Snapshot& front, MetricsWriter& out) {
  const auto add = [&](std::string_view name, std::string_view help,
                       const Histogram& histogram,
                       absl::Span<const double> bounds) {
    out.BeginHistogram(name, help);
    out.Add(histogram, bounds);
  };
  const absl::Span<const double> per_token =
      absl::MakeConstSpan(kInterTokenBounds).subspan(kFinerInterTokenBounds);
  const absl::Span<const double> per_request =
      absl::MakeConstSpan(kRequestBounds).subspan(kFinerRequestBounds);
  const absl::Span<const double> tokens = TokenBounds(info.max_model_len);
  const GenerationTotals& totals = status.totals.generations;
  add("vllm:time_to_first_token_seconds",
      "From a request's arrival to its first token.", front.first_token,
      kFirstTokenBounds);
  add("vllm:inter_token_latency_seconds", "Between the tokens of a generation.",
      front.inter_token, per_token);
  add("vllm:time_per_output_token_seconds",
      "Between the tokens of a generation, under its older name.",
      front.inter_token, per_token);
  add("vllm:request_time_per_output_token_seconds",
      "Average time of a token behind the first, of a generation.",
      totals.per_token, per_token);
  add("vllm:e2e_request_latency_seconds",
      "From a request's arrival to the end of its answer.", front.request,
      per_request);
  add("vllm:request_queue_time_seconds",
      "From a generation's acceptance to its admission to steps.", totals.queue,
      per_request);
  add("vllm:request_prefill_time_seconds",
      "From a generation's admission to its first token.", totals.prefill,
      per_request);
  add("vllm:request_decode_time_seconds",
      "From a generation's first token to its last.", totals.decode,
      per_request);
  add("vllm:request_prompt_tokens", "Prompt tokens of a generation.",
      totals.prompt_tokens, tokens);
  add("vllm:request_generation_tokens", "Tokens that a generation drew.",
      totals.answer_tokens, tokens);
}

}  // namespace

void AddVllmMetrics(const EngineStatus& status, const ServerInfo& info,
                    const FrontMetrics::Snapshot& front, MetricsWriter& out) {
  // vLLM's "engine" counts its data parallel engines; a group is one.
  out.SetCommonLabels({{"engine", "0"}, {"model_name", info.model}});
  AddLoad(status, out);
  AddConfig(status, info, out);
  AddCounters(status, out);
  AddHistograms(status, info, front, out);
  out.SetCommonLabels({});
}

}  // namespace moebius
