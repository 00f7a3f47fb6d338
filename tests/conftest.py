"""What holds for every test: no network, one thread a process, and the same examples whenever and wherever they run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # ranks and engines share few cores
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
