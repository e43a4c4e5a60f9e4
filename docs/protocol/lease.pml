/*
 * The lease protocol of wds, as a model for Spin (https://spinroot.com).
 *
 * MongoDB holds one document for each delivery. Dispatchers claim deliveries, send them and
 * settle them. An operator replays and cancels. A clock moves time on. A network keeps writes
 * that nobody waits for any more, and may carry them out later.
 *
 * A process may stop between any two steps, for any time. It may crash at any step and start
 * again with an empty memory. Any write may have an unknown outcome.
 *
 * README.md beside this file says how to run it, what is left out, and which function of the
 * code does each step. A step is an `inline` or a label that the README's table names.
 *
 * Steps of the database are inside `d_step` or `atomic`: MongoDB changes one document in one
 * write, or not at all. Everything else interleaves.
 *
 * Each guard of the protocol can be taken out by a definition: WITHOUT_FENCE and so on. Spin
 * must then find an error.
 */

/* -- Bounds -------------------------------------------------------------------------------- */

#ifndef DELIVERIES
#define DELIVERIES 1
#endif
#ifndef MAX_ATTEMPTS
#define MAX_ATTEMPTS 3 /* WDS_MAX_ATTEMPTS */
#endif
#ifndef REPLAYS
#define REPLAYS 1 /* Replays that the operator asks for, of each delivery: 0 or 1. */
#endif
#ifndef CANCELS
#define CANCELS 1 /* Cancels that the operator asks for, of each delivery: 0 or 1. */
#endif
#ifndef STRAYS
#define STRAYS 1 /* Writes that went astray and may still be carried out: 0 or 1. */
#endif
#define DISPATCHERS 2

/* Times, in ticks of the database's clock. */
#ifndef LEASE
#define LEASE 2 /* WDS_LEASE */
#endif
#define NEEDED 2 /* WDS_REQUEST_TIMEOUT and the margin for settling; must exceed DRIFT. */
#define DRIFT 1  /* Ticks by which a dispatcher's clock may fall behind during one lease. */
#define DELAY 1  /* WDS_BACKOFF: from a failure to the next attempt. */

/*
 * Safety holds however often things go wrong. That every delivery ends can only be true if they
 * do not go wrong for ever. With LIVENESS each kind of fault has a budget.
 */
#ifdef LIVENESS
#ifndef CRASHES
#define CRASHES 1 /* Crashes while no request is under way. */
#endif
#ifndef LOSSES
#define LOSSES 1 /* Writes of unknown outcome. */
#endif
#ifndef STALLS
#define STALLS 3 /* Ticks that pass while a dispatcher has a step to make. */
#endif
#ifndef DEFERRALS
#define DEFERRALS 1 /* Claims for which the rate limit has no slot. */
#endif
byte crashes = CRASHES;
byte losses = LOSSES;
byte stalls = STALLS;
byte deferrals = DEFERRALS;
#define MAY(budget) (budget > 0)
#define USE(budget) budget--
#else
#define MAY(budget) true
#define USE(budget) skip
#endif

/* -- The database -------------------------------------------------------------------------- */

#define RECEIVED 0
#define DELIVERING 1
#define DELIVERED 2
#define FAILED_PERMANENTLY 3

/* One document in the collection `events`. */
typedef Document {
  byte status;
  byte attempt_count;   /* Attempts begun; counted by the claim. */
  byte attempts_before; /* `attempt_count` at the last replay. */
  byte attempts;        /* Length of the list of recorded attempts. */
  bit last_success;     /* Whether the last recorded attempt succeeded. */
  bit live;             /* Whether `next_attempt_at` exists. */
  byte due_in;          /* Ticks until `next_attempt_at`; 0: due. While leased: until expiry. */
  byte token;           /* Of the lease; 0: none. */
  bit cancelling;
  bit finished;         /* Whether `finished_at` exists. */
  bit replayed;         /* Whether the replay's request id is in `history`. */
  bit cancelled;        /* Whether the cancel's request id is in `history`. */
};
Document document[DELIVERIES];

