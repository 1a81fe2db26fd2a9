"""Vision balanced over all ranks, apart from the backbone: the decoupled encoder process (source: K2.5, appendix C).

Rows differ in what images they hold, so ranks that encode their own images wait for the one that has most. Here a step
has three phases. All media of the global batch are shared out so that every rank encodes about as much; what the
encoder makes of them travels to the rows, and nothing else of that forward is kept. The backbone then runs on these
features, whose gradients accumulate. Last, the gradients travel back, and the encoder runs its forward once more and
then its backward. This costs one more forward of a small network. It saves the wait for the rank with the most images,
and the memory of the encoder's activations during the backbone's step.

Ranks that share rows (sequence parallel) each send the pixels of some of their media, and all of them receive the
features of the whole rows. The gradients that they have of one feature are added up.

Shapes: P patches, M merged vision tokens of this rank's rows, m of the media that it encodes, S rows that it sends, D
hidden of the backbone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.network.batch import Batch, GridTHW
from model.network.config import ModelConfig
from model.network.multimodal import KimiK25
from model.network.vision import media_tokens
from model.parallel.exchange import exchange
from model.parallel.ranks import Ranks
from model.plan.flops import patch_embedding, vision_blocks_forward
from model.plan.parameters import Parameters


def encoding_cost(config: ModelConfig, grid: GridTHW) -> int:
    """FLOP of one medium's forward: linear in its patches, with attention quadratic in them.

    The backward and the second forward cost in proportion to it, so balancing one balances all.
    """
    frames, height, width = grid
    patches = frames * height * width
    merged = media_tokens(grid, config.vision_config.merge_kernel_size)
    projector = merged * 2 * Parameters(config).projector.products
    return patches * patch_embedding(config) + vision_blocks_forward(config, patches) + projector


@dataclass(frozen=True)
class Medium:
    """One image or video chunk of the global batch.

    Attributes:
        part: which part of the global batch (data rank) holds it.
        number: which of that part's media it is.
        source: the rank that sends its pixels.
        encoder: the rank that encodes it.
    """

    part: int
    number: int
    grid: GridTHW
    source: int
    encoder: int


def assign_media(grids_by_part: Sequence[Sequence[GridTHW]], config: ModelConfig, sharing: int = 1) -> list[Medium]:
    """Give every medium to a rank, longest processing time first (Graham 1969), so that costs balance.

    ``sharing`` neighbouring ranks hold each part. The answer depends on the grids alone, so all ranks agree without
    communication. Among equally loaded ranks one that holds the medium's rows is preferred, and media of equal cost are
    assigned to the parts in turn, so the media of balanced parts stay where they are. The media are returned in the
    order in which they are sent: by source, then by number.
    """
    costs = {grid: encoding_cost(config, grid) for grid in {grid for grids in grids_by_part for grid in grids}}
    waiting = [
        (-costs[grid], number, part, grid)
        for part, grids in enumerate(grids_by_part)
        for number, grid in enumerate(grids)
    ]
    loads = [0] * (len(grids_by_part) * sharing)
    lightest = [(0, rank) for rank in range(len(loads))]
    media = []
    for negative_cost, number, part, grid in sorted(waiting):
        while lightest[0][0] != loads[lightest[0][1]]:  # this rank has been given more since
            heapq.heappop(lightest)
        least, encoder = lightest[0]
        local = range(part * sharing, (part + 1) * sharing)
        encoder = next((rank for rank in local if loads[rank] == least), encoder)
        loads[encoder] -= negative_cost
        heapq.heappush(lightest, (loads[encoder], encoder))
        media.append(Medium(part, number, grid, local[number % sharing], encoder))
    return sorted(media, key=lambda medium: (medium.source, medium.number))


@dataclass
class _Step:
    """What the third phase needs of the first.

    Attributes:
        held: what was encoded here: pixels, or the vision tower's features where the tower does not learn.
        grids: of the media encoded here.
        leaving_S: which row of the encoder's output [m, D] is sent at each place.
        sent: how many rows go to each rank.
        row_M: which row of ``features_MD`` arrives at each place.
        received: how many rows come from each rank.
        encoded: m.
        products: as in ``ForwardContext``.
    """

    held: Tensor
    grids: list[GridTHW]
    leaving_S: Tensor
    sent: list[int]
    row_M: Tensor
    received: list[int]
    features_MD: Tensor
    encoded: int
    products: torch.dtype | None


class DecoupledEncoder:
    """The vision side of a training step on several ranks; with one rank it does nothing, and the model encodes media.

    Every rank calls both methods in the same order, also a rank whose rows hold no image::

        features_MD = encoder.forward(batch)
        loss = f(model.hidden_states(batch, features_MD))  # once or in pieces
        loss.backward()
        encoder.backward()

    Afterwards each rank's vision parameters hold the gradient of what it encoded; the sum over the ranks is the whole
    gradient. If the global batch has media, every rank has such a gradient; if it has none, no rank has one.
    """

    def __init__(self, model: KimiK25, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._sharing = ranks.layout.sequence_parallel
        self._step: _Step | None = None

    def forward(self, batch: Batch, products: torch.dtype | None = None) -> Tensor | None:
        """Features [M, D] of this rank's media in reading order, a leaf that collects gradient; None if the global
        batch has no media, or with one rank. ``KimiK25.embed`` takes either."""
        self._step = None
        if self.ranks.world == 1:
            return None
        media = assign_media(self._all_grids(batch.grid_thws), self.model.config, self._sharing)
        if not media:
            return None
        rank, part = self.ranks.rank, self.ranks.data_rank
        merge, device = self.model.config.vision_config.merge_kernel_size, batch.input_ids_BT.device
        tokens = [media_tokens(medium.grid, merge) for medium in media]
        mine = [index for index, medium in enumerate(media) if medium.encoder == rank]

        # A part's ranks all get the features of its media, so a row of the output may leave more than once.
        to_each = [
            [position for position, index in enumerate(mine) if media[index].part == other // self._sharing]
            for other in range(self.ranks.world)
        ]
        lengths = [tokens[index] for index in mine]
        leaving_S = _rows(lengths, (position for positions in to_each for position in positions), device)
        sent = [sum(lengths[position] for position in positions) for positions in to_each]

        # What arrives is sorted by encoder, and then as the encoder had it.
        local = sorted(
            (index for index, m in enumerate(media) if m.part == part), key=lambda index: media[index].encoder
        )
        local_lengths = [media_tokens(grid, merge) for grid in batch.grid_thws]
        row_M = _rows(local_lengths, (media[index].number for index in local), device)
        received = [0] * self.ranks.world
        for index in local:
            received[media[index].encoder] += tokens[index]

        tower, projector = self.model.vision_tower, self.model.mm_projector
        tower_learns, projector_learns = _learns(tower), _learns(projector)
        with torch.no_grad():
            held, grids = self._fetch_pixels(batch, media)
            merged = tower(held, grids, products)
            encoded_mD = projector(merged, products)
            arrived_MD = self._exchanged(encoded_mD.index_select(0, leaving_S), sent, received)
            features_MD = torch.empty_like(arrived_MD).index_copy_(0, row_M, arrived_MD)
        if tower_learns or projector_learns:
            features_MD.requires_grad_()
            if not tower_learns:
                held = merged
            self._step = _Step(held, grids, leaving_S, sent, row_M, received, features_MD, len(encoded_mD), products)
        return features_MD

    def backward(self) -> None:
        """Send the features' gradients to where they were encoded, encode again and add to the parameters' gradients.

        The second forward has the precision of the first.
        """
        step, self._step = self._step, None
        if step is None:
            return
        grad_MD = step.features_MD.grad
        if grad_MD is None:  # no target of these rows depends on an image
            grad_MD = torch.zeros_like(step.features_MD)
        grad_SD = self._exchanged(grad_MD.index_select(0, step.row_M), step.received, step.sent)
        grad_mD = grad_SD.new_zeros(step.encoded, grad_SD.shape[1]).index_add_(0, step.leaving_S, grad_SD)
        with torch.enable_grad():  # a hook within a backward may call this, with gradients off
            merged = step.held
            if _learns(self.model.vision_tower):
                merged = self.model.vision_tower(step.held, step.grids, step.products)
            encoded_mD = self.model.mm_projector(merged, step.products)
            # Its gradient with respect to the encoder's output is exactly grad_mD.
            weighted = (encoded_mD.float() * grad_mD.float()).sum()
        weighted.backward()

    def _exchanged(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        assert self.ranks.everyone is not None
        return exchange(rows, sent, received, self.ranks.everyone)

    def _all_grids(self, grids: Sequence[GridTHW]) -> list[list[GridTHW]]:
        """The grids of every part of the global batch."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.ranks.world)]
        dist.all_gather(counts, torch.tensor([len(grids)]), group=self.ranks.everyone)
        longest = max(int(count) for count in counts)
        if longest == 0:
            return [[]] * self.ranks.data_ranks
        local = torch.zeros(longest, 3, dtype=torch.int64)
        local[: len(grids)] = torch.tensor(list(grids), dtype=torch.int64).view(-1, 3)
        tables = [torch.zeros_like(local) for _ in counts]
        dist.all_gather(tables, local, group=self.ranks.everyone)
        parts = list(zip(tables, counts, strict=True))[:: self._sharing]
        return [[(t, h, w) for t, h, w in table[: int(count)].tolist()] for table, count in parts]

    def _fetch_pixels(self, batch: Batch, media: list[Medium]) -> tuple[Tensor, list[GridTHW]]:
        """Pixels and grids of what this rank encodes.

        A rank without a share gets the smallest blank image: where weights are divided or gradients reduced on the way,
        all ranks must call the same modules. Its features go nowhere, so its gradient is zero.
        """
        rank, config = self.ranks.rank, self.model.config.vision_config
        sides, device = (3, config.patch_size, config.patch_size), batch.input_ids_BT.device
        pixels = torch.empty(0, *sides, device=device) if batch.pixel_values is None else batch.pixel_values
        pixels = pixels.to(self.model.vision_tower.patch_embed.proj.weight.dtype)
        pieces = pixels.split([t * h * w for t, h, w in batch.grid_thws])
        sent, received = [0] * self.ranks.world, [0] * self.ranks.world
        leaving = []
        for medium in sorted(media, key=lambda medium: medium.encoder):
            t, h, w = medium.grid
            if medium.source == rank:
                sent[medium.encoder] += t * h * w
                leaving.append(pieces[medium.number])
            if medium.encoder == rank:
                received[medium.source] += t * h * w
        held = self._exchanged(torch.cat(leaving) if leaving else pixels[:0], sent, received)
        grids = [medium.grid for medium in media if medium.encoder == rank]
        if grids:
            return held, grids
        rows, columns = config.merge_kernel_size
        return pixels.new_zeros(rows * columns, *sides), [(1, rows, columns)]


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _rows(lengths: Sequence[int], chosen: Iterable[int], device: torch.device) -> Tensor:
    """Row numbers of the ``chosen`` pieces, where pieces of these lengths follow one another."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    pieces = [torch.arange(starts[index], starts[index + 1]) for index in chosen]
    return (torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)).to(device)
