/* The decision for a switch: PREPARE, COMMIT, ABORT, the journal, terms of the
 * coordinator and rounds of recovery.
 *
 * Stands for: coordinator/decisions/layout_machine.h, switch_control.h, membership.h and
 * engine_recovery.cc, worker/worker_loop.cc and switch_executor.h;
 * coordinator/decisions/recovery_plan.h and the journal's records of switches.
 *
 * Two workers and one coordinator, beside which at any moment a second one may
 * start, with a higher term. The first may live on or die. A worker executes
 * steps in order and a switch when COMMIT comes, and takes nothing else in
 * meanwhile. Each step ends with a barrier; the copy begins with one and ends
 * with one, behind which it is recorded under its epoch.
 *
 * A message is never taken away once it is sent: it may be taken in late, again
 * or after others that were sent later, and a worker goes by what the message
 * says: term, round, step, epoch. A message that is lost is one that is never
 * taken in, and a round of recovery begins (at most LOSSES times) without any
 * other reason. (The sequence numbers of the wire, which make a worker see a
 * loss sooner, are not needed for what is shown here.) A worker may die at any
 * point between two actions (at most CRASHES times); its memory stays, with its
 * term, its record and its barrier word.
 *
 * The journal has two kinds of records: a term has begun, and a switch is
 * decided (epoch, boundary). An append of a term below the highest one begun
 * fails. (The code goes further: the journal is locked for the lifetime of its
 * process, and the launcher reaps that before it starts the next.) A new
 * coordinator appends its term, reads, has every worker halt, and resumes with
 * the layout of the last decision and what is left of that switch, for which it
 * asks the workers' records; no step below its boundary is issued.
 *
 * Abstracted: the copy is one action of each worker (layer_copy.pml has it in
 * full); PREPARE's checks are the coordinator's freedom to abort at any time;
 * answers are flags, each worth something for the epoch and round that the
 * coordinator is in. What nobody can hear any more is wiped, so that states are
 * few.
 *
 * What must hold:
 *   - every step is executed in the layout that the journal gives it, by all in
 *     one, and with the weights in that layout;
 *   - a rank that has said PREPARED is prepared when COMMIT comes (the code ends
 *     a worker that is not; it must not come to that);
 *   - every run ends, with all workers serving in the layout of the journal.
 *
 * @safety   deaths and losses: -DSTEPS=3 -DCRASHES=1 -DLOSSES=1 -DRESTARTS=0
 * @safety   two deaths: -DSTEPS=2 -DCRASHES=2 -DLOSSES=0 -DRESTARTS=0
 * @safety   two coordinators, losses: -DSTEPS=2 -DCRASHES=0 -DLOSSES=1 -DRESTARTS=1
 * @safety   two coordinators, deaths: -DSTEPS=2 -DCRASHES=1 -DLOSSES=0 -DRESTARTS=1
 * @safety   no fence, read after Halt: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DRESTARTS=1 -DWISHES=1 -DREAD_AFTER_HALT -DVOID_NOT_REFUSED
 *   Another way: the journal takes what anybody appends, but a decision behind
 *   the record of a higher term is void, which its author does not notice. Then
 *   a new coordinator may append its term and read only when every worker has
 *   halted for it.
 * @termination two coordinators: -DSTEPS=1 -DCRASHES=1 -DLOSSES=0 -DRESTARTS=1 -DWISHES=1
 *
 * @mutation COMMIT_BEFORE_LOGGED: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => the_weights_are_in_another_layout | the_end_is_not_what_the_log_says
 *   The coordinator dies between COMMIT and the record. Its successor resumes
 *   in the old layout.
 * @mutation RESTART_IGNORES_COMMIT: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | the_weights_are_in_another_layout | the_end_is_not_what_the_log_says
 *   A new coordinator begins in the layout of the configuration.
 * @mutation BOUNDARY_FORGOTTEN: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | a_step_ran_in_two_layouts
 *   It finishes the switch but numbers steps from the last one executed. (Here
 *   PREPARED may come before the steps below the boundary are executed; in the
 *   code numbers are left out when plans in flight are given up.)
 * @mutation EPOCH_REUSED: -DSTEPS=2 -DCRASHES=0 -DLOSSES=1 => the_weights_are_in_another_layout
 *   It counts epochs anew. The record of an old switch is taken for one of the
 *   new switch with the same number.
 * @mutation ACCEPT_LOWER_TERM: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | a_step_ran_in_two_layouts | the_weights_are_in_another_layout
 *   A worker goes on obeying the old coordinator after the new one halted it.
 * @mutation TERM_FORGOTTEN: -DSTEPS=1 -DCRASHES=2 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | the_weights_are_in_another_layout | the_end_is_not_what_the_log_says
 *   A worker's term dies with its process. When both have died, the old
 *   coordinator can halt and resume them once more.
 * @mutation LOG_NOT_FENCED: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | the_weights_are_in_another_layout | the_end_is_not_what_the_log_says
 *   The old coordinator logs a decision after the new one has read the journal.
 *   That workers refuse messages of a lower term does not help.
 * @mutation VOID_NOT_REFUSED: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DWISHES=1 => a_step_ran_against_the_log | the_weights_are_in_another_layout | the_end_is_not_what_the_log_says
 *   Such a decision is void, but the old coordinator sends COMMIT to workers
 *   that the new one, which has read the journal already, has not halted yet.
 * @mutation PREPARED_TIMES_OUT: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DRESTARTS=0 -DWISHES=1 => a_vote_did_not_stand
 *   A prepared worker aborts by itself when COMMIT does not come.
 * @mutation LATE_ABORT: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DRESTARTS=0 => a_vote_did_not_stand
 *   An ABORT is taken for whatever is prepared.
 * @mutation LATE_PREPARE: -DSTEPS=2 -DCRASHES=0 -DLOSSES=0 -DRESTARTS=0 => a_step_ran_against_the_log | the_end_is_not_what_the_log_says
 *   A PREPARE is taken though its epoch is over, and so is a repeated COMMIT.
 */
