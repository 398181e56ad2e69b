"""The lab: several hosts on one machine, each a network namespace with daemons of its own.

It is the quickstart, the demonstration and the test bed. Modules: topology
(what a lab is made of; pure), network (namespaces, bridge, faults), process
(daemons started and ended by pid), daemons (how each is run; pure), credentials
(everybody's certificates), enrolment (what each may do in etcd), cluster (up,
down, status), context (reaching a lab from outside), traffic (requests from
hosts), demo and picture (what `podlane lab demo` shows).
"""