/* Not in the code: what the properties are judged by. */
typedef Witness {
  byte lease_left; /* Ticks that the last lease granted may still be relied on. */
  bit sent;        /* A request with the number `attempt_count` has left. */
  bit stopped;     /* A cancel was carried out and no replay since. */
};
Witness witness[DELIVERIES];

/* -- The dispatchers ----------------------------------------------------------------------- */

#define NOTHING 0
#define CLAIM 1
#define DEFER 2
#define RETRY 3
#define FINISH 4
#define CANCEL 5

/* What a claim brought of one delivery. */
typedef Hand {
  bit held;
  byte number;  /* `attempt_number` */
  bit last_try; /* The schedule has no attempt after this one. */
};
/* The memory of one dispatcher; gone when it crashes. */
typedef Memory {
  byte token;   /* Of its claim; 0: none. */
  byte trust;   /* Ticks until its own clock says that the lease is over. */
  Hand hand[DELIVERIES];
  byte current; /* The delivery that it sends or settles. */
  byte end;     /* How it ends the claim: DEFER, RETRY, FINISH, CANCEL. */
  bit success;  /* The answer of the destination. */
  bit busy;     /* It has a step to make and is not waiting for the destination or for work. */
  bit dead;     /* It crashed and will not start again. */
  bit on_record; /* What a read of `attempts` shows: the current number, with a known outcome. */
  bit written;   /* Witness: a write of this dispatcher recorded the current attempt. */
};
Memory memory[DISPATCHERS];

/* A write whose answer nobody waits for any more; MongoDB may yet carry it out. */
typedef Write {
  byte kind;
  byte delivery;
  byte token;
  byte number;
  bit success;
};
Write late;

/*
 * The code draws tokens at random. Here they have names, so that situations that differ only in
 * names are one state: a dispatcher's current claim has OWN(p), a lease or write whose
 * dispatcher has forgotten it has ORPHAN, a claim that went astray has STRAY.
 */
#define OWN(p) (p + 1)
#define ORPHAN (DISPATCHERS + 1)
#define STRAY (DISPATCHERS + 2)

byte i, j; /* Counters; 0 between steps. */
bit matched; /* The answer of `end_claim`; 0 between steps. */

/* -- Predicates ---------------------------------------------------------------------------- */

/* `next_attempt_at <= $$NOW`, in the claim's own write. */
#define DUE(d) (document[d].live && document[d].due_in == 0)
/* The same by the clock of a dispatcher that is fast. */
#define DUE_BY_OWN_CLOCK(d) (document[d].live && document[d].due_in <= 1)
#ifdef WITHOUT_DATABASE_CLOCK
#define CLAIMABLE(d) DUE_BY_OWN_CLOCK(d)
#else
#ifdef WITHOUT_EXPIRY
#define CLAIMABLE(d) (DUE(d) && document[d].token == 0)
#else
#define CLAIMABLE(d) DUE(d)
#endif
#endif
#define USED_UP(d) (document[d].attempt_count - document[d].attempts_before >= MAX_ATTEMPTS)

#ifdef WITHOUT_FENCE
#define FENCE(d, t) true
#else
#define FENCE(d, t) (document[d].token == t)
#endif
#ifdef WITHOUT_CANCELLING
#define MAY_RETRY(d) true
#else
#define MAY_RETRY(d) (!document[d].cancelling)
#endif

#ifdef WITHOUT_REQUEST_ID
#define NEW_REPLAY(d) true
#else
#define NEW_REPLAY(d) (!document[d].replayed)
#endif
#ifdef WITHOUT_LEASE_IN_REPLAY
#define REPLAYABLE(d) true
#else
#define REPLAYABLE(d) (document[d].token == 0)
#endif
/* There is something to replay: the delivery is final, or it was attempted since the last replay. */
#define WANTS_REPLAY(d) (NEW_REPLAY(d) && REPLAYABLE(d) && \
  (!document[d].live || document[d].attempt_count > document[d].attempts_before))
