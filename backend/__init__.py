"""The Label Studio ML backend: features, head, uncertainty, queue order, retraining, rescoring."""

import os

# Turns of a loop in which torch's threads wait awake for their next piece of work, before they
# sleep. GNU's OpenMP reads it as torch is loaded. Its own 300,000 (libgomp, env.c) suit a machine
# where nothing else computes: of two processes on as many cores, each keeps those that the other
# waits for from running (docs/model.md, "Two at once"). With 1,000 the trunk alone is slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
