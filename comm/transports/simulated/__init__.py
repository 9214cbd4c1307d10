"""The parts of a cluster in simulated time, each of which knows only those above it.

`clock` says what happens next and who waits; `messages` are what ranks send and receive; `fabric` is what all ranks
share: ports, mailboxes and memory; `threads` do work beside a rank's own; `transport` is one rank's end of the wires.
`bigbatch.comm.transports.cluster` puts them together.
"""
