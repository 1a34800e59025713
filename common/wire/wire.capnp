@0xd3b1f6a2c7e84915;
# Messages between the coordinator and its workers. See wire.h for what the
# fields mean. Long lists are stored as columns, one primitive list a field, so
# that a step of thousands of sequences is a handful of copies.
#
# Journals keep Sampling, Ranking and Prepare on disk (coordinator/journal): to
# those, and to what they hold, fields may only be added.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("moebius::wire_schema");

struct Envelope {
  version @0 :UInt32;
  term @1 :UInt64;
  incarnation @2 :UInt64;
  sequence @3 :UInt64;
}

struct Sampling {
  temperature @0 :Float32;
  topK @1 :Int32;
  topP @2 :Float32;
  minP @3 :Float32;
  repetitionPenalty @4 :Float32;
  presencePenalty @5 :Float32;
  frequencyPenalty @6 :Float32;
  seed @7 :UInt64;
  numLogprobs @8 :Int32;
  numPromptLogprobs @9 :Int32;
  minTokens @10 :Int32;
  suppressed @11 :List(Int32);
  biasTokens @12 :List(Int32);
  biasValues @13 :List(Float32);
  allowed @14 :List(Int32);
  badWordSizes @15 :List(UInt16);  # of each word
  badWordTokens @16 :List(Int32);  # of all words, one after the other
}

struct Admission {
  slot @0 :UInt32;
  request @1 :UInt64;
  numPromptTokens @2 :UInt32;
  tokens @3 :List(Int32);
  sampling @4 :Sampling;
}

struct StepPlan {
  step @0 :UInt64;
  attentionTp @1 :UInt8;
  experts @2 :ExpertsState;
  released @3 :List(UInt32);
  admissions @4 :List(Admission);
  rowSlot @5 :List(UInt32);
  rowBlock @6 :List(UInt32);
  rowRank @7 :List(UInt8);
  rowNumPages @8 :List(UInt16);
  rowPages @9 :List(UInt32);
  itemSlot @10 :List(UInt32);
  itemPosition @11 :List(UInt32);
  itemNumTokens @12 :List(UInt32);
  itemGroup @13 :List(UInt8);
  itemSample @14 :List(Bool);
}

struct MoveWave {
  srcRank @0 :List(UInt8);
  srcPage @1 :List(UInt32);
  dstRank @2 :List(UInt8);
  dstPage @3 :List(UInt32);
}

struct RankTable {
  rank @0 :UInt8;
  kvBegin @1 :UInt16;
  numKv @2 :UInt16;
  pages @3 :List(UInt32);
}

struct KvTable {
  slot @0 :UInt32;
  numBlocks @1 :UInt32;
  tables @2 :List(RankTable);
}

struct Prepare {
  epoch @0 :UInt64;
  targetTp @1 :UInt8;
  waves @2 :List(MoveWave);
  tables @3 :List(KvTable);
}

struct Restore {
  round @0 :UInt64;
  admissions @1 :List(Admission);
  tables @2 :List(KvTable);  # beside admissions
  computed @3 :List(UInt32);
}

struct ExpertsState {
  fromTp @0 :UInt8;
  toTp @1 :UInt8;
  high @2 :Bool;  # the side
  layersDone @3 :UInt16;
}

struct Load {
  round @0 :UInt64;
  experts @1 :ExpertsState;
  epoch @2 :UInt64;
}

struct Halt {
  round @0 :UInt64;
  tellSequences @1 :Bool;
}

struct SwitchTail {
  wavesDone @0 :UInt16;
  plan @1 :Prepare;
}

struct Resume {
  round @0 :UInt64;
  experts @1 :ExpertsState;
  nextStep @2 :UInt64;
  nextBarrier @3 :UInt64;
  lastEpoch @4 :UInt64;
  tail @5 :SwitchTail;  # null: none
  memories @6 :List(UInt64);
  weightChecksum @7 :UInt64;
  checkWeights @8 :Bool;
}

struct Commit {
  epoch @0 :UInt64;
  boundary @1 :UInt64;
}

struct Command {
  envelope @0 :Envelope;
  union {
    halt @1 :Halt;
    restore @2 :Restore;
    resume @3 :Resume;
    step @4 :StepPlan;
    prepare @5 :Prepare;
    commit @6 :Commit;
    abort @7 :UInt64;  # epoch
    shutdown @8 :Void;
    greet @9 :Void;
    load @10 :Load;
  }
}

struct Halted {
  round @0 :UInt64;
  lastExecuted @1 :UInt64;
  barriers @2 :UInt64;
  switchEpoch @3 :UInt64;
  layersDone @4 :UInt16;
  wavesDone @5 :UInt16;
  weightChecksum @6 :UInt64;
  slot @7 :List(UInt32);
  request @8 :List(UInt64);
  computed @9 :List(UInt32);
  numKv @10 :List(UInt8);
  numPages @11 :List(UInt32);
  pages @12 :List(UInt32);
  loaded @13 :Bool;
  epochsOver @14 :UInt64;
  high @15 :Bool;  # the side
}

struct Loaded {
  round @0 :UInt64;
  weightBytes @1 :UInt64;
  weightChecksum @2 :UInt64;
}

struct Hello {
  rank @0 :UInt8;
  numRanks @1 :UInt8;
  pid @2 :UInt32;
  numPages @3 :UInt32;
  maxSlots @4 :UInt32;
  modelDigest @5 :UInt64;
  memory @6 :UInt64;
  paddingBytes @7 :UInt64;
}

struct Ranking {
  # The most likely tokens at one entry of the lists beside it.
  index @0 :UInt32;
  tokens @1 :List(Int32);
  logprobs @2 :List(Float32);
}

struct StepResult {
  step @0 :UInt64;
  durationUs @1 :UInt32;
  slot @2 :List(UInt32);
  position @3 :List(UInt32);
  token @4 :List(Int32);
  logprob @5 :List(Float32);
  rankings @6 :List(Ranking);
  promptSlot @7 :List(UInt32);
  promptPosition @8 :List(UInt32);
  promptToken @9 :List(Int32);
  promptLogprob @10 :List(Float32);
  promptRankings @11 :List(Ranking);
  promptRank @12 :List(UInt32);
  refusedSlot @13 :List(UInt32);
  refusedReason @14 :List(Text);  # beside refusedSlot
  nonfiniteRows @15 :UInt32;
  nonfiniteSlot @16 :UInt32;
}

struct Prepared {
  epoch @0 :UInt64;
  ok @1 :Bool;
  reason @2 :Text;
}

struct Switched {
  epoch @0 :UInt64;
  checksum @1 :UInt64;
  weightBytes @2 :UInt64;
  kvBytes @3 :UInt64;
  weightUs @4 :UInt32;
  kvUs @5 :UInt32;
  totalUs @6 :UInt32;
}

struct WeightsChecked {
  epoch @0 :UInt64;
  weightChecksum @1 :UInt64;
}

# Fault, and Interrupted.
struct Trouble {
  step @0 :UInt64;
  reason @1 :Text;
}

struct Report {
  envelope @0 :Envelope;
  union {
    hello @1 :Hello;
    halted @2 :Halted;
    interrupted @3 :Trouble;
    result @4 :StepResult;
    prepared @5 :Prepared;
    switched @6 :Switched;
    fault @7 :Trouble;
    loaded @8 :Loaded;
    weightsChecked @9 :WeightsChecked;
  }
}