#define WANTS_CANCEL(d) (!document[d].cancelled && document[d].live && !document[d].cancelling)

#if DELIVERIES == 1
#define ANY_CLAIMABLE CLAIMABLE(0)
#else
#define ANY_CLAIMABLE (CLAIMABLE(0) || CLAIMABLE(1))
#endif

#ifdef WITHOUT_CLAIM_READ_BACK
#define HOLDS(p, d) true
#else
#define HOLDS(p, d) (document[d].token == memory[p].token)
#endif
#ifdef WITHOUT_READ_BACK
#define ON_RECORD(p) 0
#else
#define ON_RECORD(p) memory[p].on_record
#endif

#ifdef WITHOUT_TRUST_WINDOW
#define TRUSTED(p) true
#else
#define TRUSTED(p) (memory[p].trust >= NEEDED)
#endif

/* -- What must be true of a document after every write ------------------------------------- */

/* Each line is an invariant of `wds.domain.invariants`, by its name there. */
inline check(D) {
  assert(/* live */ document[D].live == (document[D].status <= DELIVERING));
  assert(/* finished */ document[D].finished == !document[D].live);
  assert(/* lease */ document[D].token == 0 || document[D].status == DELIVERING);
#ifdef WITHOUT_COUNT
  assert(/* count */ document[D].attempt_count == document[D].attempts);
#else
  assert(/* count */ document[D].attempt_count ==
    document[D].attempts + (document[D].token != 0));
#endif
  assert(/* limit */ document[D].attempt_count - document[D].attempts_before <= MAX_ATTEMPTS);
  assert(/* untouched */ document[D].status != RECEIVED || document[D].attempts == 0);
  assert(/* success */ document[D].live ||
    document[D].last_success == (document[D].status == DELIVERED));
  assert(/* cancelling */ !document[D].cancelling || document[D].token != 0)
}

/* A late write that can match nothing any more is dropped: with the fence it changes nothing. */
inline drop_stale(D) {
#ifndef WITHOUT_FENCE
  if
  :: late.kind >= DEFER && late.delivery == D && late.token != document[D].token -> clear_late()
  :: else
  fi
#else
  skip
#endif
}

inline clear_late() {
  late.kind = NOTHING;
  late.delivery = 0;
  late.token = 0;
  late.number = 0;
  late.success = 0
}

/* -- Writes, each to one document ---------------------------------------------------------- */

/* Append an attempt. `p` looks for its own number; whether it is there is all it learns. */
inline record(D, N, OK, KNOWN) {
  assert(/* numbers */ N == document[D].attempts + 1);
  document[D].attempts++;
  document[D].last_success = OK;
  j = 0;
  do
  :: j < DISPATCHERS ->
    if
    :: KNOWN && memory[j].end >= RETRY && memory[j].current == D &&
      memory[j].hand[D].number == N -> memory[j].on_record = 1
    :: else
    fi;
    j++
  :: else -> j = 0; break
  od
}

/* A dead holder's attempt is recorded as unknown, in the write that takes the delivery over. */
inline expire(D) {
#if !defined(WITHOUT_UNKNOWN) && !defined(WITHOUT_COUNT)
  record(D, document[D].attempt_count, 0, 0)
#else
  skip
#endif
}

/* The delivery ends: no attempt is left, or it was cancelled while it was leased. */
inline bury(D) {
  document[D].status = FAILED_PERMANENTLY;
  document[D].live = 0;
  document[D].due_in = 0;
  document[D].token = 0;
  document[D].finished = 1;
  witness[D].lease_left = 0
}

inline lease(D, T) {
  assert(/* one live lease */ witness[D].lease_left == 0);
  assert(/* cancelled means no further attempt */ !witness[D].stopped);
  assert(/* a request to replay acts once */
    document[D].attempt_count < MAX_ATTEMPTS * (1 + REPLAYS));
  document[D].status = DELIVERING;
#ifndef WITHOUT_COUNT
  document[D].attempt_count++;
  witness[D].sent = 0;
#endif
  document[D].token = T;
  document[D].due_in = LEASE;
  witness[D].lease_left = LEASE
}

