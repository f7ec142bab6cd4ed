"""The OpenVINO engine: single.py answers one request at a time, paged.py many at once; loading.py serves both."""
