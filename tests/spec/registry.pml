/* The registry, its successors, and the views of those who follow them: the rule, and what breaks without each part.

   Epochs: registry e is the e-th process that took the lock; rs[e] says how it is.  Its history is hist[e, 0..ver[e]].
   Processes: 0 .. NM-1 are members, each with one fact of its own (owner = member) and a view; the rest only observe.
   A fact has a number that only its owner raises: 0 not announced, odd: there, even: withdrawn again.  A state of
   the graph is all of them in one byte, two bits an owner.  So "nothing of the living is lost, nothing of theirs comes
   back" is: for a living owner the number that a view shows never falls.

   Messages.  Between a process and the registry it has a connection to, all is in order, and ends with the connection
   (at, answer below).  Commits are a broadcast, the worst there can be: as long as there are faults, any
   commit of any epoch that was ever made can reach any view at any time, again and again, or never.  Commits that are
   pushed along the connections are a special case.  No queue is needed for that: the history says what was sent.

   Time.  Steps take as long as they like.  What 4.5 s mean is said where it matters (see "gone").

   The rule.  A registry that takes over begins with an empty history.  Whoever comes to it from an earlier epoch,
   member or observer, first says what it holds of others, and believes that epoch no more.  While any of that is
   unconfirmed, nobody is let into the new epoch: views keep what they have.  It is confirmed by its owner, who tells
   all that it owns on every new connection, or ends because its owner is known to be gone, or its lease is over.  A
   registry ends as soon as it sees that a later one has ever begun.

   The switches (-DNOEPOCH and so on) each leave one part of the rule out; check.py runs them all.  Other switches make
   the world smaller: NM, NO, NE, ONCE, BLIND.                                                                        */

#ifndef NM
#define NM 2                            /* members */
#endif
#ifndef NO
#define NO 1                            /* observers */
#endif
#ifndef NE
#define NE 3                            /* registries, one after the other; the last has no accidents */
#endif
#ifdef ONCE                             /* the highest number of a fact */
#define LAST(P) 1
#else
#define LAST(P) (P == NM - 1 -> 2 : 1)  /* one that withdraws is enough */
#endif
#ifdef BLIND                            /* member 1 is an owner and no more: what it knows is left out */
#define sees(P) ((P) != 1)
#else
#define sees(P) true
#endif
#define NP   (NM + NO)
#if defined(NOEPOCH) || defined(KEEPOLD) || defined(FORGET)
#define UNTIDY                          /* these ask for what by the full rule nobody asks for */
#endif
#define VS   (NM * 3 + 1)               /* room for versions; an assertion sees that it suffices */

#define NONE    0                       /* how a registry is: not begun */
#define RUNS    1
#define STOPPED 2                       /* SIGSTOP: its lock is held, it does nothing */
#define WOKEN   3                       /* and runs again; who missed its beat may still be about to supersede it */
#define DEAD    4

byte rs[NE + 2], ver[NE + 1];
byte hist[(NE + 1) * VS];
byte top;                               /* the last epoch that was begun: its lock file stays */
byte settled[NE + 1];                   /* owners (bits) that have told all they own, or are known to be gone */
byte awaited[NE + 1];                   /* owners of facts of an earlier epoch that some follower holds: unconfirmed */

bool dead[NP];
byte seq[NM];                           /* the number of a member's own fact */
byte at[NP];                            /* which registry it has a connection to; 0: none */
byte answer[NP];                        /* 1 + the version of the snapshot that is under way to it; 0: none */
byte ep[NP], vn[NP], view[NP];          /* its view */
byte asked[NP];                         /* the last epoch that it greeted: what is older is over for it */

byte calm;                              /* 1, 2: no faults or changes from now on; 2: what is stopped stays so */

