"""Exports for OpenVINO that are planned, atomic and proven.

options.py       what a user may ask for
plan.py          what will be done, checked before a weight is read
calibration.py   the texts to calibrate on
shapes.py        the weights that a quantization takes      estimate.py     what it will take
quantization.py  int4, decided
exporter.py      the work: convert, verify, report, and give it its name
place.py         a folder beside the output, renamed when it is whole
kept.py          exports in the cache
verify.py        the export, loaded afresh and compared with its source      runtime.py   options that make it faster
report.py        hfpipe.json
"""
