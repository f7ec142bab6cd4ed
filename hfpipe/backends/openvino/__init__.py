"""The OpenVINO engine: decoding.py answers one request at a time, or many at once; loading.py loads."""
