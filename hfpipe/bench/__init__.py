"""Which choice is best for a model on this machine, and whether the difference is real.

metrics.py     the names of what is measured, and what each of them times
report.py      what was measured, all of it raw: samples, configurations, host; to JSON and back
choices.py     what the user wants compared     device.py   whether an engine has a device
candidates.py  models, engines and formats as configurations
exports.py     the exports among them, in the cache     references.py  what their sources say of a text
labelled.py    who of them is speaking
rounds.py      one round after the other over all of them     pace.py   how long the rest takes
tasks.py       what is done with each in a round, in a process of its own: worker.py, or `hfpipe run`
measure.py     what is timed in there     noise.py   what else the machine did     host.py   what it is
quality.py     how far each is from its source; judge.py has it answer     origins.py  which that is
prompts.py     the user's own prompts
benchmark.py   all of these in their order
statistics.py  medians, intervals, verdicts
summary.py     what a report comes to     advice.py   which choice to take     comparison.py   beside an earlier report
text.py        these as tables of texts; plots/ and cli/bench_report.py show them     numbers.py   as they are read
files.py       the files that a run leaves
"""
