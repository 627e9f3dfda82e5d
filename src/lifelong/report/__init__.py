"""Tables and pictures of results. Reads results, never trains."""
