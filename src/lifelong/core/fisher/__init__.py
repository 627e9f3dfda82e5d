"""The Fisher information: exact, in batches, for every network."""
