--------------------------------- MODULE MC ---------------------------------
(* Bounds for TLC. Each scenario is a .cfg file beside this one. *)
EXTENDS Quorum, TLC
CONSTANTS a, b, c, d

Plan(members, k, need) == [members |-> members, k |-> k, need |-> need]
Fixed(first, later) == [e \in Epoch |-> IF e = 1 THEN first ELSE later]

Grow == Fixed({Plan({a, b, c}, 2, 3)}, {Plan({a, b, c, d}, 2, 3)})
Shrink == Fixed({Plan({a, b, c, d}, 2, 4)}, {Plan({a, b, c}, 2, 2)})
Rotate == Fixed({Plan({a, b, c}, 2, 3)}, {Plan({a, b, c}, 2, 2)})
Loose == Fixed({Plan({a, b, c}, 2, 2)}, {Plan({a, b, c}, 2, 2)})
Spare == Fixed({Plan({a, b, c, d}, 2, 3)}, {Plan({a, b, c, d}, 2, 3)})

NothingAborted == \A e \in Epoch : chg[e].st # "aborted"

AnyOfThree == Permutations({a, b, c})
AnyOfTwo == Permutations({a, b})
=============================================================================
