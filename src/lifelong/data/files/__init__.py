"""Files that images are read from: archives, the cache of what was parsed, downloads."""
