"""The wires: transports, requests and queues; agreement between ranks; and recording what a rank does."""
