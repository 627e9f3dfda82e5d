"""From words on the command line to a configuration, and from there to objects."""
