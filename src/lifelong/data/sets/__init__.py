"""One file a data set: where its images come from and how its files are read."""
