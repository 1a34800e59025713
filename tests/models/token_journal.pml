/* Tokens between the journal and the clients: what is sent, what survives a
 * coordinator, what a client sees that comes back.
 *
 * Stands for: coordinator/journal, EngineHost::CommitAndDeliver and Attach, the
 * streams of coordinator/api with Last-Event-ID and idempotency keys, and
 * Scheduler::RollBack, after which a token without a record is drawn again.
 *
 * One request with TOKENS tokens and an idempotency key; two connections bring
 * it, maybe of two clients, maybe of one that has given the first up. Workers
 * draw tokens ahead of the journal. The coordinator appends records (the
 * request; its tokens in order; that it has finished), syncs several at a time,
 * tells clients that their request is accepted, and sends the token at index i
 * as event i. A connection may break (BREAKS times in all), with what is under
 * way in it; the client comes back with the key and the index of the last event
 * that it has. The coordinator may die
 * (CRASHES times) at any point; that takes its memory, all connections and, of
 * the records that are not synced, any number from the end. The first of those
 * may remain as a torn one. Its successor reads the journal, cuts the torn
 * record off, syncs, and goes on behind the last token in it.
 *
 * Abstracted: a token is one of two values, drawn freely each time, so what is
 * shown does not even need that workers draw the same again. (They do, unless
 * numerics are fast. With -DEXACT they do here, and then SEND_BEFORE_JOURNAL
 * does no harm that this model sees.) A second generation for the key is not
 * followed any further: that it begins is the violation. Two coordinators are in switch_commit.pml.
 *
 * What must hold: a client sees every token once, in order, and the end behind
 * the last; what it then holds is what the journal holds, so two clients hold
 * the same; there is one generation; a request once accepted is never forgotten;
 * every run ends, with both clients served.
 *
 * @safety   two crashes, two breaks: -DTOKENS=3 -DCRASHES=2 -DBREAKS=2
 * @termination two crashes, a break: -DTOKENS=2 -DCRASHES=2 -DBREAKS=1
 *
 * @mutation ACCEPT_BEFORE_SYNC: -DCRASHES=1 -DBREAKS=0 => a_request_was_forgotten
 *   A client is told that its request is accepted before that is synced.
 * @mutation SEND_BEFORE_JOURNAL: -DCRASHES=1 -DBREAKS=0 => a_client_holds_what_the_journal_does_not | a_token_came_out_of_order
 *   A token is sent when it is drawn; its record comes later.
 * @mutation SEND_BEFORE_SYNC: -DCRASHES=1 -DBREAKS=0 => a_client_holds_what_the_journal_does_not | a_token_came_out_of_order
 *   A token is sent when its record is written, before it is synced.
 * @mutation RESUME_WITH_ID: -DCRASHES=0 -DBREAKS=1 => a_token_came_out_of_order
 *   A client that comes back with Last-Event-ID i is sent i once more.
 * @mutation RESUME_AT_THE_NEWEST: -DCRASHES=0 -DBREAKS=1 => a_token_came_out_of_order | the_end_came_too_early
 *   A client that comes back is sent what comes from now on.
 * @mutation DUPLICATE_STARTS_ANOTHER: -DCRASHES=0 -DBREAKS=1 => there_are_two_generations
 *   The key is not looked at.
 * @mutation KEY_LOOKED_UP_IN_JOURNAL: -DCRASHES=0 -DBREAKS=0 => there_are_two_generations
 *   The key of a request counts from its record on, not from its arrival.
 * @mutation TORN_RECORD_ACCEPTED: -DCRASHES=1 -DBREAKS=0 => a_client_saw_a_torn_record
 *   The successor takes the torn record for a token.
 * @mutation TORN_TAIL_NOT_CUT: -DCRASHES=2 -DBREAKS=0 => a_client_holds_what_the_journal_does_not | a_token_came_out_of_order | a_request_was_forgotten
 *   It skips the torn record and appends behind it. Its own successor stops
 *   reading there.
 * @mutation RECOVERY_WITHOUT_SYNC: -DCRASHES=2 -DBREAKS=0 => a_client_holds_what_the_journal_does_not | a_token_came_out_of_order | a_request_was_forgotten
 *   It sends what it has read, which may have been written but not synced.
 * @mutation FINISH_BEFORE_LAST_TOKEN: -DCRASHES=1 -DBREAKS=0 => the_end_came_too_early
 *   The record that the request has finished is written before that of its last
 *   token.
 */