/* Lease a due delivery, or bury it. Nothing, if it is not due. */
inline claim(D, T) {
  d_step {
    if
    :: CLAIMABLE(D) ->
      if
      :: document[D].token != 0 -> expire(D)
      :: else
      fi;
      if
      :: USED_UP(D) || document[D].cancelling -> bury(D)
      :: else -> lease(D, T)
      fi;
      document[D].cancelling = 0;
      check(D);
      drop_stale(D)
    :: else
    fi
  }
}

/* Return the lease; part of every write that ends a claim. */
inline give_back(D) {
  document[D].token = 0;
  document[D].due_in = 0;
  witness[D].lease_left = 0
}

/* Undo a claim: due as before, the attempt not counted. */
inline defer(D) {
#ifndef WITHOUT_COUNT
  document[D].attempt_count--;
  assert(/* what was sent is not deferred */ !witness[D].sent);
#endif
  give_back(D);
  if
  :: document[D].cancelling -> end_by_last_attempt(D)
  :: else -> document[D].status = (document[D].attempts == 0 -> RECEIVED : DELIVERING)
  fi
}

/* Record a failure; the delivery waits for its next attempt. */
inline retry(D, N) {
  record(D, N, 0, 1);
  give_back(D);
  document[D].due_in = DELAY
}

/* Record the last attempt; the delivery ends with it. */
inline finish(D, N, OK) {
  record(D, N, OK, 1);
  give_back(D);
  document[D].status = (OK -> DELIVERED : FAILED_PERMANENTLY);
  document[D].live = 0;
  document[D].finished = 1;
  document[D].cancelling = 0
}

/* End a delivery between attempts. */
inline end_by_last_attempt(D) {
  document[D].status =
    (document[D].attempts > 0 && document[D].last_success -> DELIVERED : FAILED_PERMANENTLY);
  document[D].live = 0;
  document[D].due_in = 0;
  document[D].finished = 1;
  document[D].cancelling = 0
}

/*
 * The write that ends a claim, whoever's it is and however late. The fence decides. `matched`
 * is what MongoDB would answer.
 */
inline end_claim(KIND, D, T, N, OK) {
  d_step {
    matched = FENCE(D, T) && (KIND != RETRY || MAY_RETRY(D)) &&
      (KIND != CANCEL || document[D].cancelling);
    if
    :: matched ->
#ifdef WITHOUT_COUNT
      if
      :: KIND >= RETRY -> document[D].attempt_count++; witness[D].sent = 0
      :: else
      fi;
#endif
      if
      :: KIND == DEFER -> defer(D)
      :: KIND == RETRY -> retry(D, N)
      :: KIND == FINISH || KIND == CANCEL -> finish(D, N, OK)
      fi;
      check(D);
      i = 0;
      do
      :: i < DISPATCHERS ->
        if
        :: KIND >= RETRY && memory[i].end >= RETRY && memory[i].token == T &&
          memory[i].current == D -> memory[i].written = 1
        :: else
        fi;
        i++
      :: else -> i = 0; break
      od;
      drop_stale(D)
    :: else
    fi
  }
}

/* -- The operator's writes ----------------------------------------------------------------- */

/* Due at once, with the whole schedule; its attempts stay on record. */
inline replay(D) {
  d_step {
    document[D].status = (document[D].attempts == 0 -> RECEIVED : DELIVERING);
    document[D].attempts_before = document[D].attempt_count;
    document[D].live = 1;
    document[D].due_in = 0;
    document[D].finished = 0;
    document[D].replayed = 1;
    witness[D].stopped = 0;
    check(D)
  }
}

/* A waiting delivery ends; a leased one is marked, and ends with its lease. */
inline cancel(D) {
  d_step {
    document[D].cancelled = 1;
    witness[D].stopped = 1;
    if
    :: document[D].token != 0 -> document[D].cancelling = 1
    :: else -> end_by_last_attempt(D)
    fi;
    check(D)
  }
}

