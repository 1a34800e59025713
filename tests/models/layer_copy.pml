/* The copy of expert weights in a switch: sliding slots, the record of
 * progress, death and adoption.
 *
 * Stands for: worker/switch/switch_executor.cc (PullWeights), worker/memory/
 * group_barrier.h and signals.h, worker/worker_loop.cc (Halt, Load, Resume,
 * Interrupt), coordinator/decisions/membership.h, SwitchControl::Tail, and the order
 * "reaped, then started" of deploy/launcher/supervision.h.
 *
 * A worker copies layer by layer, EP to TP: layer l from every rank's slot l + 1
 * into its own slot l, which is free by then. (TP to EP is the same, mirrored.)
 * It reads one peer after another, then comes the barrier, then the record. The
 * first barrier stands before the first layer. Slots, barrier words and record
 * outlive the process. A fault is one of these, at any point:
 *   - a worker dies; its memory stays, or is lost with it (at most LOSSES
 *     times). A successor adopts what is there, aborts the barrier that no rank
 *     will come to any more, and says Hello. Lost memory it makes anew, empty.
 *   - a deadline at a barrier passes though all is well.
 * Beyond these, a deadline passes only where somebody will really not come.
 * A rank that gives up at a barrier halts. The coordinator halts all and takes
 * the highest record. A rank with empty memory loads its part: layers that are
 * done in the target's slots, others in the source's. Then all go on from there,
 * with barrier numbers above every one used. Peers map new memory when they resume;
 * until then a pull from the lost one fails. A memory counts as loaded from its
 * first Resume on.
 * At Resume every rank stores the record that it goes on from: the highest one
 * may have been in memory that is lost next.
 *
 * Abstracted: what a slot holds is one of "layer l for EP", "layer l for TP",
 * "something else"; Hello, Halt, Halted, Resume, Interrupted and Switched are
 * flags that are seen any time later; a worker may miss Resume, and the others
 * then wait for it until the next round. Pages
 * of the KV cache are in page_moves.pml, the decision for the switch in
 * switch_commit.pml. The coordinator does not die here.
 *
 * What must hold: no pull meets a slot that does not hold the source of the
 * layer being pulled; when the coordinator takes the switch as done, every
 * layer of every rank that has memory is right; every run gets there.
 *
 * @safety   four ranks, one fault: -DN=4 -DL=2 -DFAULTS=1 -DLOSSES=1
 * @safety   three ranks, two faults: -DN=3 -DL=2 -DFAULTS=2 -DLOSSES=1
 * @safety   two ranks, three layers, three faults: -DN=2 -DL=3 -DFAULTS=3 -DLOSSES=2
 * @safety   no deadline needed, Halt names the barrier: -DN=2 -DL=2 -DFAULTS=3 -DLOSSES=3 -DNO_DEADLINE -DHALT_NAMES_BARRIER
 *   Halt carries the number that the last Resume gave. A rank that takes it
 *   aborts barriers up to that one. See NO_DEADLINE.
 * @safety   no deadline needed, memory stays: -DN=2 -DL=2 -DFAULTS=3 -DLOSSES=0 -DNO_DEADLINE -DABANDON_ALL_AT_HALT
 *   A rank that takes a Halt aborts barriers up to one above all that the words
 *   of all ranks name.
 * @termination three ranks: -DN=3 -DL=2 -DFAULTS=1 -DLOSSES=1
 *
 * @mutation NO_BARRIER: -DN=2 -DFAULTS=0 => a_pull_met_a_wrong_slot
 *   Layer after layer without waiting for the others.
 * @mutation RECORD_BEFORE_BARRIER: -DN=3 -DLOSSES=0 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   A layer counts as done everywhere when it is done here.
 * @mutation MINIMUM_OF_RECORDS: -DN=3 -DLOSSES=0 => a_pull_met_a_wrong_slot
 *   A layer is done again whose sources the next one has overwritten.
 * @mutation REUSED_BARRIER_NUMBERS: -DN=3 -DLOSSES=0 -DMAX_ROUNDS=3 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   Every round begins again with 1, and each rank clears its own words. An old
 *   arrival of one that has not done so counts as a new one.
 * @mutation SUCCESSOR_BEFORE_DEATH: -DN=3 -DLOSSES=0 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   The old process goes on writing beside its successor.
 * @mutation PUSH: -DN=3 => a_pull_met_a_wrong_slot
 *   Copies are pushed into peers' slots. While memory outlives its worker, that
 *   goes well. But a rank that dies with its memory takes along the record
 *   that it had passed a barrier, and leaves in its peers' memory what it wrote behind it.
 * @mutation RELOAD_ALL_AS_SOURCE: -DN=3 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   A successor without memory reloads as if no layer had been done.
 * @mutation RELOAD_BEFORE_HALT: -DN=3 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   It reloads at its start, from records that are not final.
 * @mutation RESUME_BEFORE_LOADED: -DN=2 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   The others do not wait until the successor has loaded.
 * @mutation ADOPT_HALF_LOADED: -DN=2 -DFAULTS=2 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   Memory counts as loaded from the beginning of the load, in which its worker
 *   dies.
 * @mutation RESUME_WITHOUT_RECORD: -DN=2 -DFAULTS=2 => a_layer_is_wrong_at_the_end | a_pull_met_a_wrong_slot
 *   A rank that resumes, and has not loaded, keeps its old record until the next
 *   barrier while it overwrites what that record calls a source. The rank whose record
 *   was the highest loses its memory meanwhile.
 * @mutation NO_DEADLINE: -DN=2 -DFAULTS=2 -DLOSSES=0 => invalid end state
 *   A successor aborts only the barrier behind its predecessor's last. When
 *   that one died between Halted and its next arrival, the others wait at a
 *   higher number, and only a deadline gets them out.
 */
