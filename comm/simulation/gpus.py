"""GPUs that workers can compute on in simulated time: their peak speeds in each precision, and their memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.kinds import BYTES, Text, Whole, check_fields, checked
from bigbatch.comm.precisions import BF16, FP16, FP32
from bigbatch.comm.registry import unknown_name
from bigbatch.comm.simulation.computing import FLOPS


@dataclass(frozen=True)
class GPU:
    """The peak speeds and the memory of a GPU, as its maker states them.

    Attributes:
        name: the GPU's name, for tables and figures.
        flops: precision to floating-point operations a second: in fp32 outside the tensor cores, since torch does not
            use their TF32 for matrix products unless told to; in bf16 and fp16 those of the tensor cores on dense
            matrices, added up in 32 bits. A precision that it does not have is not there.
        memory_bytes: its memory, in bytes.
        memory_bandwidth: bytes a second between its memory and its cores.
        source: where the numbers come from.

    Raises:
        ConfigurationError: a number is out of range, or fp32 or both half precisions are missing.
    """

    name: str
    flops: Mapping[str, float] = field(hash=False)
    memory_bytes: int
    memory_bandwidth: float
    source: str

    def __post_init__(self) -> None:
        text, size, speed = Text(), Whole(most=BYTES.most), FLOPS
        check_fields(self, {"name": text, "memory_bytes": size, "memory_bandwidth": speed, "source": text})
        if not (isinstance(self.flops, Mapping) and FP32 in self.flops and {BF16, FP16} & set(self.flops)):
            raise ConfigurationError(
                f"flops of {self.name} cannot be {quoted(self.flops)}: it must map {FP32}, and {BF16} or {FP16} or "
                "both, to operations a second."
            )
        peaks = {name: checked(f"flops of {self.name} in {name}", speed, peak) for name, peak in self.flops.items()}
        object.__setattr__(self, "flops", MappingProxyType(peaks))

    @property
    def half(self) -> str:
        """The half precision that large models are trained in: bf16 where the GPU has it, else fp16."""
        return BF16 if BF16 in self.flops else FP16

    def peak(self, precision: str) -> float:
        """Looks up the operations a second that it does in a precision at best.

        Raises:
            ConfigurationError: it does not compute in that precision; the message names those in which it does, and
                the GPUs that have it.
        """
        if precision not in self.flops:
            able = ", ".join(name for name, other in GPUS.items() if precision in other.flops)
            raise ConfigurationError(
                f"{self.name} does not compute in {precision}: take --precision {self.half}, or a --gpu that has "
                f"{precision} ({able})."
            )
        return self.flops[precision]


def _peaks(fp32: float, half: float, *, bf16: bool = True) -> dict[str, float]:
    """The peaks of a GPU whose tensor cores are as fast in bf16, if they have it, as in fp16."""
    return {FP32: fp32, **({BF16: half} if bf16 else {}), FP16: half}


GPUS: Mapping[str, GPU] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            GPU(
                "t4",
                _peaks(8.1e12, 65e12, bf16=False),
                16 * 10**9,
                320e9,
                "NVIDIA T4 datasheet: single precision and mixed precision (it has no BF16).",
            ),
            GPU(
                "v100",
                _peaks(15.7e12, 125e12, bf16=False),
                32 * 10**9,
                900e9,
                "NVIDIA V100 datasheet: SXM2 32 GB, single precision and tensor performance (it has no BF16).",
            ),
            GPU(
                "a10g",
                _peaks(35e12, 70e12),
                24 * 10**9,
                600e9,
                "NVIDIA A10G datasheet (Amazon EC2 G5): FP32; BF16 and FP16 without sparsity.",
            ),
            GPU(
                "l4",
                _peaks(30.3e12, 121e12),
                24 * 10**9,
                300e9,
                "NVIDIA L4 datasheet: FP32; BF16 and FP16, half of the 242e12 with sparsity.",
            ),
            GPU(
                "a100",
                _peaks(19.5e12, 312e12),
                80 * 10**9,
                2.039e12,
                "NVIDIA A100 datasheet: SXM 80 GB, FP32; BF16 and FP16 without sparsity.",
            ),
            GPU(
                "h100",
                _peaks(66.9e12, 989.4e12),
                80 * 10**9,
                3.35e12,
                "NVIDIA H100 datasheet and Hopper architecture whitepaper: SXM, FP32; BF16 and FP16 without sparsity.",
            ),
            GPU(
                "h200",
                _peaks(66.9e12, 989.4e12),
                141 * 10**9,
                4.8e12,
                "NVIDIA H200 datasheet: SXM, FP32; BF16 and FP16 without sparsity; to a digit more, those of the H100.",
            ),
            GPU(
                "rtx-4090",
                _peaks(82.6e12, 165.2e12),
                24 * 10**9,
                1.008e12,
                "NVIDIA Ada GPU architecture whitepaper, appendix A: FP32; BF16 and FP16 with FP32 accumulate, without "
                "sparsity.",
            ),
        )
    }
)
"""GPUs by the names that users write, with peaks in operations a second and memory in bytes."""


def gpu_named(name: str) -> GPU:
    """Looks up a GPU by its name, such as "a100".

    Raises:
        ConfigurationError: no GPU has that name; the message lists the known ones.
    """
    if name not in GPUS:
        raise unknown_name("GPU", name, GPUS)
    return GPUS[name]