/* -- A dispatcher's memory ----------------------------------------------------------------- */

/* A claim's answer, or the read by its token: what it holds of this delivery. */
inline take_in_hand(P, D) {
  d_step {
    memory[P].hand[D].held = 1;
#ifdef WITHOUT_COUNT
    memory[P].hand[D].number = document[D].attempt_count + 1;
#else
    memory[P].hand[D].number = document[D].attempt_count;
#endif
    memory[P].hand[D].last_try =
      memory[P].hand[D].number - document[D].attempts_before >= MAX_ATTEMPTS
  }
}

/* The current delivery is out of hand. */
inline let_go(P) {
  memory[P].hand[memory[P].current].held = 0;
  memory[P].hand[memory[P].current].number = 0;
  memory[P].hand[memory[P].current].last_try = 0;
  memory[P].current = 0;
  memory[P].end = NOTHING;
  memory[P].success = 0;
  memory[P].on_record = 0;
  memory[P].written = 0
}

inline forget(P) {
  d_step {
    i = 0;
    do
    :: i < DELIVERIES ->
      if
      :: document[i].token == OWN(P) -> document[i].token = ORPHAN
      :: else
      fi;
      memory[P].current = i;
      let_go(P);
      i++
    :: else -> i = 0; break
    od;
    if
    :: late.token == OWN(P) -> late.token = (late.kind == CLAIM -> STRAY : ORPHAN)
    :: else
    fi;
    memory[P].token = 0;
    memory[P].trust = 0;
    memory[P].busy = 0
  }
}

/* A write goes astray: it may be carried out later, whatever its writer does meanwhile. */
inline astray(P, KIND) {
  late.kind = KIND;
  late.delivery = memory[P].current;
  late.token = memory[P].token;
  late.number = memory[P].hand[memory[P].current].number;
  late.success = memory[P].success;
  drop_stale(memory[P].current)
}

/*
 * A request leaves. The gate looks at the lease and opens in one step: how long a process may
 * stop between the two is nothing that a protocol can bound.
 */
inline send(P, D) {
  assert(/* sent under its own live lease */
    document[D].token == memory[P].token && witness[D].lease_left > 0);
  assert(/* each request has a number of its own */ !witness[D].sent);
  witness[D].sent = 1;
  assert(/* no more requests than allowed since the last replay */
    memory[P].hand[D].number - document[D].attempts_before <= MAX_ATTEMPTS)
}

/* Nothing in hand will be sent under this lease; its time is of no interest any more. */
inline trust_no_more(P) {
#if DELIVERIES > 1
  if
  :: memory[P].hand[1 - memory[P].current].held
  :: else -> memory[P].trust = 0
  fi
#else
  memory[P].trust = 0
#endif
}

/* This dispatcher's own write to end the current claim; `matched` is the answer. */
inline write_end(P) {
  end_claim(memory[P].end, memory[P].current, memory[P].token,
    memory[P].hand[memory[P].current].number, memory[P].success)
}

/* The same without an answer: carried out, or astray for now. */
inline lose(P) {
  if
  :: write_end(P); matched = 0
#if STRAYS
  :: late.kind == NOTHING -> astray(P, memory[P].end)
#else
  :: true
#endif
  fi
}

/* A write that went astray reaches MongoDB, or is lost for good. */
inline arrive() {
  if
  :: late.kind == CLAIM ->
    claim(late.delivery, late.token);
    if
    :: document[late.delivery].token == STRAY -> document[late.delivery].token = ORPHAN
    :: else -> skip
    fi
  :: late.kind >= DEFER ->
    end_claim(late.kind, late.delivery, late.token, late.number, late.success);
    matched = 0
  :: true
  fi;
  clear_late()
}

/* What the dispatcher says of its attempt, recorded or lost, is so. */
inline report(P, RECORDED) {
  assert(/* what is reported is on record, and the reverse */
    memory[P].end == DEFER || (RECORDED) == memory[P].written);
  let_go(P)
}

