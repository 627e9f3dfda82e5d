"""The commands. Nobody imports them."""