hidden byte i, j, s, v, low, cur;       /* scratch, no part of the state */
hidden byte a_view_went_back, a_view_is_no_prefix, a_view_lost_the_living, views_differ_at_rest,
            the_dead_are_known_at_rest, facts_at_rest_are_not_those_of_the_living;  /* never true: names for checks */

#define bit(O)        (1 << (O))
#define has(SET, O)   (((SET) >> (O)) & 1)
#define num(S, O)     (((S) >> (2 * (O))) & 3)
#define with(S, O, N) (((S) & ~(3 << (2 * (O)))) | ((N) << (2 * (O))))
#define H(E, V)       hist[(E) * VS + (V)]
#define now(E)        H(E, ver[E])
#define up(E)         (rs[E] == RUNS || rs[E] == WOKEN)
#define locked(E)     (rs[E] != NONE && rs[E] != DEAD)
#if NE > 2                              /* what a look into the directory finds: the highest lock that is held */
#define CURRENT       (locked(3) -> 3 : (locked(2) -> 2 : (locked(1) -> 1 : 0)))
#else
#define CURRENT       (locked(2) -> 2 : (locked(1) -> 1 : 0))
#endif
#if NM > 1
#define all_gone(P)   ((dead[0] || !num(view[P], 0)) && (dead[1] || !num(view[P], 1)))
#else
#define all_gone(P)   (dead[0] || !num(view[P], 0))
#endif
#define some_stopped  (rs[1] == STOPPED || rs[2] == STOPPED)

/* ---- what is promised ------------------------------------------------------------------------------------------ */

/* Every change of a view comes by here. */
inline turn(P, E, V, S) {
  assert((ep[P] < E && asked[P] <= E) || (ep[P] == E && vn[P] <= V) || a_view_went_back);
  assert(S == H(E, V) || a_view_is_no_prefix);
  for (i : 0 .. NM - 1) {
    assert(dead[i] || num(S, i) >= num(view[P], i) || a_view_lost_the_living)
  }
  ep[P] = E; vn[P] = V; view[P] = S
}

/* Without faults all comes to rest; then everybody knows the same, and that is the truth. */
proctype Rest() {
progress_storm:                         /* so that a search for non-progress cycles finds what never comes to rest */
  calm > 0;
  timeout;
  d_step {
    cur = CURRENT;
    for (i : 0 .. NP - 1) {
      if
      :: !dead[i] && sees(i) && cur && rs[cur] != STOPPED ->
         assert((ep[i] == cur && vn[i] == ver[cur] && view[i] == now(cur)) || views_differ_at_rest)
      :: !dead[i] && !cur -> assert((i >= NM && view[i] == 0) || the_dead_are_known_at_rest)
      :: else
      fi
    }
    for (i : 0 .. NM - 1) {             /* a registry that stays stopped has no members left: they find another */
      assert(!cur || (rs[cur] == STOPPED && dead[i]) || num(now(cur), i) == (dead[i] -> 0 : seq[i])
             || facts_at_rest_are_not_those_of_the_living)
    }
  }
}

/* Hygiene, so that states that differ in nothing that matters are one: versions that nobody can ask for any more are
   wiped out, and the versions of an epoch are counted from the oldest that somebody may go on from. */