/* -- One dispatcher ------------------------------------------------------------------------ */

#ifdef LIVENESS
#define CRASH MAY(crashes) -> USE(crashes); goto crashed
#else
#define CRASH true -> forget(p); goto end_look
#endif

/* Go on with a delivery in hand; with none, look again. */
#if DELIVERIES == 1
#define GO_ON if \
  :: memory[p].hand[0].held -> goto gate \
  :: else -> forget(p); goto end_look \
  fi
#else
#define GO_ON if \
  :: memory[p].hand[0].held -> memory[p].current = 0; goto gate \
  :: memory[p].hand[1].held -> memory[p].current = 1; goto gate \
  :: else -> forget(p); goto end_look \
  fi
#endif

proctype Dispatcher(byte p) {

end_look: /* Wait until something is due, then ask for a claim. The trust counts from here. */
  atomic {
    ANY_CLAIMABLE ->
    memory[p].token = OWN(p);
    memory[p].trust = LEASE + DRIFT;
    memory[p].busy = 1;
    if
    :: memory[p].current = 0
#if DELIVERIES > 1
    :: memory[p].current = 1
    :: goto claim_many
#endif
    fi
  }

claim_one: /* One delivery; the answer carries its document. */
  atomic {
    if
    :: claim(memory[p].current, memory[p].token);
      if
      :: document[memory[p].current].token == memory[p].token ->
        take_in_hand(p, memory[p].current)
      :: else -> skip
      fi;
      GO_ON
    :: MAY(losses) -> /* No answer. What was leased, or will be, waits for its expiry. */
      USE(losses);
      if
      :: claim(memory[p].current, memory[p].token)
#if STRAYS
      :: late.kind == NOTHING -> astray(p, CLAIM)
#endif
      fi;
      forget(p);
      goto end_look
    :: CRASH
    fi
  }

#if DELIVERIES > 1
claim_many: /* All deliveries by one statement: a write to each, in turn. */
  atomic {
    if
    :: claim(memory[p].current, memory[p].token)
#if STRAYS
    :: MAY(losses) && late.kind == NOTHING -> USE(losses); astray(p, CLAIM)
#else
    :: MAY(losses) -> USE(losses)
#endif
    :: CRASH
    fi;
    memory[p].current++;
    if
    :: memory[p].current < DELIVERIES -> goto claim_many
    :: else -> memory[p].current = 0
    fi
  }

read_claim: /* The answer of many writes, or none, does not say which were won: read by the token. */
  atomic {
    if
    :: true ->
      i = 0;
      do
      :: i < DELIVERIES ->
        if
        :: HOLDS(p, i) -> take_in_hand(p, i)
        :: else -> skip
        fi;
        i++
      :: else -> i = 0; break
      od;
      GO_ON
    :: CRASH
    fi
  }
#endif

gate: /* Send only while the lease, by this process's own clock, outlasts a request. */
  atomic {
    if
    :: TRUSTED(p) -> send(p, memory[p].current); memory[p].busy = 0; trust_no_more(p)
    :: !TRUSTED(p) -> memory[p].end = DEFER; trust_no_more(p); goto settle
    :: MAY(deferrals) -> /* No slot in time. */
      USE(deferrals); memory[p].end = DEFER; trust_no_more(p); goto settle
    :: CRASH
    fi
  }

answer: /* The destination answers, or does not within the timeout, which is a failure. */
  atomic {
    if
    :: memory[p].success = 1; memory[p].end = FINISH
    :: memory[p].end = (memory[p].hand[memory[p].current].last_try -> FINISH : RETRY)
    :: CRASH
    fi;
    memory[p].busy = 1
  }

settle: /* Record how the claim ended and return the lease. Again, while no answer comes. */
  atomic {
    if
    :: write_end(p);
      if
      :: matched || memory[p].end == DEFER -> matched = 0; report(p, 1); GO_ON
      :: else -> skip
      fi;
      if
      :: memory[p].end == RETRY -> memory[p].end = CANCEL
      :: else -> goto read_settled
      fi
    :: MAY(losses) -> USE(losses); lose(p); goto settle
    :: true -> let_go(p); GO_ON /* Given up: the lease expires if it is still there. */
    :: CRASH
    fi
  }

settle_cancelled: /* No retry was possible. If that is for a cancel, this attempt is the last. */
  atomic {
    if
    :: write_end(p); matched = 0
    :: MAY(losses) -> USE(losses); lose(p); goto settle_cancelled
    :: true -> let_go(p); GO_ON
    :: CRASH
    fi
  }

read_settled: /* Was it this dispatcher's write of unknown outcome that returned the lease? */
  atomic {
    if
    :: report(p, ON_RECORD(p))
    :: true -> let_go(p)
    :: CRASH
    fi;
    GO_ON
  }

#ifdef LIVENESS
crashed: /* It starts again or, if another dispatcher is left, does not. */
  atomic {
    forget(p);
    if
    :: goto end_look
    :: !memory[1 - p].dead -> memory[p].dead = 1
    fi
  }
#endif
}

