/* Pages of the KV cache in a switch: destinations, sources, waves.
 *
 * Stands for: common/layout/kv_plan.h (the rules that a plan keeps),
 * worker/switch/switch_executor.cc (PullPages and the barriers of Copy),
 * SwitchControl::Tail, and what steps before and after the switch do to pages.
 *
 * Each rank has a pool of pages. A plan says which page of another rank is
 * copied to which page of ours, in which wave; the model tries every plan that
 * keeps the rules: a destination is free when its wave begins, and a page that
 * nobody reads any more and that does not stay is free from the next wave on.
 * (For three ranks only plans of at most three waves that take the lowest free
 * page.) Some pages stay; with three ranks one page has two readers.
 *
 * A rank does the last step of the old layout, which writes the end of a page
 * that will be read. Then come a barrier, the pulls of each wave with a barrier
 * and a record behind them, and the first step of the new layout, which reads
 * all its pages and writes into any one that the new tables leave free. A rank
 * may die at any point (at most CRASHES times), in the middle of a copy too;
 * its memory stays. All halt, and go on behind the highest record.
 *
 * Abstracted: the barrier's words and rounds are those of layer_copy.pml, in
 * short form; memory that is lost takes its pages with it, and then the
 * sequences are computed anew, so that is not here.
 *
 * What must hold: no pull meets a page that does not hold what the plan says; a
 * step finds all its pages right; every run ends.
 *
 * @safety   two ranks, one death: -DN=2 -DCRASHES=1
 * @safety   two ranks, two deaths: -DN=2 -DCRASHES=2
 * @safety   three ranks, a page with two readers: -DN=3 -DCRASHES=1 -DMAX_WAVES=3 -DLOWEST_PAGE_FIRST
 * @termination two ranks, one death: -DN=2 -DCRASHES=1
 *
 * @mutation DESTINATION_NOT_FREE: -DCRASHES=0 => a_pull_met_a_wrong_page
 *   A plan may name a page whose own content has yet to be copied.
 * @mutation SOURCE_FREED_BEFORE_BARRIER: -DCRASHES=0 => a_pull_met_a_wrong_page
 *   A page is free for the wave in which it is read, not from the next on.
 * @mutation NO_BARRIER: -DCRASHES=0 => a_pull_met_a_wrong_page
 *   Wave follows wave without waiting for the others.
 * @mutation NO_FIRST_BARRIER: -DCRASHES=0 => a_pull_met_a_wrong_page
 *   A page is read before its owner has done the last step of the old layout.
 * @mutation FLIP_BEFORE_BARRIER: -DCRASHES=0 => a_pull_met_a_wrong_page
 *   The tables flip when the copies are complete here. The next step writes
 *   into a page that a slower rank is still to read.
 * @mutation RECORD_BEFORE_BARRIER: -DCRASHES=1 => a_pull_met_a_wrong_page | a_step_found_a_wrong_page
 *   A wave counts as done everywhere when it is done here.
 * @mutation REDO_ONE_WAVE_TOO_EARLY: -DCRASHES=1 => a_pull_met_a_wrong_page
 *   A wave is done again whose sources the next one has overwritten.
 * @mutation REDO_ONE_WAVE_TOO_LATE: -DCRASHES=1 => a_pull_met_a_wrong_page | a_step_found_a_wrong_page
 *   The wave in flight is taken as done.
 */
#ifndef N
#define N 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef MAX_WAVES
#define MAX_WAVES 4
#endif

/* What must never be. Always false; the names are seen when an assertion
 * fails. */
bool a_pull_met_a_wrong_page, a_step_found_a_wrong_page;

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#if N == 2
#define ALL(f) (f(0) && f(1))
#define FOLD(f, a) f(a[0], a[1])
#else
#define ALL(f) (f(0) && f(1) && f(2))
#define FOLD(f, a) f(a[0], f(a[1], a[2]))
#endif

/* ---- pages ----------------------------------------------------------- */

#define P 4 /* of a rank */
#define PAGE(rank, page) ((rank) * P + (page))
/* Contents: a block's number, or one of these. */
#define NOTHING 0 /* or torn */
#define OTHERS 99 /* written by the step after the switch */
byte content[N * P];

/* The moves: a block, where it lies, who wants it; and, as planned, where to
 * and in which wave. */
#if N == 2
#define MOVES 4
#else
#define MOVES 5
#endif
byte block[MOVES], source[MOVES], reader[MOVES];
byte target[MOVES], wave_of[MOVES];
byte waves;
byte tail[N]; /* the page that the last old step of the rank completes */
byte tail_block[N];
bool stays[N * P];

