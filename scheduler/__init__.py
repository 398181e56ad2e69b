"""The control plane: replication, placement, endpoints and node health; agent/ runs pods on a node.

The four controllers are pure (a snapshot in, a plan out); leader.py is the
only place that decides when they run, and controllers.py the only one that
carries their plans out.
"""