#ifndef STEPS
#define STEPS 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#ifndef WISHES
#define WISHES 2
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#define AHEAD 2 /* steps issued before the first result is in */

/* What must never be. Always false; the names are seen when an assertion
 * fails. */
bool the_weights_are_in_another_layout, a_step_ran_against_the_log,
    a_step_ran_in_two_layouts, a_vote_did_not_stand,
    the_end_is_not_what_the_log_says;

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define BIT(n) (1 << (n))
#define BOTH 3 /* a mask of ranks */

byte crashes = CRASHES, losses = LOSSES;
byte wishes = WISHES; /* for a switch, so epochs are 1 to WISHES, at most 2 */
byte newest = 1;      /* the term of the coordinator that must serve at last */
bool over;            /* it does */
byte ran[STEPS + 1];  /* 0, or 1 + the layout in which the step was done */

/* ---- the journal ----------------------------------------------------- */

byte log_term, log_epoch;
byte commits, boundary[WISHES]; /* a decision is for EP -> TP, the next back */
#define LAYOUT_BY_LOG(step)                  \
  (((commits > 0 && boundary[0] <= (step)) + \
    (commits > 1 && boundary[WISHES - 1] <= (step))) % 2)

/* ---- memory that outlives its worker --------------------------------- */

byte weights[2]; /* 0 in EP, 1 in TP */
byte arrived[2], last_step[2], term[2];
byte record[2];  /* epoch of the last switch copied everywhere */

/* ---- what workers do ------------------------------------------------- */

bool running[2]; /* not halted */
byte layout_of[2], round_of[2];
bool coming[2];  /* was alive at Resume, and has not stopped since */

/* ---- messages, by term ----------------------------------------------- */

byte hello[3], interrupted[3];        /* masks of ranks */
byte halt_round[3], halted[3];
byte resume_round[3], layout[3], first_step[3], barrier[3];
byte last_epoch[3], tail_epoch[3];    /* tail_epoch 0: no switch to finish */
bool tail_done[3];                    /* nothing is left but its answer */
byte issued[3], tp_steps[3];          /* up to; mask of those planned for TP */
byte asked[3], undone[3], ordered[3]; /* PREPARE, ABORT, COMMIT: epochs' masks */
byte bound[3];                        /* boundary of the last COMMIT */
byte asking[3], yes[3];               /* PREPARED for epoch `asking` */
byte decided[3], switched[3];         /* SWITCHED for epoch `decided` */

#if !defined(ACCEPT_LOWER_TERM) && !defined(LOG_NOT_FENCED) && \
    !defined(VOID_NOT_REFUSED)
#define WIPE /* messages of term 1 when both workers have term 2 */
#endif

/* ---- a worker -------------------------------------------------------- */

#define OTHER (1 - me)
#define OR_DIE :: atomic { crashes > 0 && !over -> crashes--; goto dead }

#define CAN_HALT(t)                                   \
  (halt_round[t] > 0 && !(hello[t] & BIT(me)) &&      \
   (t > term[me] || (t == term[me] && halt_round[t] > round_of[me])))