/* ---- the plan -------------------------------------------------------- */

bool is_free[N * P];
byte readers[N * P];
#define UNPLANNED 255

inline lie(rank, page, what) {
  content[PAGE(rank, page)] = what;
  is_free[PAGE(rank, page)] = false
}

inline want(move, what, from_rank, from_page, rank) {
  block[move] = what; source[move] = PAGE(from_rank, from_page);
  reader[move] = rank; wave_of[move] = UNPLANNED;
  readers[PAGE(from_rank, from_page)]++
}

/* Who lies where, and who wants what: more than there is room for at once. */
inline begin_situation() {
  for (i : 0 .. N * P - 1) { is_free[i] = true };
#if N == 2
  /* Both ranks give two blocks to each other; a page of rank 0 stays. */
  lie(0, 0, 1); lie(0, 1, 2); lie(0, 2, 9); stays[PAGE(0, 2)] = true;
  lie(1, 0, 3); lie(1, 1, 4); lie(1, 2, 8); stays[PAGE(1, 2)] = true;
  want(0, 1, 0, 0, 1); want(1, 2, 0, 1, 1);
  want(2, 3, 1, 0, 0); want(3, 4, 1, 1, 0);
  tail[0] = PAGE(0, 0); tail_block[0] = 1;
  tail[1] = PAGE(1, 1); tail_block[1] = 4;
#else
  /* Block 1 goes to both other ranks. */
  lie(0, 0, 1); lie(0, 1, 2); lie(0, 2, 9); stays[PAGE(0, 2)] = true;
  lie(1, 0, 3); lie(1, 1, 7); stays[PAGE(1, 1)] = true;
  lie(1, 2, 8); stays[PAGE(1, 2)] = true;
  lie(2, 0, 4); lie(2, 1, 6); stays[PAGE(2, 1)] = true;
  want(0, 1, 0, 0, 1); want(1, 1, 0, 0, 2); want(2, 2, 0, 1, 2);
  want(3, 3, 1, 0, 0); want(4, 4, 2, 0, 0);
  tail[0] = PAGE(0, 0); tail_block[0] = 1;
  tail[1] = PAGE(1, 0); tail_block[1] = 3;
  tail[2] = PAGE(2, 0); tail_block[2] = 4;
#endif
  i = 0
}

#ifdef DESTINATION_NOT_FREE
#define MAY_TAKE(p) (is_free[PAGE(reader[m], p)] || readers[PAGE(reader[m], p)])
#else
#define MAY_TAKE(p) is_free[PAGE(reader[m], p)]
#endif
#ifdef LOWEST_PAGE_FIRST /* not every plan, but the ones that reuse most */
#define LOWER(p, than) (p < than && MAY_TAKE(p))
#define TAKES(than) \
  (MAY_TAKE(than) && !LOWER(0, than) && !LOWER(1, than) && !LOWER(2, than))
#else
#define TAKES(p) MAY_TAKE(p)
#endif

inline release(page) { /* one of its readers is served */
  readers[page]--;
  if :: readers[page] == 0 && !stays[page] -> is_free[page] = true :: else fi
}

inline place(p) {
  target[m] = PAGE(reader[m], p); wave_of[m] = waves;
  is_free[target[m]] = false;
#ifdef SOURCE_FREED_BEFORE_BARRIER
  release(source[m]);
#endif
  left--; placed = true
}

/* Any plan that keeps the rules. Whatever is free after it is so in the new
 * tables. */
inline plan() {
  do
  :: left == 0 -> break
  :: else ->
     placed = false;
     for (m : 0 .. MOVES - 1) {
       if
       :: wave_of[m] == UNPLANNED && TAKES(0) -> place(0)
       :: wave_of[m] == UNPLANNED && TAKES(1) -> place(1)
       :: wave_of[m] == UNPLANNED && TAKES(2) -> place(2)
       :: wave_of[m] == UNPLANNED && TAKES(3) -> place(3)
       :: true /* not in this wave */
       fi
     };
     if :: !placed || waves == MAX_WAVES -> goto no_plan :: else fi;
#ifndef SOURCE_FREED_BEFORE_BARRIER
     for (m : 0 .. MOVES - 1) {
       if :: wave_of[m] == waves -> release(source[m]) :: else fi
     };
#endif
     waves++
  od
}

/* ---- a rank ---------------------------------------------------------- */

byte crashes = CRASHES;
byte arrived[N], record[N]; /* outlive a worker */
bool coming[N];             /* will go on to the next barrier */
bool stopped[N], done[N];   /* halted or dead; has done the step */
bool go[N];                 /* Resume, with these: */
byte next_barrier = 1, waves_done;

