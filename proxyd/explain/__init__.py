"""What proxyd says of itself when it is asked: `proxyd status`, `services`, `plan`, `ruleset` and `trace`.

view.py and names.py read the store and the kernel as they are; report.py,
servicelist.py, difference.py and listing.py print them. trace.py asks the model
which way a connection takes; live.py sends a real packet (inject.py, frames.py),
follows it (nftrace.py) and takes back what it left behind (remembered.py). Only
that packet and removal.py, which is `proxyd uninstall`, change anything.
"""
