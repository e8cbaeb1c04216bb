-------------------------------- MODULE Trace --------------------------------
(* Runs of the simulated cluster (vault/quorum/quorumtest), each of which must be a behaviour of Quorum with Async.   *)
(* Runs.tla is generated: a run is a sequence of events, and every event must be a step of the model that leads to    *)
(* the state which the sled then had. Events that changed nothing are not written, but for the answers to requests    *)
(* for shares, which must be those of the model, and for requests of the controller, with which the model can do      *)
(* nothing either. TLC reports a deadlock at the first event that no step explains.                                   *)
EXTENDS Quorum, Runs

VARIABLES run, at

Events == Runs[run].events
Liars == Runs[run].liars

\* What a sled holds and does, as the exporter writes it: <<up, cfg, sh, com, cert, exp, coord, comp, load, has>>.
State(p) ==
    [up |-> p[1],
     cfg |-> [e \in Epoch |-> IF e \in DOMAIN p[2] THEN p[2][e] ELSE 0],
     sh |-> p[3], com |-> p[4], cert |-> p[5], exp |-> p[6],
     coord |-> [e |-> p[7][1], base |-> p[7][2], ph |-> p[7][3], got |-> p[7][4], acked |-> p[7][5]],
     comp |-> [e |-> p[8][1], got |-> p[8][2]],
     load |-> [e |-> p[9][1], got |-> p[9][2], wait |-> p[9][3]],
     has |-> p[10]]
Is(n, p) == p = <<>> \/ node'[n] = State(p) \* <<>>: stored, and dead before anyone could look

Only(n, s) == Set(n, s) /\ Mail(n, s) /\ UNCHANGED <<made, acks>> /\ Quiet

\* The controller read acknowledgements at some time before, and the coordinator had them then.
Decides(e, acked) ==
    /\ chg[e].st = "preparing"
    /\ Cardinality(acked) >= chg[e].need
    /\ made[e] # <<>>
    /\ \A m \in acked : m = chg[e].coord \/ <<m, e>> \in acks \/ m \in Liars
    /\ chg' = [chg EXCEPT ![e].st = "decided", ![e].id = 1]
    /\ UNCHANGED <<node, ctl, made, acks, reqs, shares, stray, spent>>

\* A liar tells the truth too, at times without having been asked.
Advances(n, q, e) == IF q \in Liars THEN NodePrepareAndCommit(n, e) ELSE NodeTold(n, q, e)
Expunges(n, q, e) ==
    /\ Certified(e, 1) /\ n \notin Config(e, 1).members
    /\ q \in Liars \/ MayTell(q, n, e)
    /\ ExpungedOk(node[n], n, e, 1)
    /\ Only(n, DoExpunged(node[n], e, 1))

Acknowledges(n, p) ==
    LET c == node[n].coord IN
    /\ Active(node[n]) /\ c.ph = "prepare"
    /\ <<p, c.e>> \in acks \/ p \in Liars
    /\ p \in MembersAt(node[n], c.e) \ c.acked
    /\ Only(n, [node[n] EXCEPT !.coord.acked = @ \cup {p}])

\* n answers p's request for e.
AnswersWith(n, p, e, kind) ==
    /\ <<p, e>> \in reqs \/ p \in Liars
    /\ Answer(node[n], p, e)[1] = kind
    /\ shares' = IF kind = "share" THEN shares \cup {<<n, p, e>>} ELSE shares
    /\ UNCHANGED <<node, made, acks, reqs>> /\ Quiet

\* n asks for shares to compare them, which Quorum does not model; that they are asked for is all that matters here.
Compares(n, e) == reqs' = reqs \cup {<<n, e>>} /\ UNCHANGED <<node, made, acks, shares>> /\ Quiet

\* A request of the controller was refused, or there was nothing to do. The model must agree: requests carry good grants and
\* certificates, so nothing but the node's state decides.
Idles(n, e, kind) ==
    /\ CASE kind = "reconfigure" -> \A g \in GrantsOf(e) : ~ReconfigureOk(node[n], n, g)
         [] kind = "commit"      -> ~ENABLED NodeCommit(n, e)
         [] kind = "hand"        -> ~LearnOk(node[n], n, e, 1) \/ DoLearn(node[n], n, e, 1) = node[n]
    /\ UNCHANGED vars

