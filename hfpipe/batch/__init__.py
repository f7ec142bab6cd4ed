"""A file of prompts, answered so that no crash loses a result or writes one twice.

lines       an input as numbered lines, each with the fingerprint of all that came before
records     what a line asks, its values checked, and the request that it makes
formats     lines as records, and answers as lines
order       what drives the model over all of them, and gives the results in input order
journal     the file of results: resumed, appended to, retried, a prefix of the finished one at every moment
manifest    the hidden file beside it: the lock, the settings that were used, and fingerprints of the input
parity      how many answers match those of an exact run of the prompt alone
job         all of it: `hfpipe.batch`
"""

from hfpipe.batch.job import Options, run
from hfpipe.batch.order import Summary

__all__ = ["Options", "Summary", "run"]