#define CAN_RESUME(t)                                 \
  (t == term[me] && !running[me] && !resumed &&       \
   round_of[me] > 0 && resume_round[t] == round_of[me])
#ifdef ACCEPT_LOWER_TERM
#define OBEYS(t) (running[me] && t <= term[me] && resume_round[t] > 0)
#else
#define OBEYS(t) \
  (running[me] && t == term[me] && resume_round[t] == round_of[me])
#endif
#define CAN_STEP(t)                                               \
  (OBEYS(t) && next >= first_step[t] && next <= issued[t] &&      \
   ((tp_steps[t] >> next) & 1) == layout_of[me])
#ifdef LATE_PREPARE
#define CAN_PREPARE(t, e) (OBEYS(t) && (asked[t] & BIT(e)) && e != prepared)
#else
#define CAN_PREPARE(t, e) (OBEYS(t) && (asked[t] & BIT(e)) && e > proposed)
#endif
#ifdef LATE_ABORT
#define CAN_ABORT(t, e) (OBEYS(t) && (undone[t] & BIT(e)) && prepared > 0)
#else
#define CAN_ABORT(t, e) (OBEYS(t) && (undone[t] & BIT(e)) && prepared == e)
#endif
#define CAN_COMMIT(t) \
  (OBEYS(t) && voted > 0 && (ordered[t] & BIT(voted)) && bound[t] == next)

inline forget() {
  running[me] = false; coming[me] = false; layout_of[me] = 0;
  next = 0; number = 0; proposed = 0; prepared = 0; voted = 0;
  copying = 0; done = false
}

inline take_halt() { /* t */
  forget();
  term[me] = t; round_of[me] = halt_round[t]; resumed = false;
  /* What we sent before has come before our answer. */
  interrupted[t] = interrupted[t] & (BOTH - BIT(me));
  switched[t] = switched[t] & (BOTH - BIT(me));
  halted[t] = halted[t] | BIT(me);
#ifdef WIPE
  if
  :: term[0] == 2 && term[1] == 2 ->
     hello[1] = 0; interrupted[1] = 0; halt_round[1] = 0; halted[1] = 0;
     resume_round[1] = 0; layout[1] = 0; first_step[1] = 0; barrier[1] = 0;
     last_epoch[1] = 0; tail_epoch[1] = 0; tail_done[1] = false;
     issued[1] = 0; tp_steps[1] = 0;
     asked[1] = 0; undone[1] = 0; ordered[1] = 0; bound[1] = 0;
     asking[1] = 0; yes[1] = 0; decided[1] = 0; switched[1] = 0
  :: else
  fi
#endif
}

inline take_resume() {
  t = term[me];
  resumed = true; running[me] = true;
  layout_of[me] = layout[t]; next = first_step[t]; number = barrier[t];
  proposed = last_epoch[t];
  copying = tail_epoch[t]; done = tail_done[t];
  t = 0;
  if
  :: copying > 0 -> arrived[me] = number; goto copy
  :: else
  fi
}

inline begin_step() {
  assert(weights[me] == layout_of[me] || the_weights_are_in_another_layout);
#ifndef COMMIT_BEFORE_LOGGED /* whose log is late; it must do real harm */
  assert(LAYOUT_BY_LOG(next) == layout_of[me] || a_step_ran_against_the_log);
#endif
  arrived[me] = number;
  goto step
}

inline end_step() {
  assert(ran[next] == 0 || ran[next] == 1 + layout_of[me] ||
         a_step_ran_in_two_layouts);
  ran[next] = 1 + layout_of[me];
  last_step[me] = next;
  next++
}

inline prepare() { /* t, e */
  prepared = e; voted = e; proposed = e;
  if :: asking[t] == e -> yes[t] = yes[t] | BIT(me) :: else fi
}

inline abort(e) {
  prepared = 0;
  if :: voted == e -> voted = 0 :: else fi
}

inline commit() {
  assert(prepared == voted || a_vote_did_not_stand);
  copying = voted; prepared = 0; voted = 0;
  layout_of[me] = 1 - layout_of[me];
  arrived[me] = number;
  goto copy
}

inline wait() {
  if
  :: atomic { arrived[OTHER] >= number -> number++ }
  :: atomic { arrived[OTHER] < number && !coming[OTHER] -> goto give_up }
  OR_DIE
  fi
}

