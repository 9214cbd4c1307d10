"""Claims about batches and their cost, each in a module of its own that makes a figure of it.

A module here has a class `Figure`, derived from `bigbatch.experiments.laboratory.claim.Claim`; the module's name, with
dashes for underscores, is the figure's. There is nothing else to register.
"""
