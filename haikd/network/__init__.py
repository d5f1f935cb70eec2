"""How a user's Haiku function is run: cast, gathered, captured, rematted."""
