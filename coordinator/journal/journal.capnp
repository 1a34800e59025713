@0xb7c40d1e5f3a9826;
# Records of the journal. See journal_record.h for what the fields mean.
#
# These bytes outlive the program that wrote them: fields may only be added,
# here and in the structures of wire.capnp that are used here. Anything else
# needs a new kJournalVersion (journal_frame.h).

using Cxx = import "/capnp/c++.capnp";
using Wire = import "/common/wire/wire.capnp";
$Cxx.namespace("moebius::journal_schema");

struct WorkerJoined {
  rank @0 :UInt8;
  incarnation @1 :UInt64;
}

struct Stop {
  maxTokens @0 :Int32;
  minTokens @1 :Int32;
  ignoreEos @2 :Bool;
  includeStop @3 :Bool;
  eosIds @4 :List(Int32);
  stopTokenIds @5 :List(Int32);
  stop @6 :List(Data);
  showSpecial @7 :Bool;
}

struct Generation {
  request @0 :UInt64;
  samePrompt @1 :Bool;  # as the generation before; `prompt` is empty then
  prompt @2 :List(Int32);
  sampling @3 :Wire.Sampling;
  stop @4 :Stop;
}

struct Accepted {
  generations @0 :List(Generation);
  context @1 :Data;
  unixMs @2 :Int64;
}

# Tokens of one generation at consecutive positions are a run: one token in a
# step, all of them in a snapshot. The rows of prompt log-probabilities follow
# one another, each with the index of the token that brings it.
struct StepTokens {
  step @0 :UInt64;
  request @1 :List(UInt64);   # of each run
  position @2 :List(UInt32);  # of each run's first token
  count @3 :List(UInt32);     # of each run's tokens; empty: 1
  token @4 :List(Int32);
  logprob @5 :List(Float32);  # of each token; empty: 0
  rankings @6 :List(Wire.Ranking);
  promptEntry @7 :List(UInt32);
  promptPosition @8 :List(UInt32);
  promptToken @9 :List(Int32);
  promptLogprob @10 :List(Float32);
  promptRankings @11 :List(Wire.Ranking);
  promptRank @12 :List(UInt32);  # empty: unknown
}

struct Ended {
  request @0 :UInt64;
  finish @1 :UInt8;  # 0 stop, 1 length, 2 abort, 3 error
  stopReason @2 :Data;
  unixMs @3 :Int64;
}

struct SwitchDecided {
  fromTp @0 :UInt8;
  boundary @1 :UInt64;
  plan @2 :Wire.Prepare;  # epoch, target, KV plan
  runningRequest @3 :List(UInt64);
  runningSlot @4 :List(UInt32);
  runningComputed @5 :List(UInt32);
}

struct Summary {
  term @0 :UInt64;
  incarnations @1 :List(UInt64);  # by rank
  proposed @2 :UInt64;
  decided @3 :UInt64;
  lastStep @4 :UInt64;
  nextRequest @5 :UInt64;
  layoutTp @6 :UInt8;  # 0: none
  choice @7 :UInt8;    # 0: none; else as layoutChosen
  draining @8 :Bool;
  leftTp @9 :UInt8;    # 0: none
}

struct OperationBegun {
  id @0 :Data;
  kind @1 :UInt8;    # 0 layout, 1 drain, 2 undrain
  choice @2 :UInt8;  # as layoutChosen
  unixMs @3 :Int64;
  decided @4 :UInt64;
}

struct OperationEnded {
  id @0 :Data;
  httpStatus @1 :UInt16;
  answer @2 :Data;
  unixMs @3 :Int64;
}

struct Record {
  union {
    termBegun @0 :UInt64;
    groupBegun @1 :UInt8;  # layout
    workerJoined @2 :WorkerJoined;
    accepted @3 :Accepted;
    stepTokens @4 :StepTokens;
    ended @5 :Ended;
    forgotten @6 :UInt64;
    epochProposed @7 :UInt64;
    switchDecided @8 :SwitchDecided;
    switchDone @9 :UInt64;
    layoutChosen @10 :UInt8;  # 1 EP, 2 TP, 3 automatic, 64 + t: t ranks a group
    summary @11 :Summary;
    drainSet @12 :Bool;
    operationBegun @13 :OperationBegun;
    operationEnded @14 :OperationEnded;
  }
}