proctype Worker(byte me) {
  byte next;     /* step */
  byte number;   /* of the next barrier */
  byte proposed; /* highest epoch known */
  byte prepared; /* epoch, or 0 */
  byte voted;    /* epoch that we said PREPARED for, until its outcome */
  byte copying;  /* epoch */
  byte t, e;     /* term and epoch of what is taken in */
  bool resumed;  /* in this round */
  bool done;     /* nothing to copy */
  goto listen;

dead: /* and the successor's start */
  atomic {
    forget();
    resumed = false; round_of[me] = 0;
#ifdef TERM_FORGOTTEN
    term[me] = 0;
#endif
#if defined(WIPE) && !defined(TERM_FORGOTTEN)
    if
    :: term[0] < 2 || term[1] < 2 -> hello[1] = hello[1] | BIT(me)
    :: else
    fi;
#else
    hello[1] = hello[1] | BIT(me);
#endif
    hello[2] = hello[2] | BIT(me)
  }
  goto listen;

give_up:
  atomic {
    forget();
    interrupted[term[me]] = interrupted[term[me]] | BIT(me)
  }

listen:
end_listen:
  do
  :: atomic { CAN_HALT(1) || CAN_HALT(2) ->
       if
       :: CAN_HALT(1) -> t = 1
       :: CAN_HALT(2) -> t = 2
       fi;
       take_halt();
       t = 0
     }
  :: atomic { CAN_RESUME(1) || CAN_RESUME(2) -> take_resume() }
  :: atomic { CAN_STEP(1) || CAN_STEP(2) -> begin_step() }
  :: atomic { CAN_PREPARE(1, 1) || CAN_PREPARE(1, 2) ||
              CAN_PREPARE(2, 1) || CAN_PREPARE(2, 2) ->
       if
       :: CAN_PREPARE(1, 1) -> t = 1; e = 1
       :: CAN_PREPARE(1, 2) -> t = 1; e = 2
       :: CAN_PREPARE(2, 1) -> t = 2; e = 1
       :: CAN_PREPARE(2, 2) -> t = 2; e = 2
       fi;
       prepare();
       t = 0; e = 0
     }
  :: atomic { CAN_ABORT(1, 1) || CAN_ABORT(2, 1) -> abort(1) }
  :: atomic { CAN_ABORT(1, 2) || CAN_ABORT(2, 2) -> abort(2) }
  :: atomic { CAN_COMMIT(1) || CAN_COMMIT(2) -> commit() }
#ifdef PREPARED_TIMES_OUT
  :: atomic { prepared > 0 -> prepared = 0 }
#endif
  OR_DIE
  od;

step:
  wait();
  if
  :: atomic { end_step() }
  OR_DIE
  fi;
  goto listen;

copy:
  wait();
  if
  :: done
  :: else ->
     if
     :: atomic { weights[me] = layout_of[me]; arrived[me] = number }
     OR_DIE
     fi;
     wait();
     if
     :: record[me] = copying
     OR_DIE
     fi
  fi;
  atomic {
    if
    :: decided[term[me]] == copying ->
       switched[term[me]] = switched[term[me]] | BIT(me)
    :: else
    fi;
    copying = 0; done = false
  }
  goto listen
}

/* ---- a coordinator --------------------------------------------------- */

#define STEADY 0
#define PREPARING 1
#define DECIDED 2   /* and logged; COMMIT is not sent yet */
#define COMMITTING 3
#define UNLOGGED 4  /* COMMIT_BEFORE_LOGGED: sent, and not logged yet */

/* Whether there is anybody left who might listen. */
#ifdef WIPE
#define HEARD (term[0] <= t || term[1] <= t)
#else
#define HEARD true
#endif
#define SERVES (!halting && HEARD)
#define MAY_ISSUE (phase == STEADY || phase >= COMMITTING)

inline begin_term() { /* reads the journal */
  log_term = MAX(log_term, t);
  if
#ifndef RESTART_IGNORES_COMMIT
  :: commits > 0 ->
     phase = COMMITTING;
     layout[t] = commits % 2;
     decided[t] = log_epoch;
#ifndef EPOCH_REUSED
     last_epoch[t] = log_epoch;
#endif
#ifndef BOUNDARY_FORGOTTEN
     least = boundary[commits - 1];
#endif
#endif
  :: else
  fi
}

inline begin_round() {
  halt_round[t]++;
  halting = true;
  halted[t] = 0; yes[t] = 0; switched[t] = 0;
  if
  :: phase == PREPARING -> phase = STEADY
  :: phase == DECIDED -> phase = COMMITTING; layout[t] = 1 - layout[t]
  :: else
  fi
}