#ifndef N
#define N 4
#endif
#ifndef L
#define L 2
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif

/* What must never be. Always false; the names are seen when an assertion
 * fails. */
bool a_pull_met_a_wrong_slot, a_layer_is_wrong_at_the_end;

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#if N == 2
#define ALL(f) (f(0) && f(1))
#define ANY(f) (f(0) || f(1))
#define FOLD(f, a) f(a[0], a[1])
#elif N == 3
#define ALL(f) (f(0) && f(1) && f(2))
#define ANY(f) (f(0) || f(1) || f(2))
#define FOLD(f, a) f(a[0], f(a[1], a[2]))
#else
#define ALL(f) (f(0) && f(1) && f(2) && f(3))
#define ANY(f) (f(0) || f(1) || f(2) || f(3))
#define FOLD(f, a) f(f(a[0], a[1]), f(a[2], a[3]))
#endif

byte faults = FAULTS, losses = LOSSES;
bool over; /* the coordinator takes the switch as done */

/* ---- memory that outlives its worker -------------------------------- */

/* Contents of slots. */
#define TORN 0
#define SOURCE(layer) (1 + (layer))
#define TARGET(layer) (1 + L + (layer))
byte slot[N * (L + 1)];
#define FROM(rank, layer) slot[(rank) * (L + 1) + (layer) + 1]
#define INTO(rank, layer) slot[(rank) * (L + 1) + (layer)]
#ifdef PUSH
byte parts[N * (L + 1)]; /* whose shares of the target's layer are there */
#define PARTS(rank, layer) parts[(rank) * (L + 1) + (layer)]
#endif

byte arrived[N], aborted[N]; /* the barrier's words */
byte record[N];              /* layers done everywhere */
bool loaded[N];              /* it has resumed with all that it should hold */
byte gone[N];                /* 1 lost, 2 and the successor's is known, 0 there
                                and mapped by all */

/* ---- messages -------------------------------------------------------- */

bool hello[N], interrupted[N], switched[N];
byte halt_round;                              /* of the last Halt */
bool halted[N];                 /* the answers to it, */
byte stand_barrier[N], stand_record[N];
bool unloaded[N];
byte load_round;                /* of the last Load; to those that are empty */
bool told_loaded[N];            /* the answers to it */
byte resume_round, next_barrier = 1, layers_done;
bool halting, loading;          /* neither: Resume is out */
bool coming[N]; /* was alive at Resume, and has not stopped since */

/* ---- a worker -------------------------------------------------------- */

#ifdef SUCCESSOR_BEFORE_DEATH
byte incarnation[N];
#define CURRENT (my_incarnation == incarnation[me]) /* others' messages are refused */
#define DIE incarnation[me]++; run Worker(me, incarnation[me])
#else
#define CURRENT true
#define DIE goto dead
#endif
#define OR_DIE :: atomic { faults > 0 && !over -> faults--; DIE }

#define ARRIVED(r) (arrived[r] >= number)
#define ABORTED(r) (aborted[r] >= number)
#define WILL_COME(r) (ARRIVED(r) || coming[r])
#ifdef NO_BARRIER
#define COMPLETE true
#else
#define COMPLETE ALL(ARRIVED)
#endif