\* Everything else is a step of Quorum itself: <<kind, sled, other, epoch, state afterwards>>.
Step(ev) ==
    LET n == ev[2] q == ev[3] e == ev[4] IN
    CASE ev[1] = "begin"       -> CtlBegin(e, [members |-> ev[5], k |-> ev[6], need |-> ev[7]], n, ev[9]) /\ chg'[e].last = ev[8]
      [] ev[1] = "decide"      -> Decides(e, ev[5])
      [] ev[1] = "get"         -> AnswersWith(n, q, e, ev[5])
      [] ev[1] = "compare"     -> Compares(n, e)
      [] ev[1] = "idle"        -> Idles(n, e, ev[5])
      [] ev[1] = "reconfigure" -> NodeReconfigure(n, GrantOf(e, chg[e])) /\ Is(n, ev[5])
      [] ev[1] = "prepare"     -> made[e] # <<>> /\ NodePrepare(n, e, 1, q, GrantsOf(e)) /\ Is(n, ev[5])
      [] ev[1] = "ack"         -> Acknowledges(n, q) /\ Is(n, ev[5])
      [] ev[1] = "share"       -> NodeGiven(n, q, e) /\ Is(n, ev[5])
      [] ev[1] = "advance"     -> Advances(n, q, e) /\ Is(n, ev[5])
      [] ev[1] = "expunged"    -> Expunges(n, q, e) /\ Is(n, ev[5])
      [] ev[1] = "commit"      -> NodeCommit(n, e) /\ Is(n, ev[5])
      [] ev[1] = "hand"        -> NodePrepareAndCommit(n, e) /\ Is(n, ev[5])
      [] ev[1] = "load"        -> NodeLoad(n) /\ Is(n, ev[5])
      [] ev[1] = "cancel"      -> Only(n, [node[n] EXCEPT !.load.wait = FALSE]) /\ Is(n, ev[5])
      [] ev[1] = "clear"       -> Only(n, [node[n] EXCEPT !.load = NoLoad, !.has = 0]) /\ Is(n, ev[5])
      [] ev[1] = "crash"       -> Only(n, [Forget(node[n]) EXCEPT !.up = FALSE]) /\ Is(n, ev[5])
      [] ev[1] = "start"       -> Restart(n) /\ Is(n, ev[5])
      [] OTHER                 -> FALSE

\* Init, with the older scheme of this run: <<its members, its threshold>>.
TraceInit ==
    /\ at = 1 /\ run \in DOMAIN Runs
    /\ LET old == Runs[run].lrtq IN
       /\ node = [n \in Node |-> [Fresh(n) EXCEPT !.sh = IF n \in old[1] THEN {1} ELSE {}]]
       /\ chg = [e \in Epoch |-> IF old[1] # {} /\ e = 1 THEN [NoChange EXCEPT !.st = "lrtq", !.members = old[1], !.k = old[2]]
                                 ELSE NoChange]
    /\ ctl = {} /\ made = [e \in Epoch |-> <<>>] /\ acks = {} /\ reqs = {} /\ shares = {}
    /\ stray = [grants |-> {}, certs |-> {}] /\ spent = [node |-> 0, ctl |-> 0]
TraceNext ==
    /\ run' = run
    /\ IF at <= Len(Events) THEN at' = at + 1 /\ Step(Events[at])
       ELSE UNCHANGED <<vars, at>> \* the end
TraceSpec == TraceInit /\ [][TraceNext]_<<vars, run, at>>

Unexplained == at <= Len(Events) \* an invariant of runs that were spoiled on purpose

\* Members whose acknowledgement was a lie are no loss that the controller could know of.
RunReconstructible ==
    \A e \in Decided : Cardinality({n \in chg[e].members : Prepared(node[n], e)}) + Cardinality(Liars) >= chg[e].need
=============================================================================
