"""The algorithms, each one short file: a function of the number of ranks that yields rounds."""
