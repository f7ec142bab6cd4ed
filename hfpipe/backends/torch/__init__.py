"""The torch engine: decoding.py answers requests in batches, loading.py loads."""