#ifndef TOKENS
#define TOKENS 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef BREAKS
#define BREAKS 1
#endif

/* What must never be. Always false; the names are seen when an assertion
 * fails. */
bool a_token_came_out_of_order, a_client_saw_a_torn_record,
    a_client_holds_what_the_journal_does_not, the_end_came_too_early,
    there_are_two_generations, a_request_was_forgotten;

byte crashes = CRASHES, breaks = BREAKS;

/* ---- the journal ----------------------------------------------------- */

#define REQUEST 1
#define TOKEN 2    /* + its value, 0 or 1 */
#define TORN 4     /* looks like a token with value 2 */
#define FINISHED 5
#ifdef TORN_TAIL_NOT_CUT
#define ROOM (2 * TOKENS + 6)
#else
#define ROOM (TOKENS + 2)
#endif
byte journal[ROOM];
byte written, synced;

/* ---- the coordinator's memory ---------------------------------------- */

bool up = true;
bool known;                            /* the key */
byte drawn, token[TOKENS];
bool requested, finished;              /* recorded, as are */
byte recorded;                         /* so many tokens. What is synced: */
bool accepted, closed;
byte trusted;

/* ---- clients and their connections ----------------------------------- */

chan stream[2] = [2] of { byte, byte }; /* index and value of a token, or END */
#define END 9
bool asks[2], attached[2];              /* the request is sent; answered */
byte next_to_send[2];
bool end_sent[2];

bool promised;                          /* a client was told 200 */
byte seen[2];                           /* how many tokens the client has, */
byte got[2 * TOKENS];                   /* and which */
#define GOT(c, index) got[(c) * TOKENS + (index)]

inline hang_up(c) {
  asks[c] = false; attached[c] = false; next_to_send[c] = 0;
  end_sent[c] = false;
  do
  :: nempty(stream[c]) -> stream[c] ? _, _
  :: empty(stream[c]) -> break
  od
}

inline check_answers() { /* all that clients have */
  for (index : 0 .. 2 * TOKENS - 1) {
    assert(index % TOKENS >= seen[index / TOKENS] ||
           got[index] == token[index % TOKENS] ||
           a_client_holds_what_the_journal_does_not)
  }
}

proctype Client(byte c) {
  byte index, value;
  do
  :: atomic { up && !asks[c] && !attached[c] -> asks[c] = true }
  :: atomic { (asks[c] || attached[c]) && breaks > 0 -> breaks--; hang_up(c) }
  :: atomic { stream[c] ? index, value ->
       if
       :: index == END ->
          assert(seen[c] == TOKENS || the_end_came_too_early);
          check_answers();
          index = 0; value = 0;
          hang_up(c);
          break
       :: else ->
          assert(index == seen[c] || a_token_came_out_of_order);
          assert(value < 2 || a_client_saw_a_torn_record);
          GOT(c, index) = value;
          seen[c]++;
          index = 0; value = 0
       fi
     }
  od
}

/* ---- the coordinator ------------------------------------------------- */

#ifdef DUPLICATE_STARTS_ANOTHER
#define OLD_KEY false
#elif defined(KEY_LOOKED_UP_IN_JOURNAL)
#define OLD_KEY accepted
#else
#define OLD_KEY known
#endif

inline answer(c) { /* a request with the key, and seen[c] as Last-Event-ID */
  asks[c] = false; attached[c] = true;
  next_to_send[c] = seen[c];
#ifdef RESUME_WITH_ID
  if :: seen[c] > 0 -> next_to_send[c] = seen[c] - 1 :: else fi;
#endif
#ifdef RESUME_AT_THE_NEWEST
  if :: seen[c] > 0 -> next_to_send[c] = trusted :: else fi;
#endif
  if
  :: OLD_KEY
  :: else ->
     assert(!known || there_are_two_generations);
     known = true
  fi
}