inline reload(one) { /* a layer of ours, from the checkpoint */
  if
#ifndef RELOAD_ALL_AS_SOURCE
  :: one < layer ->
     INTO(me, one) = TARGET(one);
#ifdef PUSH
     PARTS(me, one) = (1 << N) - 1;
#endif
#endif
  :: else -> FROM(me, one) = SOURCE(one)
  fi
}

/* Of new memory, whose predecessor's words nobody may see: whoever waits for it,
 * or will, gives up. */
inline abort_for_peers() {
  layer = FOLD(MAX, arrived) + 2;
  for (peer : 0 .. N - 1) { aborted[peer] = MAX(aborted[peer], layer) }
}

inline copy_share() { /* between us and `peer` */
#ifdef PUSH
  assert(FROM(me, layer) == SOURCE(layer) || a_pull_met_a_wrong_slot);
  PARTS(peer, layer) = PARTS(peer, layer) | (1 << me);
  INTO(peer, layer) =
      (PARTS(peer, layer) == (1 << N) - 1 -> TARGET(layer) : TORN)
#else
  assert(FROM(peer, layer) == SOURCE(layer) || a_pull_met_a_wrong_slot);
  INTO(me, layer) = (peer == N - 1 -> TARGET(layer) : TORN)
#endif
}

proctype Worker(byte me; byte my_incarnation) {
  byte round, resumed;  /* of the last Halt and Resume taken */
  byte number = 1;      /* of the barrier we go to next */
  byte layer, peer;
  bool pulled;          /* the layer, so that a barrier must follow */

  if
  :: my_incarnation > 0 -> goto born
  :: else -> goto copy
  fi;

dead: /* reaped; what follows is the successor's start */
  atomic {
    coming[me] = false; layer = 0; peer = 0;
    if
    :: true -> goto born
    :: losses > 0 -> losses--
    fi;
    for (peer : 0 .. L) {
      slot[me * (L + 1) + peer] = TORN;
#ifdef PUSH
      parts[me * (L + 1) + peer] = 0
#endif
    };
    arrived[me] = 0; aborted[me] = 0; record[me] = 0;
    loaded[me] = false; gone[me] = 1;
#ifdef RELOAD_BEFORE_HALT
    layer = FOLD(MAX, record);
    for (peer : 0 .. L - 1) { reload(peer) };
    record[me] = layer; loaded[me] = true;
#endif
    abort_for_peers();
  born:
    round = 0; resumed = 0; number = 0; layer = 0; peer = 0; pulled = false;
    aborted[me] = MAX(aborted[me], arrived[me] + 1);
    hello[me] = true
  }
  goto listen;

give_up:
  atomic {
    coming[me] = false; number = 0; layer = 0; peer = 0; pulled = false;
    aborted[me] = MAX(aborted[me], arrived[me] + 1);
    if :: CURRENT -> interrupted[me] = true :: else fi
  }

listen: /* halted, or done */
end_listen: /* when the coordinator has ended, too */
  do
  :: atomic { CURRENT && halt_round > round && !hello[me] ->
       round = halt_round;
       coming[me] = false; interrupted[me] = false; switched[me] = false;
#ifdef HALT_NAMES_BARRIER
       aborted[me] = MAX(aborted[me], MAX(arrived[me] + 1, next_barrier));
#endif
#ifdef ABANDON_ALL_AT_HALT
       aborted[me] = MAX(aborted[me],
                         1 + MAX(FOLD(MAX, arrived), FOLD(MAX, aborted)));
#endif
       stand_barrier[me] = MAX(arrived[me], aborted[me]);
       stand_record[me] = record[me];
       unloaded[me] = !loaded[me];
       halted[me] = true
     }
  :: atomic { CURRENT && load_round == round && resumed < round && unloaded[me] &&
              !told_loaded[me] ->
#ifdef ADOPT_HALF_LOADED
       loaded[me] = true;
#endif
       goto load
     }
  :: atomic { CURRENT && resume_round == round && resumed < round ->
       resumed = round; number = next_barrier; layer = layers_done;
#ifdef REUSED_BARRIER_NUMBERS
       arrived[me] = 0; aborted[me] = 0;
#endif
       peer = 0;
       loaded[me] = true;
#ifndef RESUME_WITHOUT_RECORD
       record[me] = layer;
#endif
       goto copy
     }
  :: over -> goto end
  OR_DIE
  od;

load: /* from the checkpoint, a layer after the other */
  do
  :: atomic { peer < L -> layer = layers_done; reload(peer); peer++; layer = 0 }
  :: atomic { peer == L ->
       peer = 0; record[me] = layers_done; told_loaded[me] = true;
       goto listen
     }
  OR_DIE
  od;

copy:
  do
  :: atomic { arrived[me] = MAX(arrived[me], number);
#ifdef RECORD_BEFORE_BARRIER
       record[me] = layer + pulled
#endif
     };
  end_wait:
     do
     :: atomic { COMPLETE -> break }
     :: atomic { !COMPLETE && ANY(ABORTED) -> goto give_up }
#ifndef NO_DEADLINE
     :: atomic { !COMPLETE && !ALL(WILL_COME) -> goto give_up }
     :: atomic { !COMPLETE && faults > 0 -> faults--; goto give_up }
#endif
     OR_DIE
     od;
     if
     :: atomic {
          number++;
          if
          :: pulled -> layer++; record[me] = MAX(record[me], layer)
          :: else -> pulled = true
          fi;
          if :: layer == L -> break :: else fi
        }
     OR_DIE
     fi;
     do
     :: atomic {
          if :: gone[peer] -> goto give_up :: else fi;
          copy_share();
          peer++;
          if :: peer == N -> peer = 0; break :: else fi
        }
     OR_DIE
     od
  od;
  atomic {
    coming[me] = false; number = 0; layer = 0; pulled = false;
    if :: CURRENT -> switched[me] = true :: else fi
  }
  goto listen;
end: skip
}

