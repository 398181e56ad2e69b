"""The benchmarks, and the frame that runs them: `python -m bench`.

A module here that has a tuple BENCHMARKS is found by itself; see rows.py for
what a benchmark is and gives. Where there is something to compare with, the
peer is measured in the same run, on the same machine, doing the same work.
"""
