"""The search for M3's ratio: many merges scored on one live engine."""
