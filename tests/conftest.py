"""What holds for every test: no network, and one thread a process, as in a run with several ranks on few cores."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once

import torch

torch.set_num_threads(1)
