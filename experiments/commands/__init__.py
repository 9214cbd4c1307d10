"""The command line. Only these modules print results or exit."""
