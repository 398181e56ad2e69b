"""What every daemon stands on: loop, process frame, clock, logs, metrics, health, commands.

Knows nothing of etcd, pods or the kernel's networking.
"""
