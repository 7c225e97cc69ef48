"""User-level differential privacy: the ledger, noise and coins, scrubbing of text."""
