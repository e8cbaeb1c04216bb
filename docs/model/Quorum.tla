------------------------------- MODULE Quorum -------------------------------
(* The trust-quorum protocol of docs/protocol.md §5 to §9 and its controller, with the deviations of §11.            *)
(*                                                                                                                   *)
(* A node is one record; what survives a crash and what does not stands side by side in it, as in vault/quorum. The  *)
(* handlers are functions from a node's record to its next one, each named after the function of vault/quorum that   *)
(* it stands for. Cryptography is abstract: a secret is its epoch, a share is <<member, epoch>>, a signature is the  *)
(* fact that the controller made it. README.md says what is left out and which bounds were checked.                  *)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Node,         \* sleds
    MaxEpoch,     \* epochs are 1..MaxEpoch
    Plans,        \* [1..MaxEpoch -> set of [members, k, need]]: memberships that the operator may ask for
    LrtqNode,     \* sleds with an LRTQ share; {} if the rack was born with this protocol
    LrtqK,        \* LRTQ's threshold
    Prune,        \* TRUE: a change may drop older secrets (protocol.md §8.7)
    Loader,       \* sleds that are asked for rack secrets
    Liar,         \* members that send what no honest member would
    MaxCrash,     \* crashes of sleds
    MaxCtlCrash,  \* crashes of the controller
    Async,        \* TRUE: requests and shares are messages; FALSE: a request is answered in the step that takes the answer
    StayDown,     \* sleds that do not come back by themselves after a crash
    Broken        \* names of rules that are switched off, to show that the checks bite; {} is our protocol

VARIABLES
    node,   \* [Node -> record]: see Fresh
    chg,    \* [Epoch -> record]: the controller's journal, see NoChange
    ctl,    \* what the controller knows and has not recorded: acknowledgements that it read
    made,   \* [Epoch -> sequence of configurations]: every configuration that a coordinator sent; id = place in it
    acks,   \* <<member, epoch>>: every PrepareAck ever sent
    reqs,   \* <<asker, epoch>>: every GetShare or GetLrtqShare ever sent (only if Async)
    shares, \* <<from, to, epoch>>: every Share or LrtqShare ever sent (only if Async)
    stray,  \* signatures that left the controller before it recorded why; {} unless that rule is broken
    spent   \* [node, ctl]: crashes so far

vars == <<node, chg, ctl, made, acks, reqs, shares, stray, spent>>

Epoch == 1..MaxEpoch
Forged == 9 \* id of a configuration that a liar made
Off(rule) == rule \in Broken
Max(S) == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : y <= x

-----------------------------------------------------------------------------
(* Configurations, grants and certificates (protocol.md §5, §7). *)

NoChange == [st |-> "unused", members |-> {}, k |-> 0, need |-> 0, coord |-> CHOOSE n \in Node : TRUE,
             last |-> 0, lrtq |-> FALSE, keep |-> 0, id |-> 0]

Lrtq == chg[1].st = "lrtq" \* the rack began with the older scheme, which is epoch 1 here
Decided == {e \in Epoch : chg[e].st = "decided"}
Highest == Max({e \in Epoch : chg[e].st # "unused"})
LastDecided == Max(Decided)
Gone == UNION {chg[e].members : e \in Decided} \ chg[LastDecided].members \* removed for good; only if something is decided

Config(e, id) ==
    IF id = Forged THEN [members |-> Node, k |-> 2, coord |-> CHOOSE l \in Liar : TRUE, old |-> 1..(e - 1)]
    ELSE made[e][id]

GrantOf(e, c) == [e |-> e, members |-> c.members, k |-> c.k, coord |-> c.coord, last |-> c.last,
                  lrtq |-> c.lrtq, keep |-> c.keep]
GrantsOf(e) == (IF chg[e].st \in {"unused", "lrtq"} THEN {} ELSE {GrantOf(e, chg[e])})
               \cup {g \in stray.grants : g.e = e}
Certified(e, id) == (chg[e].st = "decided" /\ chg[e].id = id) \/ <<e, id>> \in stray.certs

-----------------------------------------------------------------------------
(* A node. *)

NoCoord == [e |-> 0, base |-> 0, ph |-> "none", got |-> {}, acked |-> {}]
NoComp == [e |-> 0, got |-> {}]
NoLoad == [e |-> 0, got |-> {}, wait |-> FALSE]

Fresh(n) ==
    [up    |-> TRUE,
     \* stored (protocol.md §6)
     cfg   |-> [e \in Epoch |-> 0],                     \* id of the stored configuration, 0 = none
     sh    |-> IF n \in LrtqNode THEN {1} ELSE {},      \* epochs of own shares; the LRTQ share is that of epoch 1
     com   |-> {},                                      \* committed epochs
     cert  |-> {},                                      \* epochs with a certificate
     exp   |-> 0,                                       \* the epoch that expunged it, 0 = member
     \* in memory only
     coord |-> NoCoord, comp |-> NoComp, load |-> NoLoad,
     has   |-> 0]                                       \* the epoch whose secret, with all older ones, is in memory

Last(s) == Max(s.com)
Sure(s) == Max(s.cert)
Latest(s) == Max({e \in Epoch : s.cfg[e] # 0})
Prepared(s, e) == s.cfg[e] # 0 /\ e \in s.sh
MembersAt(s, e) == Config(e, s.cfg[e]).members
From(c) == IF c.base = 0 THEN 1 ELSE c.base \* the epoch that a coordination collects
Active(s) == s.up /\ s.exp = 0
Package(s) == 1 \in s.sh /\ s.cfg[1] = 0 \* it has a package of the older scheme

Forget(s) == [s EXCEPT !.coord = NoCoord, !.comp = NoComp, !.load = NoLoad, !.has = 0]
EndOlder(s, e) == IF s.coord.e # 0 /\ s.coord.e < e THEN [s EXCEPT !.coord = NoCoord] ELSE s

\* commit and loaderCommitted: a commit ends what it makes pointless and moves waiting loads on (protocol.md §8.2).
DoCommit(s, n, e) ==
    LET a    == [s EXCEPT !.com = @ \cup {e}, !.cert = @ \cup {e}]
        seed == {n} \cup (IF s.comp.e = e THEN s.comp.got ELSE {})
        b    == IF s.coord.e # 0 /\ (s.coord.e <= e \/ s.coord.base < e) THEN [a EXCEPT !.coord = NoCoord] ELSE a
        c    == IF ~(s.load.wait /\ s.load.e < e) THEN b
                ELSE IF Cardinality(seed) >= Config(e, s.cfg[e]).k THEN [b EXCEPT !.load = NoLoad, !.has = e]
                ELSE [b EXCEPT !.load = [e |-> e, got |-> seed, wait |-> TRUE]]
    IN IF s.comp.e # 0 /\ s.comp.e <= e THEN [c EXCEPT !.comp = NoComp] ELSE c

\* checkOldSecrets: a secret for every older epoch from keep on that the node knows as committed, the older scheme included.
CarriesOld(s, e, c, keep) ==
    /\ Cardinality({x \in s.com : keep <= x /\ x < e}) + (IF Package(s) /\ keep <= 1 THEN 1 ELSE 0) <= Cardinality(c.old)
    /\ Package(s) => e > 1

\* learnCommit: act on a proven commit whose request was missed (protocol.md §8.3). LearnOk says whether it does anything.
LearnOk(s, n, e, id) ==
    /\ Active(s)
    /\ n \in Config(e, id).members
    /\ Last(s) < e
    /\ s.cfg[e] \in {0, id}
    /\ CarriesOld(s, e, Config(e, id), chg[e].keep) \* which the certificate says too

DoLearn(s, n, e, id) ==
    IF Prepared(s, e) THEN DoCommit(s, n, e)
    ELSE LET a == [s EXCEPT !.cfg[e] = id, !.cert = @ \cup {e}, !.coord = NoCoord]
         IN IF a.comp.e >= e THEN a ELSE [a EXCEPT !.comp = [e |-> e, got |-> {}]]

\* onGetShare and onGetLRTQShare: the answer of node s to a request of p for epoch e; the order matters (protocol.md §9.3).
News(s, p, e) == IF p \in MembersAt(s, e) THEN <<"advance", e>> ELSE <<"expunged", e>>
Answer(s, p, e) ==
    CASE ~Active(s) -> <<"silence", 0>>
      [] Last(s) > e /\ ~Off("NewsFirst") -> News(s, p, Last(s))
      [] s.cfg[e] # 0 /\ p \notin MembersAt(s, e) -> IF e \in s.cert THEN <<"expunged", e>> ELSE <<"note", e>>
      [] e \in s.sh -> <<"share", e>> \* that of the older scheme only to a coordinator with a grant: nobody else asks
      [] Last(s) > e -> News(s, p, Last(s))
      [] OTHER -> <<"none", e>>

\* Epochs whose shares a node collects, and who may give them.
Wanted(s) == {e \in Epoch : \/ s.coord.ph = "collect" /\ From(s.coord) = e
                            \/ s.comp.e = e
                            \/ s.load.e = e}
Givers(s, e) == IF Lrtq /\ e = 1 THEN chg[s.coord.e].members ELSE MembersAt(s, e)
Needed(s, e) == IF Lrtq /\ e = 1 THEN chg[1].k ELSE Config(e, s.cfg[e]).k

-----------------------------------------------------------------------------
(* What a node's step does to the rest. *)

Set(n, s) == node' = [node EXCEPT ![n] = s]

\* Messages that follow from a step: new requests, and shares for those who asked in vain (payDebts).
Mail(n, s) ==
    IF ~Async THEN UNCHANGED <<reqs, shares>>
    ELSE /\ reqs' = reqs \cup {<<n, e>> : e \in Wanted(s)}
         /\ shares' = shares \cup {<<n, p, e>> : <<p, e>> \in
                {r \in reqs : r[2] \in s.sh \ node[n].sh /\ s.cfg[r[2]] # 0 /\ r[1] \in MembersAt(s, r[2])}}

Steps(n, s) == Set(n, s) /\ Mail(n, s)
Quiet == UNCHANGED <<chg, ctl, stray, spent>>

\* newNode and resumeComputation: a stored certificate calls for the share that is missing.
Started(s, n) ==
    [s EXCEPT !.up = TRUE,
              !.comp = IF Sure(s) > Last(s) /\ s.exp = 0 /\ n \in MembersAt(s, Sure(s)) THEN [e |-> Sure(s), got |-> {}]
                       ELSE NoComp]
Crashed(s, n) == IF n \in StayDown THEN [Forget(s) EXCEPT !.up = FALSE] ELSE Started(Forget(s), n)

\* distribute: the configuration is complete; it and the own share are stored, then every member is sent its part.
\* s is the coordinator's record. The configuration becomes visible to others by standing in made.
Distribute(n, s, g, old) ==
    LET c  == [members |-> g.members, k |-> g.k, coord |-> n, old |-> old]
        id == Len(made[g.e]) + 1
        t  == [s EXCEPT !.cfg[g.e] = id, !.sh = @ \cup {g.e},
                        !.coord = [e |-> g.e, base |-> g.last, ph |-> "prepare", got |-> {}, acked |-> {n}]]
    IN /\ made' = [made EXCEPT ![g.e] = Append(@, c)]
       /\ IF Off("PrepareAfterSave") /\ id < Forged - 1
          THEN \/ Steps(n, t) /\ UNCHANGED spent
               \/ /\ spent.node < MaxCrash \* sent, and dead before it was stored
                  /\ spent' = [spent EXCEPT !.node = @ + 1]
                  /\ Steps(n, Crashed(node[n], n))
          ELSE Steps(n, t) /\ UNCHANGED spent

-----------------------------------------------------------------------------
(* The controller (vault/rack). Everything that it tells others is read from chg, its journal: recorded, then said. *)

\* BeginChange, BeginInit and Again. The grant may reach the coordinator from then on. A change that is being prepared is
\* aborted by it; that is the same as aborting it earlier, since an abort is told to nobody.
CtlBegin(e, p, c, keep) ==
    LET last == LastDecided
        up   == Lrtq /\ (last = 0 \/ Off("UpgradeOnce"))
        r    == [NoChange EXCEPT !.st = "preparing", !.members = p.members, !.k = p.k, !.need = p.need, !.coord = c,
                                 !.last = IF up THEN 0 ELSE IF Off("CommittedCoordinator") THEN Last(node[c]) ELSE last,
                                 !.lrtq = up, !.keep = keep]
    IN /\ e = Highest + 1
       /\ c \in p.members \ Liar
       /\ IF up THEN c \in chg[1].members ELSE last = 0 \/ last \in node[c].com \/ Off("CommittedCoordinator")
       /\ last # 0 => p.members \cap Gone = {}
       /\ IF last = 0 THEN keep = 0 ELSE chg[last].keep <= keep /\ keep <= last \* it never goes down
       /\ \/ /\ chg' = [x \in Epoch |-> IF x = e THEN r ELSE IF chg[x].st = "preparing" THEN [chg[x] EXCEPT !.st = "aborted"]
                                      ELSE chg[x]]
             /\ ctl' = {}
             /\ UNCHANGED <<stray, spent>>
          \/ /\ Off("RecordBeforeGrant") \* the grant leaves, and the controller dies before it records the epoch
             /\ spent.ctl < MaxCtlCrash
             /\ spent' = [spent EXCEPT !.ctl = @ + 1]
             /\ stray' = [stray EXCEPT !.grants = @ \cup {GrantOf(e, r)}]
             /\ ctl' = {}
             /\ UNCHANGED chg
       /\ UNCHANGED <<node, made, acks, reqs, shares>>

\* Nothing aborts what was decided.
CtlAbortDecided ==
    /\ Off("NoAbortAfterDecision")
    /\ chg[Highest].st = "decided"
    /\ chg' = [chg EXCEPT ![Highest].st = "aborted"]
    /\ UNCHANGED <<node, ctl, made, acks, reqs, shares, stray, spent>>

\* Read acknowledgements from the coordinator. Fewer than needed change nothing that matters.
CtlPoll(e) ==
    LET s == node[chg[e].coord] IN
    /\ chg[e].st = "preparing"
    /\ s.up /\ s.coord.e = e /\ s.coord.ph = "prepare"
    /\ Cardinality(s.coord.acked) >= chg[e].need
    /\ ctl' = {[id |-> s.cfg[e], acked |-> s.coord.acked]} /\ ctl' # ctl
    /\ UNCHANGED <<node, chg, made, acks, reqs, shares, stray, spent>>

\* Decide and record. From here on the certificate may leave.
CtlDecide(e) ==
    /\ chg[e].st = "preparing"
    /\ \E k \in ctl :
          \/ /\ chg' = [chg EXCEPT ![e].st = "decided", ![e].id = k.id]
             /\ UNCHANGED <<stray, spent>>
          \/ /\ Off("RecordBeforeCommit") \* a commit leaves, and the controller dies before it records the decision
             /\ spent.ctl < MaxCtlCrash
             /\ spent' = [spent EXCEPT !.ctl = @ + 1]
             /\ stray' = [stray EXCEPT !.certs = @ \cup {<<e, k.id>>}]
             /\ UNCHANGED chg
    /\ ctl' = {}
    /\ UNCHANGED <<node, made, acks, reqs, shares>>

\* A crash; it starts again from its journal.
CtlCrash ==
    /\ spent.ctl < MaxCtlCrash /\ ctl # {}
    /\ spent' = [spent EXCEPT !.ctl = @ + 1]
    /\ ctl' = {}
    /\ UNCHANGED <<node, chg, made, acks, reqs, shares, stray>>

-----------------------------------------------------------------------------
(* Requests to a node (protocol.md §8). They may arrive late and more than once: grants and certificates stay. *)

\* reconfigure. A request that is being coordinated already changes nothing.
ReconfigureOk(s, n, g) ==
    /\ Active(s)
    /\ g.coord = n /\ n \in g.members
    /\ IF g.lrtq THEN /\ Package(s) /\ g.e >= 2
                      /\ s.com = {}
                 ELSE ~(Package(s) /\ s.com = {})
    /\ g.last = Last(s) /\ g.keep <= g.last
    /\ Sure(s) <= Last(s)
    /\ Latest(s) < g.e
    /\ s.coord.e < g.e

NodeReconfigure(n, g) ==
    LET s == [node[n] EXCEPT !.comp = NoComp]
    IN /\ ReconfigureOk(node[n], n, g)
       /\ IF g.lrtq \/ g.last # 0
          THEN /\ Steps(n, [s EXCEPT !.coord = [e |-> g.e, base |-> g.last, ph |-> "collect", got |-> {n}, acked |-> {}]])
               /\ UNCHANGED <<made, spent>>
          ELSE Distribute(n, s, g, {})
       /\ UNCHANGED <<chg, ctl, acks, stray>>

\* commitRequest, with the certificate.
NodeCommit(n, e) ==
    /\ Active(node[n])
    /\ Prepared(node[n], e) /\ Last(node[n]) < e
    /\ Certified(e, node[n].cfg[e])
    /\ Steps(n, DoCommit(node[n], n, e))
    /\ UNCHANGED <<made, acks>> /\ Quiet

\* prepareAndCommit, with configuration and certificate.
NodePrepareAndCommit(n, e) ==
    \E id \in 1..Len(made[e]) :
        /\ Certified(e, id)
        /\ LearnOk(node[n], n, e, id)
        /\ Steps(n, DoLearn(node[n], n, e, id))
        /\ UNCHANGED <<made, acks>> /\ Quiet

\* loadSecret: a request waits, and the latest committed epoch is collected.
DoLoad(s, n) == [s EXCEPT !.load = IF @.e = Last(s) THEN [@ EXCEPT !.wait = TRUE]
                                   ELSE [e |-> Last(s), got |-> {n}, wait |-> TRUE]]
NodeLoad(n) ==
    /\ n \in Loader
    /\ Active(node[n]) /\ node[n].com # {} /\ node[n].has # Last(node[n])
    /\ ~node[n].load.wait \/ node[n].load.e # Last(node[n])
    /\ Steps(n, DoLoad(node[n], n))
    /\ UNCHANGED <<made, acks>> /\ Quiet

-----------------------------------------------------------------------------
(* Messages between nodes (protocol.md §9). *)

\* validatePrepare and granted. from is who sent it; g the grant that it passed on before, or "none".
Covers(g, e, c) ==
    /\ g.e = e /\ g.members = c.members /\ g.k = c.k /\ g.coord = c.coord
    /\ ((g.last # 0 \/ g.lrtq) <=> c.old # {})
    /\ g.lrtq => g.last = 0 /\ Cardinality(c.old) = 1
    /\ g.last < e /\ g.keep <= g.last

PrepareOk(s, n, e, id, from, gs) ==
    LET c == Config(e, id) IN
    /\ Active(s)
    /\ n \in c.members
    /\ from = c.coord
    /\ Last(s) <= e
    /\ s.cfg[e] \in {0, id}
    /\ \/ Prepared(s, e)
       \/ /\ ~(s.coord.e = e /\ s.cfg[e] = 0)
          /\ \/ Off("CheckGrant") /\ CarriesOld(s, e, c, 0)
             \/ \E g \in gs : /\ Covers(g, e, c)
                              /\ CarriesOld(s, e, c, g.keep)
                              /\ LET have == IF Last(s) > Sure(s) THEN Last(s) ELSE Sure(s)
                                 IN ~(have > g.last /\ have < e)

DoPrepare(s, n, e, id) ==
    IF Prepared(s, e) THEN EndOlder(s, e)
    ELSE LET a == [s EXCEPT !.cfg[e] = id, !.sh = @ \cup {e}]
         IN EndOlder(IF e \in a.cert THEN DoCommit(a, n, e) ELSE a, e)

\* The acknowledgement is a message of its own (Async), or reaches the coordinator in the same step: what happens in between
\* does not depend on it, and a coordinator that ends before is one that it does not reach.
Preparing(c, e) == Active(c) /\ c.coord.ph = "prepare" /\ c.coord.e = e
Acknowledge(f, n, c, e) == IF ~Async /\ Preparing(f[c], e) /\ n \in MembersAt(f[c], e) THEN [f EXCEPT ![c].coord.acked = @ \cup {n}] ELSE f
NewAck(n, c, e) == IF Async THEN <<n, e>> \notin acks ELSE Preparing(node[c], e) /\ n \notin node[c].coord.acked

NodePrepare(n, e, id, from, gs) ==
    /\ PrepareOk(node[n], n, e, id, from, gs)
    /\ ~Prepared(node[n], e) \/ node[n].coord.e \in 1..(e - 1) \/ NewAck(n, from, e) \* otherwise nothing changes
    /\ acks' = IF Async THEN acks \cup {<<n, e>>} ELSE acks
    /\ \/ LET s == DoPrepare(node[n], n, e, id) IN
          /\ node' = Acknowledge([node EXCEPT ![n] = s], n, from, e)
          /\ Mail(n, s)
          /\ UNCHANGED spent
       \/ /\ Off("SaveBeforeAck") /\ spent.node < MaxCrash \* acknowledged, and dead before it was stored
          /\ spent' = [spent EXCEPT !.node = @ + 1]
          /\ node' = Acknowledge([node EXCEPT ![n] = Crashed(@, n)], n, from, e)
          /\ Mail(n, Crashed(node[n], n))
    /\ UNCHANGED <<made, chg, ctl, stray>>

\* coordinatorAck. A liar acknowledges what it has not stored.
NodeAck(n, p) ==
    LET c == node[n].coord IN
    /\ Active(node[n]) /\ c.ph = "prepare"
    /\ <<p, c.e>> \in acks \/ p \in Liar
    /\ p \in MembersAt(node[n], c.e) \ c.acked
    /\ Steps(n, [node[n] EXCEPT !.coord.acked = @ \cup {p}])
    /\ UNCHANGED <<made, acks>> /\ Quiet

\* onShare: a share serves the coordination or else the computation, and the load.
TakeLoad(s, q, e) ==
    IF s.load.e # e \/ q \in s.load.got THEN s
    ELSE IF Cardinality(s.load.got) + 1 >= Needed(s, e) THEN [s EXCEPT !.load = NoLoad, !.has = e]
    ELSE [s EXCEPT !.load.got = @ \cup {q}]

TakeComp(s, n, q, e) ==
    IF s.comp.e # e \/ q \in s.comp.got THEN s
    ELSE LET a == [s EXCEPT !.comp.got = @ \cup {q}]
         IN IF Cardinality(a.comp.got) < Needed(s, e) THEN a
            ELSE DoCommit([a EXCEPT !.sh = @ \cup {e}], n, e)

ShareAdds(s, q, e) ==
    \/ s.coord.ph = "collect" /\ From(s.coord) = e /\ q \notin s.coord.got
    \/ s.coord.e = 0 /\ s.comp.e = e /\ q \notin s.comp.got
    \/ s.load.e = e /\ q \notin s.load.got

NodeShare(n, q, e) ==
    LET s == node[n]
        coords == s.coord.ph = "collect" /\ From(s.coord) = e /\ q \notin s.coord.got
        enough == coords /\ Cardinality(s.coord.got) + 1 >= Needed(s, e)
    IN /\ Active(s)
       /\ ShareAdds(s, q, e)
       /\ IF enough
          THEN \E g \in {x \in GrantsOf(s.coord.e) : x.coord = n} :
                   Distribute(n, TakeLoad(s, q, e), [g EXCEPT !.last = s.coord.base],
                              {e} \cup (IF Lrtq /\ e = 1 THEN {} ELSE {x \in Config(e, s.cfg[e]).old : x >= g.keep}))
          ELSE /\ Steps(n, TakeLoad(IF coords THEN [s EXCEPT !.coord.got = @ \cup {q}]
                                    ELSE IF s.coord.e = 0 THEN TakeComp(s, n, q, e) ELSE s, q, e))
               /\ UNCHANGED <<made, spent>>
       /\ UNCHANGED <<acks, chg, ctl, stray>>

\* onCommitAdvance: q says, with proof, that e is committed.
NodeAdvance(n, q, e) ==
    LET id == node[q].cfg[e] IN
    /\ LearnOk(node[n], n, e, id)
    /\ Certified(e, id)
    /\ Steps(n, DoLearn(node[n], n, e, id))
    /\ UNCHANGED <<made, acks>> /\ Quiet

\* onExpunged: only a former member, and only a committed configuration without it that is no older than what it holds.
ExpungedOk(s, n, e, id) ==
    /\ Active(s)
    /\ Latest(s) # 0
    /\ s.cert # {} \/ Off("CheckMembership")
    /\ e >= Latest(s)
    /\ s.cfg[e] \in {0, id}
DoExpunged(s, e, id) == Forget([s EXCEPT !.cfg[e] = id, !.cert = @ \cup {e}, !.exp = e])

NodeExpunged(n, q, e) ==
    LET id == node[q].cfg[e] IN
    /\ ExpungedOk(node[n], n, e, id)
    /\ Certified(e, id)
    /\ n \notin Config(e, id).members
    /\ Steps(n, DoExpunged(node[n], e, id))
    /\ UNCHANGED <<made, acks>> /\ Quiet

\* Without Async: n asks q for a share of e, and q's answer arrives in the same step.
NodeAsk(n, q, e) ==
    LET a == Answer(node[q], n, e) IN
    CASE a[1] = "share" -> NodeShare(n, q, e)
      [] a[1] = "advance" -> NodeAdvance(n, q, a[2])
      [] a[1] = "expunged" -> NodeExpunged(n, q, a[2])
      [] OTHER -> FALSE

\* With Async: q answers a request that n once sent, and the answer arrives later. News are what q could have told:
\* committed epochs later than the one that n asked for, or a proof that n is not in the one that it asked for.
NodeAnswer(q, n, e) ==
    /\ <<n, e>> \in reqs
    /\ <<q, n, e>> \notin shares
    /\ Answer(node[q], n, e)[1] = "share"
    /\ shares' = shares \cup {<<q, n, e>>}
    /\ UNCHANGED <<node, made, acks, reqs>> /\ Quiet

MayTell(q, n, e) ==
    /\ e \in node[q].cert
    /\ \E w \in 1..e : <<n, w>> \in reqs /\ (w < e \/ n \notin MembersAt(node[q], e))

NodeTold(n, q, e) == MayTell(q, n, e) /\ IF n \in MembersAt(node[q], e) THEN NodeAdvance(n, q, e) ELSE NodeExpunged(n, q, e)
NodeGiven(n, q, e) == <<q, n, e>> \in shares /\ e \in Wanted(node[n]) /\ q \in Givers(node[n], e) /\ NodeShare(n, q, e)

-----------------------------------------------------------------------------
(* A liar. It knows every grant and certificate and every configuration, and makes configurations of its own. None of *)
(* these steps is possible as long as the rules hold; what it may do unhindered is true news (NodeAdvance,             *)
(* NodeExpunged with q a liar) and false acknowledgements (NodeAck).                                                   *)

ClaimOk(e, id) == Certified(e, id) \/ Off("CheckCertificate")

LiarPrepare(n, l, e) == NodePrepare(n, e, Forged, l, GrantsOf(e))

LiarAdvance(n, l, e) ==
    /\ ClaimOk(e, Forged)
    /\ LearnOk(node[n], n, e, Forged)
    /\ Steps(n, DoLearn(node[n], n, e, Forged))
    /\ UNCHANGED <<made, acks>> /\ Quiet

\* It shows a committed configuration that proves nothing, or true proof to one who never was a member, or no proof.
LiarExpunged(n, l, e) ==
    \E id \in 1..Len(made[e]) \cup {Forged} :
        /\ ClaimOk(e, id) \/ Off("CheckProof")
        /\ n \notin Config(e, id).members \/ Off("CheckProof")
        /\ ExpungedOk(node[n], n, e, id)
        /\ Steps(n, DoExpunged(node[n], e, id))
        /\ UNCHANGED <<made, acks>> /\ Quiet

-----------------------------------------------------------------------------
(* Crashes of nodes. A sled that is down and comes back is one that is slow and has forgotten, so a crash is one step,   *)
(* unless the sled may stay down.                                                                                      *)

Crash(n) ==
    /\ spent.node < MaxCrash /\ node[n].up /\ Crashed(node[n], n) # node[n]
    /\ spent' = [spent EXCEPT !.node = @ + 1]
    /\ Steps(n, Crashed(node[n], n))
    /\ UNCHANGED <<made, acks, chg, ctl, stray>>

Restart(n) ==
    /\ ~node[n].up
    /\ Steps(n, Started(node[n], n))
    /\ UNCHANGED <<made, acks>> /\ Quiet

-----------------------------------------------------------------------------

Init ==
    /\ node = [n \in Node |-> Fresh(n)]
    /\ chg = [e \in Epoch |-> IF LrtqNode # {} /\ e = 1 THEN [NoChange EXCEPT !.st = "lrtq", !.members = LrtqNode, !.k = LrtqK]
                              ELSE NoChange]
    /\ ctl = {}
    /\ made = [e \in Epoch |-> <<>>]
    /\ acks = {} /\ reqs = {} /\ shares = {}
    /\ stray = [grants |-> {}, certs |-> {}]
    /\ spent = [node |-> 0, ctl |-> 0]

\* What a change may drop: nothing more, or everything that is older than the last decision.
Keeps == IF Prune /\ Cardinality(Decided) > 1 THEN {chg[LastDecided].keep, LastDecided} ELSE {0}

Controller ==
    \/ Highest < MaxEpoch /\ \E p \in Plans[Highest + 1] : \E c \in p.members : \E keep \in Keeps : CtlBegin(Highest + 1, p, c, keep)
    \/ Highest # 0 /\ (CtlPoll(Highest) \/ CtlDecide(Highest) \/ CtlAbortDecided)
    \/ CtlCrash

Request(n, e) ==
    \/ \E g \in GrantsOf(e) : NodeReconfigure(n, g)
    \/ made[e] # <<>> /\ (NodeCommit(n, e) \/ NodePrepareAndCommit(n, e))

Prepares(n, e) == \E id \in 1..Len(made[e]) : NodePrepare(n, e, id, made[e][id].coord, GrantsOf(e))
Acks(n) == node[n].coord.ph = "prepare" /\ \E p \in (IF Async THEN Node ELSE Liar) \ {n} : NodeAck(n, p)
Asks(n, q) == \E e \in Wanted(node[n]) : q \in Givers(node[n], e) /\ NodeAsk(n, q, e)
Answers(n, q) == \E e \in Epoch : NodeAnswer(n, q, e) \/ NodeTold(n, q, e) \/ NodeGiven(n, q, e)

Messages(n) ==
    \/ \E e \in Epoch : Prepares(n, e)
    \/ Acks(n)
    \/ \E q \in Node \ {n} : IF Async THEN Answers(n, q) ELSE Asks(n, q)

Lies(n) ==
    \E l \in Liar \ {n} : \E e \in Epoch : LiarPrepare(n, l, e) \/ LiarAdvance(n, l, e) \/ LiarExpunged(n, l, e)

Turn(n) ==
    IF node[n].up THEN (\E e \in Epoch : Request(n, e)) \/ NodeLoad(n) \/ Messages(n) \/ Lies(n) \/ Crash(n)
    ELSE n \notin StayDown /\ Restart(n)

Next == Controller \/ \E n \in Node : Turn(n)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Invariants. T1 to T7 are those of the reference's model in our terms; P and X name rows of protocol.md §12. *)

TypeOK == \* T1
    /\ \A n \in Node : LET s == node[n] IN
          /\ s.up \in BOOLEAN
          /\ s.cfg \in [Epoch -> 0..Forged]
          /\ s.sh \subseteq Epoch /\ s.com \subseteq Epoch /\ s.cert \subseteq Epoch
          /\ s.exp \in 0..MaxEpoch /\ s.has \in 0..MaxEpoch
          /\ s.coord.e \in 0..MaxEpoch /\ s.coord.ph \in {"none", "collect", "prepare"}
          /\ s.coord.got \subseteq Node /\ s.coord.acked \subseteq Node
          /\ s.comp.e \in 0..MaxEpoch /\ s.comp.got \subseteq Node
          /\ s.load.e \in 0..MaxEpoch /\ s.load.got \subseteq Node /\ s.load.wait \in BOOLEAN
    /\ \A e \in Epoch : chg[e].st \in {"unused", "lrtq", "preparing", "aborted", "decided"}
    /\ acks \subseteq Node \X Epoch /\ reqs \subseteq Node \X Epoch /\ shares \subseteq Node \X Node \X Epoch

CoordinatorIsMember == \* T2
    \A e \in Epoch : chg[e].st \in {"preparing", "decided", "aborted"} => chg[e].coord \in chg[e].members

AskedFor == \* T3: nobody holds what the controller did not ask for, and nothing newer than it knows of
    \A n \in Node : \A e \in Epoch : node[n].cfg[e] # 0 =>
        LET c == Config(e, node[n].cfg[e]) IN
        /\ chg[e].st # "unused"
        /\ c.members = chg[e].members /\ c.k = chg[e].k /\ c.coord = chg[e].coord

OneConfiguration == \* P1
    \A m, n \in Node : \A e \in Epoch :
        node[m].cfg[e] = 0 \/ node[n].cfg[e] = 0 \/ node[m].cfg[e] = node[n].cfg[e]

CommitsArePrepared == \* T5, T6, X1
    \A n \in Node : LET s == node[n] IN
        /\ \A e \in s.com : Prepared(s, e) /\ n \in MembersAt(s, e)
        /\ Last(s) <= Latest(s)
        /\ \A e \in s.sh : s.cfg[e] # 0 \/ (Lrtq /\ e = 1)

CommitsAreCertified == \* D19 in the large: no commit without a certificate, no certificate without a recorded decision
    /\ \A n \in Node : \A e \in node[n].com : e \in node[n].cert
    /\ \A n \in Node : \A e \in node[n].cert : chg[e].st = "decided" /\ node[n].cfg[e] = chg[e].id

OneDecision == \* at most one per epoch, and each builds on the one before: no branch
    /\ \A c \in stray.certs : chg[c[1]].st # "unused" => chg[c[1]].id = c[2] /\ chg[c[1]].st = "decided"
    /\ \A e \in Decided : LET before == {x \in Decided : x < e}
                          IN chg[e].last = Max(before) /\ (before = {} /\ Lrtq => chg[e].lrtq)

Reconstructible == \* X5: what was decided can lose as many members as the controller waited for beyond the threshold
    \A e \in Decided : Cardinality({n \in chg[e].members : Prepared(node[n], e)}) + Cardinality(Liar) >= chg[e].need

OldSecretsCarried == \* X8: and the LRTQ secret, as epoch 1; but for what the operator has dropped
    \A e \in Decided : made[e][chg[e].id].old =
        {x \in Decided \cup (IF Lrtq THEN {1} ELSE {}) : chg[e].keep <= x /\ x < e}

LoadedIsDecided == \* X6: what is in memory is the secret of a decided epoch of which this node holds a share
    \A n \in Node : node[n].has # 0 => node[n].has \in node[n].com \cap Decided

ExpungedWithProof == \* P6
    \A n \in Node : LET x == node[n].exp IN x # 0 =>
        /\ x \in Decided
        /\ \E e \in Decided : e < x /\ n \in chg[e].members
        /\ \A e \in Decided : e >= x => n \notin chg[e].members

ExclusiveRoles == \* P4
    \A n \in Node : node[n].coord.e = 0 \/ node[n].comp.e = 0

DownIsEmpty == \A n \in Node : ~node[n].up => node[n] = [Forget(node[n]) EXCEPT !.up = FALSE]

(* What must be possible, or the invariants would say nothing: TLC must find that each of these is violated. *)

NeverComputes == \A n \in Node : node[n].comp.e = 0
NeverExpunged == \A n \in Node : node[n].exp = 0
NeverLoaded == \A n \in Node : node[n].has = 0
NeverUpgraded == \A n \in Node : node[n].com = {}

(* Properties of steps. *)

Changed == {n \in Node : node'[n] # node[n]}

NothingLost == \* T4, X3: what a node has stored, or answered "committed" for, stays
    [][\A n \in Changed : LET s == node[n] t == node'[n] IN
        /\ \A e \in Epoch : s.cfg[e] \in {0, t.cfg[e]}
        /\ s.sh \subseteq t.sh /\ s.com \subseteq t.com /\ s.cert \subseteq t.cert
        /\ s.exp \in {0, t.exp}]_node

CommitHasShare == \* T7: a commit arrives where the share is, or together with it
    [][\A n \in Changed : node'[n].com \ node[n].com \subseteq node'[n].sh]_node

DecisionsStay == [][\A e \in Decided : chg'[e].st = "decided" /\ chg'[e].id = chg[e].id]_chg

NewsBeforeShares == \* a sled that knows of a later commit gives no share of an earlier epoch (protocol.md §9.3)
    [][\A m \in shares' \ shares : Last(node[m[1]]) <= m[3]]_shares

-----------------------------------------------------------------------------
(* Liveness: T8 and what the operator waits for. Progress is everything that happens by itself as long as somebody is   *)
(* there to do it: no crash, no new change, no new load. Each of its steps adds to something that never shrinks before *)
(* the next crash or change, so it comes to an end, and fairness to Progress as a whole is enough.                     *)

Progress ==
    \/ Highest # 0 /\ (CtlPoll(Highest) \/ CtlDecide(Highest))
    \/ \E n \in Node : IF node[n].up THEN (\E e \in Epoch : Request(n, e)) \/ Messages(n)
                        ELSE n \notin StayDown /\ Restart(n)

LiveSpec == Spec /\ WF_vars(Progress)

\* Who runs and can give n a share of e.
Sources(n, e) == {m \in MembersAt(node[n], e) \ {n} : Active(node[m]) /\ e \in node[m].sh}
Following == LastDecided # 0 => \A n \in chg[LastDecided].members : node[n].up => LastDecided \in node[n].com
Computing(n) == node[n].comp.e # 0 /\ Cardinality(Sources(n, node[n].comp.e)) >= Needed(node[n], node[n].comp.e)
Waiting(n) == node[n].load.e # 0 /\ Cardinality(Sources(n, node[n].load.e)) + 1 >= Needed(node[n], node[n].load.e)

\* As an invariant: when nothing happens by itself any more, nobody is stuck.
AtRest ==
    \/ ENABLED Progress
    \/ /\ \A n \in Node : ~Computing(n) /\ ~Waiting(n)
       /\ (\A n \in Node : node[n].up) => Following

\* And as it is meant, in small bounds.
EveryoneFollows == <>[](StayDown # {} \/ Following)
NobodyComputesForever == \A n \in Node : Computing(n) ~> ~Computing(n)
NobodyWaitsForever == \A n \in Node : Waiting(n) ~> ~Waiting(n)
=============================================================================
