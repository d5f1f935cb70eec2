"""What a run was made with: versions of packages, and devices."""

import datetime
import platform
from typing import Any

import haiku as hk
import jax
import jaxlib
import numpy as np
import optax

import haikd
from haikd.data.image import window

# A package that was installed by hand may have no metadata.
_PACKAGES = {'jax': jax, 'jaxlib': jaxlib, 'dm-haiku': hk, 'optax': optax,
             'numpy': np}


def versions() -> dict[str, str]:
  """Returns `{name: version}`, the devices and the time among them."""
  devices = jax.devices()
  found: dict[str, Any] = {
      'haikd': haikd.__version__, 'Python': platform.python_version()}
  for name, package in _PACKAGES.items():
    found[name] = package.__version__
  found['images resized by'] = window.version()
  found['devices'] = f'{len(devices)} × {devices[0].device_kind}'
  if jax.process_count() > 1:
    found['processes'] = str(jax.process_count())
  found['written'] = f'{datetime.datetime.now():%Y-%m-%d %H:%M}'
  return found
