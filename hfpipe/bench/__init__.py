"""Which choice is best for a model on this machine, and whether the difference is real.

report.py      what was measured: samples, configurations, host; to JSON and back
metrics.py     the names of what is measured, and what each of them times
"""