/* ---- the coordinator ------------------------------------------------- */

#define HELLO(r) hello[r]
#define INTERRUPTED(r) interrupted[r]
#define HALTED(r) halted[r]
#define EMPTY(r) unloaded[r]
#define READY(r) (!unloaded[r] || told_loaded[r])
#define SWITCHED(r) switched[r]

inline begin_round() {
  for (r : 0 .. N - 1) {
    halted[r] = false; stand_barrier[r] = 0; stand_record[r] = 0;
    unloaded[r] = false; told_loaded[r] = false; switched[r] = false
  };
  r = 0;
  halt_round++;
  halting = true; loading = false
}

inline resume() {
  for (r : 0 .. N - 1) {
    halted[r] = false; stand_barrier[r] = 0; stand_record[r] = 0;
    unloaded[r] = false; told_loaded[r] = false;
    coming[r] = !hello[r];
    if :: gone[r] == 2 -> gone[r] = 0 :: else fi
  };
  r = 0;
  resume_round = halt_round;
  halting = false; loading = false
}

proctype Coordinator() {
  byte r;
  do
  :: atomic { ANY(HELLO) ->
       if
       :: hello[0] -> r = 0
       :: hello[1] -> r = 1
#if N > 2
       :: hello[2] -> r = 2
#endif
#if N > 3
       :: hello[3] -> r = 3
#endif
       fi;
       hello[r] = false;
       if :: gone[r] == 1 -> gone[r] = 2 :: else fi;
       begin_round()
     }
  :: atomic { !halting && !loading && ANY(INTERRUPTED) ->
       for (r : 0 .. N - 1) { interrupted[r] = false };
       begin_round()
     }
  :: atomic { halting && ALL(HALTED) -> /* maybe of one that is dead by now */
#ifdef REUSED_BARRIER_NUMBERS
       next_barrier = 1;
#else
       next_barrier = 1 + FOLD(MAX, stand_barrier);
#endif
#ifdef MINIMUM_OF_RECORDS
       layers_done = FOLD(MIN, stand_record);
#else
       layers_done = FOLD(MAX, stand_record);
#endif
       if
#ifndef RESUME_BEFORE_LOADED
       :: ANY(EMPTY) -> load_round = halt_round; halting = false; loading = true
#endif
       :: else -> resume()
       fi
     }
  :: atomic { loading && ALL(READY) -> resume() }
  :: atomic { !halting && !loading && ALL(SWITCHED) ->
       for (r : 0 .. N * L - 1) {
         assert(INTO(r / L, r % L) == TARGET(r % L) || gone[r / L] ||
                a_layer_is_wrong_at_the_end)
       };
       over = true;
       break
     }
#ifdef MAX_ROUNDS /* for mutations that go round for ever */
  :: halt_round == MAX_ROUNDS -> break
#endif
  od
}

init {
  byte r, l;
  atomic {
    for (r : 0 .. N - 1) {
      loaded[r] = true; coming[r] = true;
      for (l : 0 .. L - 1) { FROM(r, l) = SOURCE(l) };
      run Worker(r, 0)
    };
    r = 0; l = 0;
    run Coordinator()
  }
}