/* -- The others ---------------------------------------------------------------------------- */

/* A write that went astray is carried out after all, or never. */
proctype Network() {
end_late:
  do
  :: atomic { late.kind != NOTHING -> arrive() }
  od
}

/*
 * The operator repeats each request as often as it likes. What the document's `history` does
 * not have yet is carried out; so a lost answer, a repeat and a late write are all one step.
 */
proctype Operator() {
end_operate:
  do
#if REPLAYS
  :: atomic { WANTS_REPLAY(0) -> replay(0) }
#if DELIVERIES > 1
  :: atomic { WANTS_REPLAY(1) -> replay(1) }
#endif
#endif
#if CANCELS
  :: atomic { WANTS_CANCEL(0) -> cancel(0) }
#if DELIVERIES > 1
  :: atomic { WANTS_CANCEL(1) -> cancel(1) }
#endif
#endif
  :: false
  od
}

#define TIMED(d) (document[d].live && document[d].due_in > 0)
#if DELIVERIES == 1
#define ANY_TIMED TIMED(0)
#else
#define ANY_TIMED (TIMED(0) || TIMED(1))
#endif
/* Nobody has a step to make that does not wait for time. */
#define QUIET (!memory[0].busy && !memory[1].busy && !ANY_CLAIMABLE)

/* One tick of the database's clock. Each dispatcher's own clock makes none, one or two. */
inline tick() {
  d_step {
    i = 0;
    do
    :: i < DELIVERIES ->
      if
      :: document[i].due_in > 0 -> document[i].due_in--
      :: else
      fi;
      if
      :: witness[i].lease_left > 0 -> witness[i].lease_left--
      :: else
      fi;
      i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < DISPATCHERS ->
      if
      :: memory[i].trust > NEEDED -> memory[i].trust--
      :: else -> memory[i].trust = 0
      fi;
      i++
    :: else -> break
    od;
    i = 0
  }
}

proctype Clock() {
end_tick:
  do
#ifdef LIVENESS
  :: atomic { ANY_TIMED && QUIET -> tick() }
  :: atomic { (ANY_TIMED || memory[0].trust > 0 || memory[1].trust > 0) && !QUIET && MAY(stalls) -> USE(stalls); tick() }
#else
  :: atomic { ANY_TIMED || memory[0].trust > 0 || memory[1].trust > 0 -> tick() }
#endif
  od
}

/* Every delivery was acknowledged: it is stored, and due at once. */
init {
  atomic {
    i = 0;
    do
    :: i < DELIVERIES ->
      document[i].live = 1;
      check(i);
      i++
    :: else -> i = 0; break
    od;
    run Dispatcher(0);
    run Dispatcher(1);
    run Network();
    run Operator();
    run Clock()
  }
}

#ifdef LIVENESS
/* Every acknowledged delivery ends. So every lease ends, too. */
ltl every_delivery_ends { [] (document[0].live -> <> !document[0].live) }
#endif
