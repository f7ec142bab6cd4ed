"""A file of prompts, answered so that no crash loses a result or writes one twice.

lines       an input as numbered lines, each with the fingerprint of all that came before
fields      the values of a record, checked
records     a line as a record: what it asks, how, or why it cannot be answered
formats     lines as records and results as lines; openai_format has them in the envelope of OpenAI's Batch API
prompts     a record as the request that a generator answers
order       what drives the generator over all of them, and gives the results in input order
journal     the file of results: resumed, appended to, retried, a prefix of the finished one at every moment
output      the same file, open: whole lines that get to the disk
manifest    the hidden file beside it: the lock, the settings that were used, and fingerprints of the input
parity      how many answers match those of an exact run of the prompt alone
job         all of it: `hfpipe.batch`
"""

from hfpipe._callable import callable_package
from hfpipe.batch.job import Options, Summary, run

__all__ = ["Options", "Summary", "run"]

callable_package(__name__)
