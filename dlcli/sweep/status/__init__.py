"""The state of a running sweep, read from its ledger and shown."""