inline resume() {
  first_step[t] = MAX(least, 1 + MAX(last_step[0], last_step[1]));
  barrier[t] = 1 + MAX(arrived[0], arrived[1]);
  if
  :: phase >= COMMITTING -> tail_epoch[t] = decided[t];
     tail_done[t] = record[0] == decided[t] || record[1] == decided[t]
  :: else -> tail_epoch[t] = 0; tail_done[t] = false
  fi;
  coming[0] = !(hello[t] & 1) && term[0] == t && round_of[0] == halt_round[t];
  coming[1] = !(hello[t] & 2) && term[1] == t && round_of[1] == halt_round[t];
  issued[t] = first_step[t] - 1; tp_steps[t] = 0;
  asked[t] = 0; undone[t] = 0; ordered[t] = 0; bound[t] = 0; asking[t] = 0;
  resume_round[t] = halt_round[t];
  halting = false
}

inline log_decision() {
  if
#ifdef VOID_NOT_REFUSED
  :: log_term > t
#elif !defined(LOG_NOT_FENCED)
  :: log_term > t -> break /* refused: we have been superseded */
#endif
  :: else ->
     boundary[commits] = issued[t] + 1;
     commits++;
     log_epoch = asking[t]
  fi
}

proctype Coordinator(byte t) {
  bool halting;
  byte phase;
  byte least = 1; /* no step below it is issued */
  bool begun;     /* the journal is read */
  atomic {
#ifndef READ_AFTER_HALT
    begin_term(); begun = true;
#endif
    begin_round()
  }
end_serve:
  do
  :: atomic { HEARD && hello[t] & 1 -> hello[t] = hello[t] & 2; begin_round() }
  :: atomic { HEARD && hello[t] & 2 -> hello[t] = hello[t] & 1; begin_round() }
  :: atomic { SERVES && interrupted[t] > 0 ->
       interrupted[t] = 0;
       begin_round()
     }
  :: atomic { SERVES && losses > 0 && !over -> losses--; begin_round() }
  :: atomic { halting && halted[t] == BOTH ->
       if :: !begun -> begin_term(); begun = true :: else fi;
       resume()
     }
  :: atomic { SERVES && MAY_ISSUE && issued[t] < STEPS &&
              issued[t] < MAX(last_step[0], first_step[t] - 1) + AHEAD ->
       issued[t]++;
       tp_steps[t] = tp_steps[t] | (layout[t] << issued[t])
     }
  :: atomic { SERVES && phase == STEADY && wishes > 0 && issued[t] < STEPS ->
       wishes--;
       phase = PREPARING;
       last_epoch[t]++; asking[t] = last_epoch[t]; yes[t] = 0;
       asked[t] = asked[t] | BIT(asking[t])
     }
  :: atomic { SERVES && phase == PREPARING -> /* refused, or expired */
       phase = STEADY;
       undone[t] = undone[t] | BIT(asking[t])
     }
  :: atomic { !halting && phase == PREPARING && yes[t] == BOTH ->
#ifndef COMMIT_BEFORE_LOGGED
       log_decision();
#endif
       phase = DECIDED; decided[t] = asking[t]; least = issued[t] + 1
     }
  :: atomic { SERVES && phase == DECIDED ->
       layout[t] = 1 - layout[t];
       switched[t] = 0; bound[t] = least;
       ordered[t] = ordered[t] | BIT(decided[t]);
#ifdef COMMIT_BEFORE_LOGGED
       phase = UNLOGGED
     }
  :: atomic { phase == UNLOGGED ->
       log_decision();
#endif
       phase = COMMITTING
     }
  :: atomic { SERVES && phase == COMMITTING && switched[t] == BOTH ->
       phase = STEADY
     }
  :: atomic { SERVES && phase == STEADY && t == newest &&
              running[0] && running[1] && term[0] == t && term[1] == t &&
              MAX(last_step[0], last_step[1]) == STEPS ->
       assert((weights[0] == commits % 2 && weights[1] == commits % 2 &&
               layout_of[0] == commits % 2 && layout_of[1] == commits % 2) ||
              the_end_is_not_what_the_log_says);
       over = true;
       break
     }
  :: t < newest -> break /* the old one dies */
  :: !HEARD && phase != PREPARING -> break
  od
}

proctype Launcher() {
  if
  :: RESTARTS > 0 -> atomic { newest = 2; run Coordinator(2) }
  :: true
  fi;
  over /* it must come to that */
}

init {
  atomic { run Worker(0); run Worker(1); run Coordinator(1); run Launcher() }
}
