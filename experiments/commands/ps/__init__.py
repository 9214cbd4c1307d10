"""Commands below `bigbatch-exp ps`: servers on a network, and workers that come and go."""
