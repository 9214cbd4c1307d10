"""Precisions: the formats of numbers that are computed with and sent, by name. Nothing here imports torch."""

from collections.abc import Mapping
from types import MappingProxyType

FP32, BF16, FP16 = "fp32", "bf16", "fp16"
"""IEEE 754's single precision; its first 16 bits, which keep the range and 8 bits of precision; IEEE 754's half
precision, with 11 bits of precision and a range from 6e-8 to 65504."""

BYTES: Mapping[str, int] = MappingProxyType({FP32: 4, BF16: 2, FP16: 2})
"""Bytes of a number in each precision."""
