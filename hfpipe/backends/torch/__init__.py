"""The torch engine: decoding.py answers requests in batches, loading.py loads, attention.py is faster than sdpa."""
