"""What autograd keeps in a forward for the backward."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import AbstractContextManager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class KeptBytes:
    """Bytes of the distinct storages that autograd keeps.

    Attributes:
        bytes: now.
        peak: at most.
    """

    def __init__(self) -> None:
        self.outside: set[int] = set()
        self.holders: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def leave_out(self, *tensors: Tensor) -> None:
        self.outside |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def counted(self) -> AbstractContextManager[object]:
        """Forwards inside are counted."""
        return saved_tensors_hooks(self._keep, lambda held: held.tensor)

    def _keep(self, tensor: Tensor) -> _Held:
        storage = tensor.untyped_storage()
        where, held = storage.data_ptr(), _Held(tensor)
        if where not in self.outside:
            if not self.holders[where]:
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
            self.holders[where] += 1
            weakref.finalize(held, self._release, where, storage.nbytes())
        return held

    def _release(self, where: int, nbytes: int) -> None:
        self.holders[where] -= 1
        if not self.holders[where]:
            self.bytes -= nbytes


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
