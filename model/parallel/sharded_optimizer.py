"""MuonClip over weights of which several ranks hold pieces (source: ours, after Moonlight's distributed Muon,
arXiv 2502.16982).

Momentum, AdamW, weight decay and QK-clip are element-wise: each rank updates its own pieces. Muon's direction needs
whole matrices: the pieces of a matrix's momentum-corrected gradient are sent to one rank, which orthogonalises it, and
the pieces of the update are sent back. A matrix that is whole on one rank is orthogonalised there; each expert of a
stack is a matrix of its own. The others are assigned to ranks that hold pieces of them, so that the work is balanced.

Nothing here knows DeepSpeed: ``model.parallel.zero`` says which pieces of which parameters are in its flat tensors.

Shapes: a matrix is n x m; L elements of a piece; S elements sent, A elements that arrive.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.boundary.errors import MoonflowError
from model.checkpoint.slices import Slice, SliceReader
from model.optimizer.muon_clip import MuonClip, muon_updates


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + length`` of the flattened parameter ``name``, whose whole has ``shape``.

    They are in a flat tensor of this rank, from ``offset`` on. No element is on two ranks.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """This piece [L] of its flat tensor, or of its gradient."""
        return flat[self.offset : self.offset + self.length]


class ShardedMuonClip(MuonClip):
    """MuonClip over flat tensors, each made of pieces of parameters; ``attach`` says which pieces.

    It is constructed with the whole parameters, like ``MuonClip``; DeepSpeed then puts its flat tensors into
    ``param_groups`` in their place.

    Attributes:
        idle: names of parameters that no rank has a gradient for; ``step`` leaves them and their state alone.
        row_factors: name -> factor of each row of that weight, multiplied after the next ``step`` (QK-clip).
        orthogonalised: how many matrices this rank orthogonalised since ``attach``.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float, **settings: Any):
        super().__init__(named_parameters, learning_rate, **settings)
        self.idle: frozenset[str] = frozenset()
        self.row_factors: dict[str, Tensor] = {}
        self.orthogonalised = 0
        self._pieces: dict[Tensor, Fragment] = {}
        self._flats: dict[int, tuple[int, list[Tensor]]] = {}  # id of a flat tensor -> its number, its pieces
        self._layouts: list[list[list[Fragment]]] = []  # [number of the flat tensor][rank]
        self._exchanges: dict[tuple[int, frozenset[str]], _MatrixExchange] = {}
        self._group: dist.ProcessGroup | None = None

    def attach(self, flats: Sequence[tuple[Tensor, Sequence[Fragment]]], group: dist.ProcessGroup) -> None:
        """Set which pieces are in each of this rank's flat tensors; call it once, before the first ``step``.

        All ranks of ``group`` have equally many flat tensors, and every call of ``step`` updates the same of them, in
        the same order, on all ranks.
        """
        self._group, self.names = group, {}
        for number, (flat, pieces) in enumerate(flats):
            parameters: list[Tensor] = [nn.Parameter(piece.of(flat.data)) for piece in pieces]
            self._flats[id(flat)] = number, parameters
            for parameter, piece in zip(parameters, pieces, strict=True):
                self._pieces[parameter], self.names[parameter] = piece, piece.name
        layouts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(layouts, [list(pieces) for _, pieces in flats], group=group)
        self._layouts = [list(of_ranks) for of_ranks in zip(*layouts, strict=True)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the flat tensors that are in ``param_groups`` now from their gradients."""
        for group in self.param_groups:
            for flat in group["params"]:
                number, parameters = self._flats[id(flat)]
                active = [parameter for parameter in parameters if self.names[parameter] not in self.idle]
                for parameter in active:
                    parameter.grad = self._pieces[parameter].of(flat.grad)
                if group["rule"] == "muon":
                    self._muon_in_pieces(group, number, flat.data, active)
                elif active:
                    self._adamw(group, active)
                for parameter in active:
                    parameter.grad = None
                    self._clip(parameter)

    def _muon_in_pieces(self, group: dict[str, Any], number: int, flat: Tensor, parameters: list[Tensor]) -> None:
        """Every rank calls this, also one that holds no piece."""
        exchange = self._exchanges.get((number, self.idle))
        if exchange is None:
            assert self._group is not None
            layout = [[piece for piece in pieces if piece.name not in self.idle] for pieces in self._layouts[number]]
            exchange = self._exchanges[number, self.idle] = _MatrixExchange(layout, self._group)
        updates = exchange.updates(self._nesterov(group, parameters) if parameters else [], flat, self.precision)
        self.orthogonalised += len(exchange.shapes)
        if parameters:
            self._move(group, parameters, updates)

    def _decays(self, parameter: Tensor) -> bool:
        return len(self._pieces[parameter].shape) > 1

    def _clip(self, parameter: Tensor) -> None:
        factor = self.row_factors.get(self.names[parameter])
        if factor is not None:
            piece = self._pieces[parameter]
            columns = math.prod(piece.shape) // len(factor)
            first, last = piece.start // columns, -(-(piece.start + piece.length) // columns)
            factors_L = factor[first:last].to(parameter).repeat_interleave(columns)
            parameter *= factors_L[piece.start - first * columns :][: piece.length]

    def named_state(self) -> dict[str, Slice]:  # type: ignore[override]
        """This rank's part of the state, under the names and in the shapes of the whole parameters."""
        state = {}
        for parameter, piece in self._pieces.items():
            for slot, value in self.state.get(parameter, {}).items():
                key = f"{piece.name}/{slot}"
                if value.ndim == 0:  # AdamW's count of steps
                    state[key] = Slice(key, (), 0, value.reshape(1))
                else:
                    state[key] = Slice(key, piece.shape, piece.start, value)
        return state

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load this rank's pieces of a state that any number of ranks saved; a parameter without saved state has none.

        Raises:
            MoonflowError: a tensor has another shape than the parameter.
        """
        slots: dict[str, list[str]] = defaultdict(list)
        for key in tensors:
            name, _, slot = key.rpartition("/")
            slots[name].append(slot)
        for parameter, piece in self._pieces.items():
            self.state.pop(parameter, None)
            for slot in slots[piece.name]:
                value = _read(tensors, f"{piece.name}/{slot}", piece)
                self.state[parameter][slot] = value.to(parameter, copy=True)


def _read(tensors: Mapping[str, Tensor], key: str, piece: Fragment) -> Tensor:
    """The piece's elements of a saved tensor, or a scalar as a whole; nothing else is read from the file."""
    shape = tensors.shapes[key] if isinstance(tensors, SliceReader) else tuple(tensors[key].shape)
    if shape == ():
        return tensors[key]
    if shape != piece.shape:
        raise MoonflowError(
            f"the saved {key} has shape {list(shape)}, the model asks for {list(piece.shape)}; "
            "choose a checkpoint of this model"
        )
    if isinstance(tensors, SliceReader):
        return tensors.read(key, piece.start, piece.length)
    return tensors[key].flatten()[piece.start : piece.start + piece.length]


class _MatrixExchange:
    """Which rank orthogonalises which matrices of one flat tensor, and what must be sent for that.

    Attributes:
        shapes: (n, m) of the matrices that this rank orthogonalises.
    """

    def __init__(self, layout: Sequence[Sequence[Fragment]], group: dist.ProcessGroup) -> None:
        self.group, rank = group, dist.get_rank(group)
        cuts = [_cuts(pieces) for pieces in layout]
        owners = _owners(cuts)
        owned = [matrix for matrix, owner in owners.items() if owner == rank]
        self.shapes = [(matrix.rows, matrix.columns) for matrix in owned]
        number_of = {matrix: number for number, matrix in enumerate(owned)}
        # In the order of the ranks they go to or come from; within a rank, of the sender's pieces.
        self.sent = [cut for other in range(len(layout)) for cut in cuts[rank] if owners[cut.matrix] == other]
        self.sent_counts = [
            sum(cut.length for cut in cuts[rank] if owners[cut.matrix] == other) for other in range(len(layout))
        ]
        arriving = [[cut for cut in of_rank if owners[cut.matrix] == rank] for of_rank in cuts]
        self.received = [(number_of[cut.matrix], cut.start, cut.length) for of_rank in arriving for cut in of_rank]
        self.received_counts = [sum(cut.length for cut in of_rank) for of_rank in arriving]

    def updates(self, corrected: list[Tensor], like: Tensor, precision: torch.dtype) -> list[Tensor]:
        """Muon's updates [L] of this rank's pieces from their momentum-corrected gradients [L]; all ranks call it."""
        sent_S = torch.cat(
            [like.new_empty(0), *(corrected[cut.piece][cut.offset : cut.offset + cut.length] for cut in self.sent)]
        )
        received_A = sent_S.new_empty(sum(self.received_counts))
        dist.all_to_all_single(received_A, sent_S, self.received_counts, self.sent_counts, group=self.group)
        matrices = [received_A.new_empty(rows * columns) for rows, columns in self.shapes]
        parts = received_A.split([length for _, _, length in self.received])
        for (number, start, length), part in zip(self.received, parts, strict=True):
            matrices[number][start : start + length] = part
        whole = [matrix.view(shape) for matrix, shape in zip(matrices, self.shapes, strict=True)]
        done = [update.flatten() for update in muon_updates(whole, precision)]
        back_A = torch.cat(
            [like.new_empty(0), *(done[number][start : start + length] for number, start, length in self.received)]
        )
        back_S = torch.empty_like(sent_S)
        dist.all_to_all_single(back_S, back_A, self.sent_counts, self.received_counts, group=self.group)
        updates = [torch.empty_like(piece) for piece in corrected]
        for cut, part in zip(self.sent, back_S.split([cut.length for cut in self.sent]), strict=True):
            updates[cut.piece][cut.offset : cut.offset + cut.length] = part
        return updates


@dataclass(frozen=True)
class _Matrix:
    """Matrix ``index`` of a parameter: 0, or the number of an expert."""

    name: str
    index: int
    rows: int
    columns: int

    @property
    def work(self) -> int:
        """Multiplications of one product of the Newton-Schulz iteration."""
        return min(self.rows, self.columns) ** 2 * max(self.rows, self.columns)


@dataclass(frozen=True)
class _Cut:
    """``length`` elements of a matrix from ``start`` on: elements from ``offset`` on of this rank's piece ``piece``."""

    matrix: _Matrix
    start: int
    length: int
    piece: int
    offset: int


def _cuts(pieces: Sequence[Fragment]) -> list[_Cut]:
    """The pieces, cut where one matrix ends and the next begins."""
    cuts = []
    for number, piece in enumerate(pieces):
        rows, columns = piece.shape[-2:]
        size, end = rows * columns, piece.start + piece.length
        for index in range(piece.start // size, -(-end // size)):
            first, last = max(piece.start, index * size), min(end, (index + 1) * size)
            matrix = _Matrix(piece.name, index, rows, columns)
            cuts.append(_Cut(matrix, first - index * size, last - first, number, first - piece.start))
    return cuts


def _owners(cuts: Sequence[Sequence[_Cut]]) -> dict[_Matrix, int]:
    """Which rank orthogonalises each matrix: its only holder, or the holder with the least work so far."""
    holders: dict[_Matrix, list[int]] = defaultdict(list)
    for rank, of_rank in enumerate(cuts):
        for cut in of_rank:
            if rank not in holders[cut.matrix]:
                holders[cut.matrix].append(rank)
    work = [0] * len(cuts)
    owners = {}
    for matrix in sorted(holders, key=lambda matrix: (len(holders[matrix]) > 1, -matrix.work)):  # stable
        owner = min(holders[matrix], key=lambda rank: work[rank])
        work[owner] += matrix.work
        owners[matrix] = owner
    return owners
