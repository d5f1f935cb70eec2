"""Peaks of devices by the names that JAX gives them."""

import pytest

from haikd.engine import peaks


@pytest.mark.parametrize('kind, dtype, teraflops', [
    ('TPU v4', 'bfloat16', 275), ('TPU v5 lite', 'bfloat16', 197),
    ('TPU v5', 'float32', 459), ('TPU v5p', 'bfloat16', 459),
    ('TPU v6 lite', 'bfloat16', 918), ('TPU v3', 'bfloat16', 61.5),
    ('NVIDIA A100-SXM4-40GB', 'bfloat16', 312),
    ('NVIDIA A100-SXM4-80GB', 'float32', 156),
    ('NVIDIA H100 80GB HBM3', 'float16', 989),
    ('NVIDIA H100 PCIe', 'bfloat16', 756),
    ('NVIDIA H100 NVL', 'bfloat16', 835),
    ('NVIDIA H200', 'float32', 494.7), ('NVIDIA L4', 'bfloat16', 121),
    ('NVIDIA L40S', 'bfloat16', 362), ('Tesla T4', 'float16', 65),
    ('Tesla V100-SXM2-16GB', 'float32', 15.7),
    ('NVIDIA GeForce RTX 4090', 'bfloat16', 165.2),
])
def test_peak_is_known_by_kind_and_dtype(kind, dtype, teraflops):
  assert peaks.of_products(kind, dtype) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize('kind, dtype', [
    ('cpu', 'float32'), ('NVIDIA A10G', 'bfloat16'), ('TPU v4', 'float16'),
    ('Tesla T4', 'bfloat16'), ('NVIDIA GeForce RTX 4090 D', 'bfloat16')])
def test_peak_that_is_not_published_is_not_guessed(kind, dtype):
  assert peaks.of_products(kind, dtype) is None
