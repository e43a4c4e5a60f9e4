/*
 * How wds accepts an event, as a model for Spin: a companion of lease.pml.
 *
 * A sender sends one event under one idempotency key, and repeats it until it is acknowledged.
 * Another sender uses the same key for another payload. Two ingest services serve them; each
 * may crash at any step. MongoDB has a primary, which can fail before a majority has a write;
 * the write is then gone. An insert of unknown outcome may have been carried out or not.
 *
 * README.md says how to run it and which function of the code does each step.
 */

#define INGESTS 2

/* How durable the document with the id of the key is. */
#define ABSENT 0
#define ON_PRIMARY 1  /* A failover loses it. */
#define ON_MAJORITY 2 /* No failover loses it. */

#define STORED 1
#define DUPLICATE 2
#define CONFLICT 3
#define UNAVAILABLE 4

byte durability = ABSENT;
byte payload; /* Of the stored document: 1 or 2; 0: none. */
byte writer;    /* The process whose insert made it. */
byte documents; /* Witness: how many documents stand for the first sender's event. */
bit acknowledged[3]; /* Witness: by payload, whether its sender was told 2xx. */

/* The id: derived from source and key, fixed before the insert, and the only unique index. */
#ifdef WITHOUT_DERIVED_ID
#define TAKEN false
#else
#define TAKEN (durability != ABSENT)
#endif

/* The primary carries an insert out. */
inline store(CONTENT) {
  durability = ON_PRIMARY;
  payload = CONTENT;
  writer = _pid;
  documents++;
  assert(/* one event for one key */ documents == 1)
}

proctype Ingest() {
  byte content; /* Of the request it serves; 0: none. */

end_receive: /* A verified request; its sender repeats it until it is acknowledged. */
  atomic {
    if
    :: !acknowledged[1] -> content = 1
    :: !acknowledged[2] -> content = 2
    fi
  }

insert: /* By the id of the key. MongoDB answers, or the outcome is unknown. */
  atomic {
    if
    :: !TAKEN -> store(content)
    :: TAKEN -> goto read_committed
    :: goto insert /* Not carried out, and no answer: again. */
    :: !TAKEN -> store(content); goto insert /* Carried out, and no answer: again. */
    :: goto answer_unavailable
    :: goto crashed
    fi
  }

#ifdef WITHOUT_MAJORITY
  goto acknowledge;
#endif

commit: /* The answer comes when a majority has this insert. */
  atomic {
    if
    :: durability == ON_MAJORITY && writer == _pid -> goto acknowledge
    :: durability != ON_MAJORITY || writer != _pid -> goto insert /* Failed over, or no answer: again. */
    :: goto answer_unavailable
    :: goto crashed
    fi
  }

read_committed: /* The id is taken. A repeat is judged by what a majority has. */
  atomic {
    if
#ifdef WITHOUT_MAJORITY_READ
    :: durability != ABSENT ->
#else
    :: durability == ON_MAJORITY ->
#endif
      if
#ifndef WITHOUT_PAYLOAD_HASH
      :: payload != content -> goto answer_conflict
#endif
      :: else -> goto acknowledge
      fi
    :: durability != ON_MAJORITY -> goto answer_unavailable /* Not in time. */
    :: goto crashed
    fi
  }

acknowledge: /* 2xx. The answer may be lost, and the sender repeats. */
  atomic {
    if
    :: assert(/* acknowledged is durable */ durability == ON_MAJORITY);
      assert(/* what was acknowledged is what is stored */ payload == content);
      acknowledged[content] = 1
    :: true
    fi;
    content = 0;
    goto end_receive
  }

answer_conflict: /* 409: the key belongs to another payload. */
answer_unavailable: /* 503: the sender repeats. */
crashed:
  content = 0;
  goto end_receive
}

/* A majority gets the document, or the primary fails first and it is lost. */
proctype Replication() {
end_replicate:
  do
  :: atomic { durability == ON_PRIMARY -> durability = ON_MAJORITY }
  :: atomic { durability == ON_PRIMARY -> durability = ABSENT; payload = 0; writer = 0; documents = 0 }
  od
}

init {
  atomic { run Ingest(); run Ingest(); run Replication() }
}

ltl acknowledged_is_never_lost { [] (acknowledged[1] -> [] (durability == ON_MAJORITY)) }
ltl one_payload { [] !(acknowledged[1] && acknowledged[2]) }
