"""A file of prompts, answered so that no crash loses a result or writes one twice.

lines.py          an input as numbered lines, each with the fingerprint of all that came before
fields.py         the values of a record, checked
records.py        a line as a record: what it asks, how, or why it cannot
results.py        a result as a line, and a line as what it is the result of
formats.py        both together; openai_format.py has them in the envelope of OpenAI's Batch API
prompts.py        a record as the request that a generator answers
runner.py         what drives the generator over all of them
sequencer.py      results in any order in, lines in input order out
journal.py        the output: locked, resumed, appended to, a prefix of the finished file at every moment
manifest.py       what stands beside it: the settings, and the fingerprints of what is done
parity.py         how many answers are those that their prompts get alone and exactly
standing.py       what stands in it      output.py   the same, open      disk.py   what makes bytes survive
"""
