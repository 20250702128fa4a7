"""The run store: what a run measured, where it stands, and what it needs to go on.

A run is a directory:

======================================  ========================================================
``ledger.sqlite``                       rounds, clients and layers; one transaction a round
``manifest.json``                       what ran, on what, and how it ended
``config.toml``                         the experiment, every setting resolved
``checkpoint-000012.safetensors``       the global model and the strategy's arrays after round 12
``run.lock``                            held by the process that writes the run
======================================  ========================================================

``store`` writes it, ``read`` reads it (also while it is being written), ``export`` copies its
tables out. Copy a run that is being written as a whole directory, or not at all: SQLite's
write-ahead log is a part of the ledger.
"""
