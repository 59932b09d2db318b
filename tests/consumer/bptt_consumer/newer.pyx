"""Compiled against a newer version of the interface than is installed."""

cimport fastbptt.cython_api as bptt

bptt.import_fastbptt()