inline tidy() {
#ifndef UNTIDY
  for (j : 1 .. NE) { if :: rs[j] == WOKEN && top > j -> rs[j] = RUNS :: else fi }
  for (i : 0 .. NP - 1) {               /* an epoch that a view has left, or that has no more to say, is like none */
    do
    :: asked[i] && rs[asked[i]] == DEAD && (ep[i] != asked[i] || vn[i] == ver[ep[i]]) -> asked[i]++
    :: else -> break
    od;
    if :: ep[i] < asked[i] -> ep[i] = 0; vn[i] = 0 :: else fi
  }
  for (j : 1 .. NE) {
    low = ver[j];
    for (i : 0 .. NP - 1) {
      if :: ep[i] == j && asked[i] == j && vn[i] < low -> low = vn[i] :: else fi;
      if :: at[i] == j && answer[i] && answer[i] - 1 < low -> low = answer[i] - 1 :: else fi
    }
    if
    :: low ->
       for (i : 0 .. ver[j]) {
         if :: i + low <= ver[j] -> H(j, i) = H(j, i + low) :: else -> H(j, i) = 0 fi
       }
       ver[j] = ver[j] - low;
       for (i : 0 .. NP - 1) {
         if :: ep[i] == j && asked[i] == j -> vn[i] = vn[i] - low :: else fi;
         if :: at[i] == j && answer[i] -> answer[i] = answer[i] - low :: else fi
       }
    :: else
    fi;
    if :: rs[j] == DEAD -> settled[j] = 0; awaited[j] = 0; if :: ver[j] == 0 -> H(j, 0) = 0 :: else fi :: else fi
  }
#endif
  i = 0; j = 0; low = 0; s = 0; v = 0; cur = 0
}

/* ---- the registry ---------------------------------------------------------------------------------------------- */

inline commit(E, S) { assert(ver[E] < VS - 1); ver[E]++; now(E) = S }

inline cut(P) { at[P] = 0; answer[P] = 0 }

inline end_of(E) {                      /* a registry ends, and its connections with it */
  rs[E] = DEAD;
  for (i : 0 .. NP - 1) { if :: at[i] == E -> cut(i) :: else fi }
}

inline take_own(E, P) {                 /* what a member says of itself counts, and is complete */
  settled[E] = settled[E] | bit(P); awaited[E] = awaited[E] & ~bit(P);
  if :: num(now(E), P) != seq[P] -> s = with(now(E), P, seq[P]); commit(E, s) :: else fi
}

/* A greeting: a member says what it owns; and, if it comes from an earlier epoch, everybody says what he holds of
   others.  That is awaited until its owners have spoken for themselves. */
inline greet(E, P) {
  at[P] = E; asked[P] = E;
  if :: P < NM -> take_own(E, P) :: else fi;
#ifdef HELD                             /* what is held is history at once, and all who ask are told */
  s = now(E);
  for (i : 0 .. NM - 1) {
    if :: ep[P] < E && i != P && !has(settled[E], i) && num(s, i) == 0 -> s = with(s, i, num(view[P], i)) :: else fi
  }
  if :: s != now(E) -> commit(E, s) :: else fi
#else
  for (i : 0 .. NM - 1) {
    if
#ifdef MUTE                             /* members say what they hold, observers do not */
    :: P >= NM -> skip
#endif
    :: ep[P] < E && i != P && num(view[P], i) && !has(settled[E], i) -> awaited[E] = awaited[E] | bit(i)
    :: else
    fi
  }
#endif
}

inline drop(E, O) {
  settled[E] = settled[E] | bit(O); awaited[E] = awaited[E] & ~bit(O);
  if :: num(now(E), O) -> s = with(now(E), O, 0); commit(E, s) :: else fi
}

/* "Gone": its process is known to have ended, or the lease is over.  That a process without a connection is gone when
   the lease is over is an assumption about time: who lives finds the registry, and is heard by it, within the lease.
   So a registry may count only the time in which it could hear: one that was stopped adds what it slept. */
#ifdef EARLY                            /* unconfirmed, and no connection: gone */
#define gone(E, O) (dead[O] || (has(awaited[E], O) && at[O] != E))
#else
#ifdef LATE                             /* the time in which it was stopped counts too */
#define gone(E, O) (dead[O] || (rs[E] == WOKEN && at[O] != E))
#else
#ifdef NEVER                            /* facts end only by their owner's word */
#define gone(E, O) false
#else
#define gone(E, O) dead[O]
#endif
#endif
#endif