#define OR_DIE :: atomic { crashes > 0 -> crashes--; goto stop }
#define ARRIVED(r) (arrived[r] >= number)
#define WILL_COME(r) (ARRIVED(r) || coming[r])

inline wait() {
  arrived[me] = number;
  if
#ifdef NO_BARRIER
  :: atomic { number > 1 -> number++ }
#endif
#ifdef NO_FIRST_BARRIER
  :: atomic { number == 1 -> number++ }
#endif
  :: atomic { ALL(ARRIVED) -> number++ }
  :: atomic { !ALL(ARRIVED) && !ALL(WILL_COME) -> goto stop }
  OR_DIE
  fi
}

#define MINE (wave_of[m] == wave && reader[m] == me)
inline next_move() { /* m, or MOVES when there is none left in this wave */
  do
  :: m < MOVES && !MINE -> m++
  :: m < MOVES && MINE -> break
  :: m == MOVES -> break
  od
}

inline pull() { /* move m */
  assert(content[source[m]] == block[m] || a_pull_met_a_wrong_page);
  content[target[m]] = block[m];
  m++
}

inline find_pages() { /* as the new tables name them */
  for (m : 0 .. MOVES - 1) {
    assert(reader[m] != me || content[target[m]] == block[m] ||
           a_step_found_a_wrong_page)
  };
  for (m : 0 .. P - 1) {
    assert(!stays[PAGE(me, m)] || (content[PAGE(me, m)] != NOTHING &&
                                   content[PAGE(me, m)] != OTHERS) ||
           a_step_found_a_wrong_page)
  };
  m = 0
}

proctype Worker(byte me) {
  byte number = 1, wave, m;
  content[tail[me]] = tail_block[me]; /* the last step before the boundary */
  goto copy;

stop:
  atomic {
    coming[me] = false; go[me] = false; done[me] = false; stopped[me] = true;
    number = 0; wave = 0; m = 0
  }
listen:
end_listen:
  if
  :: atomic { go[me] ->
       go[me] = false;
       number = next_barrier; wave = waves_done
     }
  OR_DIE
  fi;

copy:
  wait();
  do
  :: wave < waves ->
     do
     :: atomic {
          next_move();
          if
          :: m < MOVES -> content[target[m]] = NOTHING
          :: else -> m = 0; break
          fi
        };
        if
        :: atomic { pull() }
        OR_DIE
        fi
     OR_DIE
     od;
     wave++;
#ifdef RECORD_BEFORE_BARRIER
     record[me] = wave;
#endif
#ifdef FLIP_BEFORE_BARRIER
     if :: wave == waves -> break :: else fi;
#endif
     wait();
     if
     :: record[me] = wave
     OR_DIE
     fi
  :: wave == waves -> break
  od;

  /* The first step in the new layout. */
  atomic { find_pages() };
  if
  :: is_free[PAGE(me, 0)] -> content[PAGE(me, 0)] = OTHERS
  :: is_free[PAGE(me, 1)] -> content[PAGE(me, 1)] = OTHERS
  :: is_free[PAGE(me, 2)] -> content[PAGE(me, 2)] = OTHERS
  :: is_free[PAGE(me, 3)] -> content[PAGE(me, 3)] = OTHERS
  OR_DIE
  fi;
  wait();
  atomic { coming[me] = false; done[me] = true; number = 0; wave = 0 }
  goto listen
}

/* ---- the coordinator ------------------------------------------------- */

#define STOPPED(r) stopped[r]
#define AT_REST(r) (stopped[r] || done[r])
#define DONE(r) done[r]

proctype Coordinator() {
  byte r;
  do
  :: atomic { ALL(AT_REST) && !ALL(DONE) ->
       next_barrier = 1 + FOLD(MAX, arrived);
       waves_done = FOLD(MAX, record);
#ifdef REDO_ONE_WAVE_TOO_EARLY
       if :: waves_done > 0 -> waves_done-- :: else fi;
#endif
#ifdef REDO_ONE_WAVE_TOO_LATE
       if :: waves_done < waves -> waves_done++ :: else fi;
#endif
       for (r : 0 .. N - 1) {
         stopped[r] = false; done[r] = false; coming[r] = true; go[r] = true
       };
       r = 0
     }
  :: ALL(DONE) -> break
  od
}

init {
  byte i, m, left = MOVES;
  bool placed;
  atomic {
    begin_situation();
    plan();
    for (i : 0 .. N - 1) {
      content[tail[i]] = NOTHING;
      coming[i] = true;
      run Worker(i)
    };
    i = 0; m = 0; placed = false;
    run Coordinator()
  }
no_plan:
  skip
}
