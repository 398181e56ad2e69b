"""`netd doctor`: why pod packets do not arrive, in an operator's words.

Four stages, and only two of them touch the host: facts.py reads it, examine.py
sends probes; checks.py, drift.py and verdict.py turn what those found into
findings and do no I/O. diagnosis.py puts them together, report.py prints.
Nothing here changes anything.
"""