#ifdef NOSTEP                           /* a superseded registry stays */
#define superseded(E) false
#else
#if defined(STAYS) || defined(FORGET)   /* it leaves only while a later one lives */
#define superseded(E) (CURRENT > E)
#else
#define superseded(E) (top > E)         /* a later one's lock file is there, held or not */
#endif
#endif

#if defined(NOSETTLE) || defined(HELD)
#define may_answer(E) true
#else
#define may_answer(E) (awaited[E] == 0) /* a new epoch settles before anybody switches to it */
#endif

#ifdef FORGET
#define acceptable(P, E) (P >= NM || E >= asked[P])     /* an observer forgets, and follows whoever is there */
#else
#define acceptable(P, E) (E >= asked[P])
#endif

/* What registry e does about process P.  A view that waits for a new epoch does not change meanwhile, so how long its
   greeting and the snapshot take would show nothing: connecting and greeting are one step here, and so are sending and
   taking that snapshot. */
#define SERVE(P) \
  :: d_step { up(e) && !dead[P] && !at[P] && acceptable(P, e) && (!calm || e == CURRENT) -> greet(e, P); tidy() } \
  :: d_step { up(e) && sees(P) && at[P] == e && ep[P] != e && may_answer(e) \
              -> s = now(e); v = ver[e]; turn(P, e, v, s); tidy() }
#define SERVE_MEMBER(P) SERVE(P) \
  :: d_step { up(e) && at[P] == e && seq[P] != num(now(e), P) -> take_own(e, P); tidy() } \
  :: d_step { up(e) && gone(e, P) && (num(now(e), P) || has(awaited[e], P)) -> drop(e, P); tidy() }

proctype Registry(byte e) {
end:
  do
  :: d_step { up(e) && superseded(e) -> end_of(e); tidy() }
  SERVE_MEMBER(0)
#if NM > 1
  SERVE_MEMBER(1)
#endif
#if NM > 2
  SERVE_MEMBER(2)
#endif
#if NO > 0
  SERVE(NM)
#endif
#if NO > 1
  SERVE(NM + 1)
#endif
  od
}

/* ---- those who follow ------------------------------------------------------------------------------------------ */

/* Nobody to find, or nobody who answers: time for the next epoch.  A registry that has been silent may speak again
   just now: he who has missed its beat supersedes it all the same. */
#define lost(P) (CURRENT == 0 || rs[CURRENT] == STOPPED || CURRENT < asked[P] \
                 || (!calm && (rs[CURRENT] == WOKEN || CURRENT < top)))

#ifdef NOEPOCH                          /* a version is all there is: that of another epoch is as good */
#define next_to(P, E) (ep[P] && rs[E] != NONE && ver[E] > vn[P])
#define newer(P, E, V) ((V) >= vn[P])
#else
#ifdef KEEPOLD                          /* while it waits for the next epoch to settle, it still believes the last */
#define next_to(P, E) (ep[P] == E && ver[E] > vn[P])
#else
#define next_to(P, E) (ep[P] == E && ver[E] > vn[P] && asked[P] == E)
#endif
#if defined(ANYSNAP)                    /* a snapshot is taken as it comes */
#define newer(P, E, V) true
#elif defined(FORGET)
#define newer(P, E, V) (P >= NM || ep[P] < E || (ep[P] == E && vn[P] <= (V)))
#else
#define newer(P, E, V) (ep[P] < E || (ep[P] == E && vn[P] <= (V)))
#endif
#endif

/* The commit that leads from V - 1 to V, on top of what is known. */
inline apply(P, E, V) {
  s = view[P];
  for (i : 0 .. NM - 1) {
    if :: num(H(E, V), i) != num(H(E, V - 1), i) -> s = with(s, i, num(H(E, V), i)) :: else fi
  }
  turn(P, E, V, s)
}

#ifdef NOGAP                            /* newer is good enough */
#define HEAR_COMMIT(P, E) :: d_step { !calm && next_to(P, E) -> apply(P, E, vn[P] + 1); tidy() } \
                          :: d_step { !calm && next_to(P, E) && ver[E] > vn[P] + 1 -> apply(P, E, ver[E]); tidy() }
