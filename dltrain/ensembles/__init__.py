"""Several trained models as one: how much each counts, and what they then are worth."""
