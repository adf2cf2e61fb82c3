"""Several processes that train one network: each a share of every batch, gradients summed.

Not `DistributedDataParallel`: there a process that runs out of memory inside `backward` leaves the
others waiting for its buckets. Here processes meet once a step, after all of its gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: 0 is the first: it alone speaks and writes.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    def share(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of `which`; the parts together are the whole, in order."""
        return np.array_split(which, self.count)[self.rank]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], stop: bool) -> bool:
        """Sum gradients over all processes, in place; return whether any wants to stop."""
        if self.count == 1:
            return stop
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # a process without a picture in the last batch
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flag = torch.tensor([float(stop)], device=gradients[0].device)
        self.sum([*gradients, flag])
        return bool(flag.item())

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum float tensors over all processes, in place and in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def average_buffers(self, module: nn.Module) -> None:
        """Average over all processes what trains without gradients: each saw its own share.

        Buffers of modules in eval, frozen BatchNorm's, keep their bits.
        """
        training = [m for m in module.modules() if m.training]
        buffers = [b for m in training for b in m.buffers(recurse=False) if b.is_floating_point()]
        if self.count == 1 or not buffers:
            return
        self.sum(buffers)
        for buffer in buffers:
            buffer.div_(self.count)

    def gather(self, rows_of: Callable[[NDArray[np.int64]], Tensor], count: int) -> Tensor:
        """Compute rows 0..count-1, each process its share; return all of them, [count, ...].

        Args:
            rows_of: positions int64 [n] -> float rows [n, ...].
            count: how many rows there are; at least one a process.
        """
        mine = self.share(np.arange(count))
        rows = rows_of(mine)
        if self.count == 1:
            return rows
        whole = rows.new_zeros((count, *rows.shape[1:]))
        whole[mine[0] : mine[-1] + 1] = rows
        dist.all_reduce(whole)  # all but one summand of a row are zero: nothing is rounded
        return whole

    def from_first(self, value: Callable[[], Value]) -> Value:
        """Return what `value()` gives in the first process, in all of them."""
        if self.count == 1:
            return value()
        box = [value() if self.is_first else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]


def join(device: torch.device) -> Processes:
    """Join the processes that `torchrun` started beside this one; alone, be the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size())
