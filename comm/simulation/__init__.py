"""Simulated time: networks, computing, and rounds timed on all ranks at once; it knows no strategy."""

UTILISATION = 0.4
"""The part of a GPU's peak that training a large Transformer reaches.

Model FLOPs utilisations that were published: GPT-3 21 %, Megatron-Turing NLG 30 %, Gopher 33 %, PaLM 46 % (Chowdhery et
al., "PaLM: scaling language modeling with pathways", 2022, table 3); Llama 3 405B 38 % to 43 % on H100s (Grattafiori et
al., "The Llama 3 herd of models", 2024, table 4).
"""
