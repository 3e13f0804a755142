"""Many small computations in several processes at a time: one thread each."""

import torch

torch.set_num_threads(1)
