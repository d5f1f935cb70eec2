"""Published peaks of chips."""

import re
from typing import Any, NamedTuple, Optional

GIB = 2**30


class Chip(NamedTuple):
  """Published peaks of a chip; None where nothing is published.

  Attributes:
    name: its name in `--topology`.
    flops: bfloat16 operations a second.
    memory: bytes that a program may use.
    memory_rate: bytes a second between memory and chip.
    link_rate: bytes a second over one link to another chip, one way.
    ring: a side of a slice whose length is a multiple of this is closed into a
      ring, over which a chip sends both ways; 0 if a switch joins all chips.
    network_rate: a chip's share, in bytes a second, of the data-centre network
      that joins slices (or, for GPUs, hosts).
  """

  name: str
  flops: Optional[float]
  memory: Optional[float]
  memory_rate: Optional[float]
  link_rate: Optional[float]
  ring: int
  network_rate: Optional[float]


# TPUs: Google Cloud documentation, "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x",
# tables of key specifications; links, rings and network: "How to Scale Your
# Model", chapter "How to Think About TPUs", tables "TPU specs" and below. v3:
# "The Design Process for Google's Training Chips: TPUv2 and TPUv3", IEEE Micro
# 2021, table of chips. Memory is what the compiler of libtpu 0.0.52 leaves to a
# program, as its error says if a step needs more. v4 is left out: that compiler
# offers its cores one by one, while JAX makes meshes of chips.
# GPUs: NVIDIA data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU" (SXM,
# dense), "H200 Tensor Core GPU"; network: "DGX A100" (eight 200 Gbit/s ports
# for eight GPUs), "DGX H100" and "DGX H200" (eight of 400 Gbit/s).
_CHIPS = (
    Chip('v3', 123e12, 30.96 * GIB, 900e9, 82e9, 4, 3.125e9),
    Chip('v5e', 197e12, 15.75 * GIB, 819e9, 45e9, 16, 3.125e9),
    Chip('v5p', 459e12, 95.73 * GIB, 2765e9, 90e9, 4, 6.25e9),
    Chip('v6e', 918e12, 31.24 * GIB, 1640e9, 90e9, 16, 12.5e9),
    Chip('tpu7x', 2307e12, 189.48 * GIB, 7380e9, 90e9, 4, 12.5e9),
    Chip('a100-40gb', 312e12, 40e9, 1555e9, 300e9, 0, 25e9),
    Chip('a100-80gb', 312e12, 80e9, 2039e9, 300e9, 0, 25e9),
    Chip('h100', 989e12, 80e9, 3350e9, 450e9, 0, 50e9),
    Chip('h200', 989e12, 141e9, 4800e9, 450e9, 0, 50e9),
)
CHIPS = {chip.name: chip for chip in _CHIPS}
TPUS = tuple(chip.name for chip in _CHIPS if chip.ring)


def of_products(kind: str, dtype: Any) -> Optional[float]:
  """Returns the operations a second of a device that multiplies matrices.

  TPUs multiply float32 as bfloat16, and GPUs as TF32 where they have it, unless
  JAX is told otherwise; the peak is that of what they do.

  TPUs: Google Cloud documentation, "TPU v4" and the pages and the paper above.
  A device of v2 and v3 is one of a chip's two cores. GPUs: NVIDIA data sheets
  "V100 Tensor Core GPU" (SXM2), "T4", "A100", "A10", "L4", "L40S", "H100" (SXM,
  PCIe, NVL), "H200" and "HGX B200", without sparsity; "Ampere GA102" and "Ada
  GPU Architecture" for RTX 3090 and 4090, with sums in float32.

  Args:
    kind: `device_kind` of the device.
    dtype: of the factors.

  Returns:
    None where nothing is published.
  """
  for pattern, *rates in _RATES:
    if re.search(pattern, kind):
      return dict(zip(('bfloat16', 'float16', 'float32'), rates)).get(
          str(dtype))
  return None


def _gpu(tensor: float, tf32: float) -> tuple[float, float, float]:
  return tensor, tensor, tf32


def _tpu(flops: float) -> tuple[float, None, float]:
  return flops, None, flops


_RATES: tuple[tuple[Any, ...], ...] = (
    (r'^TPU v3', *_tpu(61.5e12)),
    (r'^TPU v4$', *_tpu(275e12)),
    (r'^TPU v5( lite|e)', *_tpu(197e12)),
    (r'^TPU v5p?$', *_tpu(459e12)),
    (r'^TPU v6( lite|e)', *_tpu(918e12)),
    (r'\bV100\b', None, 125e12, 15.7e12),
    (r'\bT4\b', None, 65e12, 8.1e12),
    (r'\bA100\b', *_gpu(312e12, 156e12)),
    (r'\bA10\b', *_gpu(125e12, 62.5e12)),
    (r'\bL4\b', *_gpu(121e12, 60e12)),
    (r'\bL40S\b', *_gpu(362e12, 183e12)),
    (r'\bH100 PCIe\b', *_gpu(756e12, 378e12)),
    (r'\bH100 NVL\b', *_gpu(835e12, 417.5e12)),
    (r'\bH[12]00\b', *_gpu(989e12, 494.7e12)),
    (r'\bB200\b', *_gpu(2250e12, 1125e12)),
    (r'\bRTX 3090$', *_gpu(71e12, 35.6e12)),
    (r'\bRTX 4090$', *_gpu(165.2e12, 82.6e12)),
)
