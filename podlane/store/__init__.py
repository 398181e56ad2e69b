"""The cluster's objects in etcd."""

import os

# gRPC's core would write of each failed handshake to standard error; errors say it, once (tlsfault.py)
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
