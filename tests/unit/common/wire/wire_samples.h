// One sample of every message, for tests and as seeds of the fuzzer.
#pragma once

#include <vector>

#include "common/wire/wire.h"

namespace moebius {

inline StepPlan SampleStepPlan() {
  SamplingParams sampling;
  sampling.temperature = 0.7f;
  sampling.top_k = 20;
  sampling.seed = 0x123456789abcdef0;
  sampling.num_logprobs = 5;
  sampling.suppressed_ids = {4095, 4093};
  sampling.logit_bias = {{7, 1.5f}, {9, -100.0f}};
  sampling.allowed_ids = {5, 17};
  sampling.bad_words = {{8}, {3, 4, 5}};
  StepPlan plan;
  plan.step = StepId{42};
  plan.layout = {TensorParallel(2),
                 ExpertsState::At(TensorParallel(2), Side::kHigh)};
  plan.released = {3, 9};
  plan.admissions = {{1, RequestId{77}, 3, {5, 6, 7, 8}, sampling},
                     {2, RequestId{78}, 1, {5}, {}}};
  plan.page_rows = {{1, 0, 0, {10, 11}}, {1, 0, 1, {12, 13}}, {2, 4, 1, {9}}};
  plan.items = {{1, 0, 4, 0, true}, {2, 16, 1, 1, false}};
  return plan;
}

inline std::vector<wire::CommandMessage> SampleCommands() {
  const wire::Envelope envelope{Term{3}, Incarnation{2}, 99};
  KvPlan kv;
  kv.waves = {{{0, 1, 1, 2}, {1, 5, 0, 6}}, {{0, 7, 1, 1}}};
  kv.tables = {{4, 2, {{0, 0, 1, {1, 2}}, {1, 1, 1, {3, 4}}}}};
  wire::Restore restore;
  restore.round = 6;
  restore.sequences = {
      {SampleStepPlan().admissions[0], {1, 1, {{0, 0, 1, {1}}}}, 3},
      {SampleStepPlan().admissions[1], {2, 0, {}}, 0}};
  const wire::Resume plain{
      6,         ExpertsState::At(ExpertParallel(), Side::kHigh),
      StepId{5}, 1000,
      Epoch{8},  {},
      0,         {}};
  wire::Resume with_tail{
      7,         {ExpertParallel(), TensorParallel(2), Side::kHigh, 3},
      StepId{6}, 1010,
      Epoch{9},  {{1}, {3}},
      0xfeed,    {}};
  with_tail.tail = SwitchTail{Epoch{9}, 1, kv};
  return {
      {envelope, wire::Greet{}},
      {envelope, wire::Halt{6, true}},
      {envelope,
       wire::Load{
           6, {ExpertParallel(), TensorParallel(2), Side::kHigh, 3}, Epoch{9}}},
      {envelope, restore},
      {envelope, plain},
      {envelope, with_tail},
      {envelope, SampleStepPlan()},
      {envelope, wire::Prepare{Epoch{8}, TensorParallel(2), kv}},
      {envelope, wire::Commit{Epoch{8}, StepId{43}}},
      {envelope, wire::Abort{Epoch{8}}},
      {envelope, wire::Shutdown{}}};
}

inline std::vector<wire::ReportMessage> SampleReports() {
  const wire::Envelope envelope{Term{3}, Incarnation{2}, 98};
  wire::Hello hello;
  hello.rank = 1;
  hello.num_ranks = 2;
  hello.pid = 4321;
  hello.num_pages = 1000;
  hello.max_slots = 256;
  hello.model_digest = 0xabcdef;
  hello.memory = Incarnation{2};
  hello.padding_bytes = 12345;
  StepResult result;
  result.step = StepId{42};
  result.duration_us = 180;
  result.sampled = {{1, 4, 17, -0.5f, {{17, -0.5f}, {3, -1.25f}}},
                    {2, 17, 99, 0.0f, {}}};
  result.prompt_logprobs = {{1, 1, 6, -2.0f, {{8, -0.1f}}, 3},
                            {1, 2, 7, -3.0f, {}, 70000}};
  result.refused = {{3, "token 4096 at position 2"}, {9, ""}};
  result.nonfinite_rows = 2;
  result.nonfinite_slot = 1;
  return {{envelope, hello},
          {envelope, wire::Halted{6,
                                  {StepId{41}, 999, Epoch{8}, Side::kHigh, 3, 1,
                                   true, 0xfeed, Epoch{7}},
                                  {{1, RequestId{77}, 20, 2, {4, 5, 6, 7}},
                                   {3, RequestId{78}, 0, 0, {}}}}},
          {envelope, wire::Loaded{6, 1 << 20, 0xfeedface}},
          {envelope, wire::Interrupted{StepId{42}, "rank 1 not at barrier 7"}},
          {envelope, result},
          {envelope, wire::Prepared{Epoch{8}, false, "no room"}},
          {envelope, wire::Switched{Epoch{8}, 1, 2, 3, 4, 5, 6}},
          {envelope, wire::WeightsChecked{Epoch{8}, 0xabad1dea}},
          {envelope, wire::Fault{StepId{42}, "worker 1 did not arrive"}}};
}

}  // namespace moebius
