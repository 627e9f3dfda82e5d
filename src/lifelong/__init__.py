"""Learn tasks one after another and keep what was known."""