#ifdef ACCEPT_BEFORE_SYNC
#define ACCEPTABLE known
#else
#define ACCEPTABLE accepted
#endif
#ifdef SEND_BEFORE_JOURNAL
#define SENDABLE drawn
#elif defined(SEND_BEFORE_SYNC)
#define SENDABLE recorded
#else
#define SENDABLE trusted
#endif
#define CAN_SEND(c) \
  (accepted && attached[c] && next_to_send[c] < SENDABLE && nfull(stream[c]))
#define CAN_END(c)                                                 \
  (attached[c] && !end_sent[c] && closed && nfull(stream[c]) &&    \
   next_to_send[c] == drawn)

inline send(c) {
  stream[c] ! next_to_send[c], token[next_to_send[c]];
  next_to_send[c]++
}

inline append(record) {
  journal[written] = record;
  written++
}

inline trust() { /* what is recorded may be sent */
  accepted = requested; trusted = recorded; closed = finished
}

inline die() {
  up = false; known = false; drawn = 0;
  requested = false; recorded = 0; finished = false;
  trust();
  for (i : 0 .. TOKENS - 1) { token[i] = 0 };
  hang_up(0); hang_up(1);
  /* The end of what is not synced is lost; the first of it may be torn. */
  i = 0;
  do
  :: written > synced -> written--; journal[written] = 0; i = 1
  :: true -> break
  od;
  if
  :: i == 1 -> append(TORN)
  :: true
  fi;
  i = 0
}

inline restart() {
  for (i : 0 .. ROOM - 1) {
    if
    :: i >= written -> break
#ifdef TORN_RECORD_ACCEPTED
    :: i < written && journal[i] == TORN &&
       (!requested || recorded == TOKENS) ->
       written = i; break
#else
    :: i < written && journal[i] == TORN ->
#ifndef TORN_TAIL_NOT_CUT
       journal[i] = 0; written = i;
#endif
       break
#endif
    :: i < written && journal[i] == REQUEST -> requested = true
    :: i < written && journal[i] == FINISHED -> finished = true
    :: else -> token[recorded] = journal[i] - TOKEN; recorded++
    fi
  };
  i = 0;
  assert(requested || !promised || a_request_was_forgotten);
  known = requested; drawn = recorded;
#ifndef RECOVERY_WITHOUT_SYNC
  synced = written;
#endif
  trust();
  up = true
}

#ifdef FINISH_BEFORE_LAST_TOKEN
#define MAY_FINISH (recorded == TOKENS - 1 && drawn == TOKENS)
#else
#define MAY_FINISH (recorded == TOKENS)
#endif

proctype Coordinator() {
  byte i;
end_serve:
  do
  :: atomic { up && asks[0] -> answer(0) }
  :: atomic { up && asks[1] -> answer(1) }
  :: atomic { known && drawn < TOKENS && !finished -> /* by the workers */
       if
       :: token[drawn] = 0
#ifndef EXACT
       :: token[drawn] = 1
#endif
       fi;
       drawn++
     }
  :: atomic { known && !requested -> append(REQUEST); requested = true }
  :: atomic { requested && recorded < drawn ->
       append(TOKEN + token[recorded]);
       recorded++
     }
  :: atomic { requested && MAY_FINISH && !finished ->
       append(FINISHED);
       finished = true
     }
  :: atomic { up && synced < written -> synced = written; trust() }
  :: atomic { (attached[0] || attached[1]) && ACCEPTABLE && !promised ->
       promised = true
     }
  :: atomic { CAN_SEND(0) -> send(0) }
  :: atomic { CAN_SEND(1) -> send(1) }
  :: atomic { CAN_END(0) -> stream[0] ! END, 0; end_sent[0] = true }
  :: atomic { CAN_END(1) -> stream[1] ! END, 0; end_sent[1] = true }
  :: atomic { up && crashes > 0 -> crashes--; die() }
  :: atomic { !up -> restart() }
  od
}

init {
  atomic { run Client(0); run Client(1); run Coordinator() }
}
