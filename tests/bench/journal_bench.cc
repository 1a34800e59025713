// What the journal costs the coordinator: a step's tokens appended and
// committed without syncs, by the number of running requests; a compaction;
// the checksum. In $MOEBIUS_BENCH_DIR, else the directory for temporary files.
#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "common/base/check.h"
#include "coordinator/journal/crc32c.h"
#include "coordinator/journal/disk_posix.h"
#include "coordinator/journal/journal.h"
#include "coordinator/journal/journal_codec.h"

namespace moebius {
namespace {

// A journal with so many running requests, in a directory of its own.
class Running {
 public:
  Running(uint64_t requests, FsyncPolicy fsync) {
    const char* base = std::getenv("MOEBIUS_BENCH_DIR");
    path_ = base != nullptr ? base : std::filesystem::temp_directory_path();
    path_ += "/journal_benchXXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
    auto disk = PosixDisk::Open(path_);
    CHECK(disk.ok());
    disk_ = *std::move(disk);
    JournalOptions options;
    options.fsync = fsync;
    options.salt = 0x5ca1ab1e0ddba11;
    auto opened = Journal::Open(options, *disk_);
    CHECK(opened.ok());
    journal_ = std::move(opened->journal);
    step_.tokens.resize(requests);
    Replace();
  }
  ~Running() { std::filesystem::remove_all(path_); }

  // The requests' next tokens.
  const journal::StepTokens& Step() {
    step_.step = step_.step.next();
    for (auto& added : step_.tokens) {
      added.token.position = kPrompt + length_;
      added.token.token = 17;
    }
    ++length_;
    return step_;
  }
  bool full() const { return length_ >= kLength; }
  // New requests in place of those that run.
  void Replace() {
    for (auto& added : step_.tokens) {
      if (added.request.value != 0) {
        Append(journal::Ended{added.request});
        Append(journal::Forgotten{added.request});
      }
      added.request = journal_->state().next_request();
      Generation generation;
      generation.prompt.assign(kPrompt, 7);
      Append(journal::Accepted{{{added.request, generation}}, "{}", 0});
    }
    Commit();
    length_ = 0;
  }
  void Append(journal::Record record) {
    CHECK(journal_->Append(std::move(record)).ok());
  }
  void Commit() { CHECK(journal_->Commit().ok()); }
  const JournalState& state() const { return journal_->state(); }

 private:
  static constexpr uint32_t kPrompt = 100;
  static constexpr uint32_t kLength = 1000;
  std::string path_;
  std::unique_ptr<PosixDisk> disk_;
  std::unique_ptr<Journal> journal_;
  journal::StepTokens step_;
  uint32_t length_ = 0;
};

// Compactions, one in every 15,000 steps of 256, are in it.
void BM_CommitStep(benchmark::State& state) {
  Running running(state.range(0), static_cast<FsyncPolicy>(state.range(1)));
  for (auto _ : state) {
    if (running.full()) {
      state.PauseTiming();
      running.Replace();
      state.ResumeTiming();
    }
    running.Append(running.Step());
    running.Commit();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_CommitStep)
    ->ArgNames({"requests", "fsync"})
    ->Args({32, 0})
    ->Args({256, 0})
    ->Args({256, 1})
    ->Unit(benchmark::kMicrosecond);

void BM_EncodeStep(benchmark::State& state) {
  Running running(state.range(0), FsyncPolicy::kNone);
  const journal::Record record = running.Step();
  std::string bytes;
  for (auto _ : state) {
    bytes.clear();
    CHECK(journal::Encode(record, bytes).ok());
    benchmark::DoNotOptimize(bytes.data());
  }
  state.counters["bytes"] = static_cast<double>(bytes.size());
}
BENCHMARK(BM_EncodeStep)->Arg(32)->Arg(256)->Unit(benchmark::kMicrosecond);

void BM_ApplyStep(benchmark::State& state) {
  Running running(state.range(0), FsyncPolicy::kNone);
  JournalState journal_state = running.state();
  for (auto _ : state) {
    if (running.full()) {
      state.PauseTiming();
      running.Replace();
      journal_state = running.state();
      state.ResumeTiming();
    }
    CHECK(journal_state.Apply(running.Step()).ok());
  }
}
BENCHMARK(BM_ApplyStep)->Arg(32)->Arg(256)->Unit(benchmark::kMicrosecond);

// The state of 256 requests with so many tokens each, as records and as bytes:
// the pause of a compaction, but for the disk's share.
void BM_Snapshot(benchmark::State& state) {
  Running running(256, FsyncPolicy::kNone);
  for (int i = 0; i < state.range(0); ++i) running.Append(running.Step());
  std::string bytes;
  for (auto _ : state) {
    bytes.clear();
    CHECK(running.state()
              .WriteSnapshot([&](const journal::Record& record) {
                return journal::Encode(record, bytes);
              })
              .ok());
    benchmark::DoNotOptimize(Crc32c(bytes, {}));
  }
  state.counters["bytes"] = static_cast<double>(bytes.size());
}
BENCHMARK(BM_Snapshot)->Arg(100)->Arg(1000)->Unit(benchmark::kMillisecond);

void BM_Crc32c(benchmark::State& state) {
  const std::string bytes(state.range(0), 'x');
  for (auto _ : state) benchmark::DoNotOptimize(Crc32c(bytes, {}));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Crc32c)->Arg(4096);

}  // namespace
}  // namespace moebius
