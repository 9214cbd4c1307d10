"""Subcommands of `bigbatch-exp ps`: servers on a network, and workers that join and leave."""