#else
#define HEAR_COMMIT(P, E) :: d_step { !calm && next_to(P, E) -> apply(P, E, vn[P] + 1); tidy() }
#endif

#ifdef RESTLESS                         /* asks at every beat */
#define behind(P) true
#else
#define behind(P) (vn[P] < ver[at[P]])
#endif

#ifdef NOBEAT                           /* only a commit with a hole before it tells that something is missing */
#define HEAR_BEAT(P)
#else
#define HEAR_BEAT(P) :: d_step { at[P] && up(at[P]) && ep[P] == at[P] && !answer[P] && behind(P) \
                                 -> answer[P] = ver[at[P]] + 1 }  /* and so it asks; who is in the epoch is answered */
#endif

#if NE > 2
#define HEAR_COMMIT_3(P) HEAR_COMMIT(P, 3)
#else
#define HEAR_COMMIT_3(P)
#endif

#define FOLLOW(P) \
  HEAR_COMMIT(P, 1) HEAR_COMMIT(P, 2) HEAR_COMMIT_3(P) \
  :: d_step { answer[P] -> v = answer[P] - 1; answer[P] = 0; \
              if :: newer(P, at[P], v) -> s = H(at[P], v); turn(P, at[P], v, s) :: else fi; tidy() } \
  HEAR_BEAT(P) \
  :: d_step { at[P] && rs[at[P]] == STOPPED -> cut(P); tidy() }       /* silent for 3 s */

proctype Member(byte p) {
end:
  do
  FOLLOW(p)
  :: d_step { !dead[p] && at[p] == 0 && lost(p) && top < NE -> top++; rs[top] = RUNS }
  :: d_step { !dead[p] && !calm && seq[p] < LAST(p) -> seq[p]++ }     /* announce, withdraw */
  od
}

proctype Observer(byte p) {             /* the command line: it starts no registry */
end:
  do
  FOLLOW(p)
  :: d_step { CURRENT == 0 && view[p] && all_gone(p) -> view[p] = 0; asked[p] = top + 1; tidy() }  /* it is known */
  od
}

/* ---- what goes wrong ------------------------------------------------------------------------------------------- */

#define ACCIDENTS(E) \
  :: d_step { !calm && rs[E] != DEAD && top == E -> end_of(E); tidy() } \
  :: d_step { !calm && rs[E] == RUNS && top == E -> rs[E] = STOPPED } \
  :: d_step { calm != 2 && rs[E] == STOPPED -> rs[E] = WOKEN }
/* Killed and stopped is only the last: an earlier one, superseded, ends by itself, at any moment. */
#define CUT(P)  :: d_step { !calm && at[P] -> cut(P); tidy() }
#define KILL(P) :: d_step { !calm && !dead[P] -> dead[P] = 1; cut(P); \
                            ep[P] = 0; vn[P] = 0; view[P] = 0; asked[P] = 1; seq[P] = 0; tidy() }

proctype Storm() {
end:
  do
  ACCIDENTS(1)
#if NE > 2
  ACCIDENTS(2)
#endif
  CUT(0) KILL(0)
#if NM > 1
  CUT(1) KILL(1)
#endif
#if NM > 2
  CUT(2) KILL(2)
#endif
#if NO > 0
  CUT(NM)
#endif
#if NO > 1
  CUT(NM + 1)
#endif
  :: !calm -> calm = 1
  :: !calm && some_stopped -> calm = 2
  od
}

init {
  atomic {
    for (i : 0 .. NP - 1) { asked[i] = 1 }
    for (i : 1 .. NE) { run Registry(i) }
    for (i : 0 .. NM - 1) { run Member(i) }
    for (i : NM .. NP - 1) { run Observer(i) }
    run Storm(); run Rest()
  }
}
