"""netd: leases a subnet per host and builds the VXLAN overlay, in flannel's formats.

One loop: observe the kernel (kernel.py) and the leases (the store's mirror),
derive what should be (desired.py, pure), plan the difference (plan.py, pure),
apply it (kernel.py). Leasing is its own loop (lease.py on allocate.py).
"""
