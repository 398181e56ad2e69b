"""Placement: which node each unassigned pod goes to, or why none will do.

Pure: objects in, a plan out. The parts, each using those before it:

| module | what it owns |
|---|---|
| model | the plan |
| demand, wants, shape | what a pod asks for; pods that ask for the same are one Shape |
| nodes | filters and scores of a node by itself |
| counts, state | the cluster, kept up to date by changes: nodes, pods, pods by domain |
| rules | affinity, anti-affinity and spread, by domain |
| board, classes | choosing for one class at a cost per pod that does not grow with the nodes |
| explain | why a class fits nowhere |
| preemption | what has to end so that a pod fits |
| planner | the order of classes, and what those that fit nowhere wait for |

Nothing is imported here: an agent takes only what says what a pod asks for.
"""
