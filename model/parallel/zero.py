"""Training with optimizer state, gradients or weights divided among ranks: DeepSpeed's ZeRO stages 1, 2 and 3 with our
own MuonClip (source: ZeRO, arXiv 1910.02054; the optimizer ``model.parallel.sharded_optimizer``).

DeepSpeed cuts the parameters into flat tensors, averages gradients and gathers weights; the update of the pieces is
ours. DeepSpeed's own Muon is not used: in some modes it falls back to other rules silently.

Three things are done outside of DeepSpeed. The routers' correction biases, which no gradient moves, stay whole on every
rank and are hidden from it. QK-clip multiplies the float32 pieces within the optimizer's step, so weights and master
copies stay equal. And media are divided among the ranks (``model.parallel.decoupled_encoder``), whose backward of the
vision side runs within DeepSpeed's: all ranks run the same modules, also those whose rows hold no image.

Where ranks divide the experts (``model.parallel.expert_parallel``), every rank holds different ones. DeepSpeed supports
that in its own layers only, so they are hidden from it and have their own optimizer (``model.parallel.local_experts``).

Micro-batches: DeepSpeed adds up their gradients and is told which is the last. Stage 1 reduces the gradients after the
last one; stages 2 and 3 reduce those of each micro-batch and add up the pieces.

Shapes: L elements of a piece; H heads; E routed experts; M vision tokens, D hidden.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model.boundary.errors import MoonflowError
from model.checkpoint.slices import Slice
from model.network.batch import Batch
from model.network.moe import Router
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import LargestLogits, clip_factors
from model.optimizer.optimization import Optimization
from model.parallel.decoupled_encoder import DecoupledEncoder
from model.parallel.local_experts import LocalExperts
from model.parallel.loss import BatchSize, Figures, Loss, LossPart, figures_of, forward_context, loss_of_rows
from model.parallel.ranks import Ranks
from model.parallel.reduction import weights_to_write
from model.parallel.rows import micro_batches
from model.parallel.sharded_optimizer import Fragment, ShardedMuonClip

PERSISTENT = 10_000  # elements; smaller parameters stay whole at stage 3 (DeepSpeed: 100,000)
BUCKET = 50_000_000  # elements reduced at a time (DeepSpeed: 500,000,000, which a small GPU has no room for)
VISION_SIDE = ("vision_tower.", "mm_projector.")
BIAS = "e_score_correction_bias"


class _ModelWithLoss(nn.Module):
    """What DeepSpeed sees: a module whose forward is the loss of a micro-batch.

    Attributes:
        part: the result of the last forward for this rank's rows.
        media: whether the last global micro-batch had media.
    """

    part: LossPart

    def __init__(self, model: KimiK25, optimization: Optimization, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.optimization, self.ranks = model, optimization, ranks
        self.encoder = DecoupledEncoder(model, ranks)
        self.media = False

    def forward(self, rows: Batch, loss: Loss, size: BatchSize) -> Tensor:
        context = forward_context(self.optimization, self.ranks)
        features_MD = self.encoder.forward(rows, context.products)
        self.media = features_MD is not None
        if features_MD is not None and features_MD.requires_grad:
            features_MD.register_post_accumulate_grad_hook(lambda _: self.encoder.backward())
        part = loss_of_rows(self.model, rows, loss, size, self.ranks, context, features_MD)
        self.part = replace(part, loss=part.loss.detach())
        return part.loss * self.ranks.world  # DeepSpeed averages over the ranks; the parts are to be added


class ZeroEngine:
    """A ``model.train.engine.TrainingEngine`` over DeepSpeed, which owns the model until ``close``.

    It needs several ranks, and the model must have its weights when the engine is opened: all of them but, where the
    layout divides the experts, those of other ranks' experts.

    Args:
        ranks: the ``zero_stage`` of their layout is 1, 2 or 3.
        bfloat16: weights and gradients are bfloat16, with float32 master weights; else all are float32.
    """

    def __init__(self, model: KimiK25, optimization: Optimization, ranks: Ranks, *, bfloat16: bool = False) -> None:
        self.model, self.optimization, self.ranks = model, optimization, ranks
        self.stage = ranks.layout.zero_stage
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(optimization.learns(name))
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._device = ranks.device
        self._order = list(model.state_dict())
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._biases = _take_biases(model)
        self.experts = None if ranks.experts is None else LocalExperts(model, optimization, ranks)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._trained = {name for name, _ in trained}
        self._vision_side = frozenset(name for name in self._trained if name.startswith(VISION_SIDE))
        self.optimizer = ShardedMuonClip(trained, optimization.learning_rate, weight_decay=optimization.weight_decay)
        self._module = _ModelWithLoss(model, optimization, ranks)
        self._logits = LargestLogits(model.attentions())
        self._media = False  # whether the step's global batch has had media so far
        self._begun = False  # whether the step has a gradient so far
        deepspeed = _deepspeed()
        self._engine, *_ = deepspeed.initialize(
            model=self._module, optimizer=self.optimizer, config=_config(self.stage, bfloat16), dist_init_required=False
        )
        self._zero = self._engine.optimizer
        flats = list(self._flats())
        assert ranks.everyone is not None
        self.optimizer.attach(flats, ranks.everyone)
        self._pieces = {piece.name: (flat, piece) for flat, pieces in flats for piece in pieces}

    def _flats(self) -> Iterator[tuple[Tensor, list[Fragment]]]:
        """DeepSpeed's flat float32 tensors of this rank and the pieces in them, in the order of its updates."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        zero = self._zero
        if self.stage == 3:
            for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
                pieces = []
                for parameter in parameters:
                    _, offset, length = zero.grad_position[zero.get_param_id(parameter)]
                    start, length = _own_part(parameter, self.ranks.rank)
                    pieces.append(self._piece(names[id(parameter)], start, length, offset))
                yield flat, [piece for piece in pieces if piece.length > 0]
            return
        for flat, parameters in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
            pieces = []
            for parameter in parameters:
                if parameter._hp_mapping is not None:
                    whole, own = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                    pieces.append(self._piece(names[id(parameter)], whole.start, whole.numel, own.start))
            yield flat, pieces

    def _piece(self, name: str, start: int, length: int, offset: int) -> Fragment:
        return Fragment(name, self._shapes[name], start, length, offset)

    def backward(self, batch: Batch, loss: Loss, *, last: bool = True) -> Figures:
        size, parts = BatchSize.of(batch, self.ranks), []
        batches = micro_batches(batch, self.optimization.micro_batch_tokens, self.model.config)
        for number, rows in enumerate(batches, 1):
            parts.append(self._add_gradient(rows, loss, size, last and number == len(batches)))
            self._logits.add()
        figures = figures_of(loss, parts, self.ranks)
        if last:
            # The loss is scaled because DeepSpeed averages over the ranks; the experts' gradients are summed.
            of_experts = 0.0 if self.experts is None else self.experts.sum_gradients(1 / self.ranks.world)
            figures["gradient_norm"] = (self._gradient_norm() ** 2 + of_experts) ** 0.5
        return figures

    def _add_gradient(self, rows: Batch, loss: Loss, size: BatchSize, last: bool) -> LossPart:
        if not self._begun and self.stage == 3:
            # A micro-batch overwrites an earlier step's gradients only of the parameters that it has gradients for.
            self._zero.grad_partitions_flat_buffer.zero_()
        self._engine.set_gradient_accumulation_boundary(last)
        scaled = self._engine(rows, loss, size)
        self._begun, self._media = True, self._media or self._module.media
        self.optimizer.idle = frozenset() if self._media else self._vision_side
        self._engine.backward(scaled)
        return self._module.part

    def _gradient_norm(self) -> float:
        parts = [part for parts in self._zero.averaged_gradients.values() for part in parts]
        norms = torch.stack(torch._foreach_norm(parts)).double()
        return float(self.ranks.sum_(norms.square().sum()).sqrt())

    def update(self, step: int) -> Figures:
        rate, model = self.optimization.rate(step), self.model
        self.optimizer.set_learning_rate(rate)
        clipped = self._clip() if self.optimization.learns_attention else 0
        self._engine.step()
        self._end_step()
        if self.experts is not None:
            self.experts.update(rate)
        self.optimizer.row_factors = {}
        if self._zero.overflow:
            raise MoonflowError("DeepSpeed left out a step: its gradient was not finite and should have been discarded")
        routers = list(model.routers())
        if routers:
            loads = self.ranks.sum_(torch.stack([router.load_E for router in routers]))
            for router, load_E in zip(routers, loads, strict=True):
                router.load_E.copy_(load_E)
                router.update_bias(self.optimization.bias_update_rate if self.optimization.learns_routing else 0.0)
        return {"learning_rate": rate, "qk_clip/heads": float(clipped)}

    def _clip(self) -> int:
        """Hand the optimizer the factors of rows whose logits were too large on any rank; returns how many heads."""
        attentions = {name: one for name, one in self.model.named_modules() if one in set(self.model.attentions())}
        largest = self.ranks.max_(torch.stack([one.max_logit_H for one in attentions.values()]))
        clipped = 0
        for (name, attention), largest_H in zip(attentions.items(), largest, strict=True):
            attention.max_logit_H = largest_H
            factors = clip_factors(attention, attention.clip_threshold)
            if factors is not None:
                weights = (f"{name}.q_b_proj.weight", f"{name}.kv_b_proj.weight")
                self.optimizer.row_factors |= dict(zip(weights, factors, strict=True))
                clipped += int((largest_H > attention.clip_threshold).sum())
        return clipped

    def _end_step(self) -> None:
        self._logits.forget()
        self._begun = self._media = False

    def discard(self) -> None:
        self._end_step()
        zero = self._zero
        zero.zero_grad()
        zero.averaged_gradients.clear()
        if self.stage < 3:
            zero.all_grad_tensors.clear()
        if self.experts is not None:
            self.experts.discard()
        for router in self.model.routers():
            router.load_E.zero_()

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        own = {} if self.experts is None else self.experts.named_state()
        return {**self.optimizer.named_state(), **own}

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_named_state(tensors)
        if self.experts is not None:
            self.experts.load_named_state(tensors)

    def weights(self) -> dict[str, Tensor]:
        """The model's ``state_dict``, whole and float32, on every rank; all ranks call it together."""
        whole = dict(self._undivided()) | ({} if self.experts is None else self.experts.weights())
        return {name: whole[name] for name in self._order}

    def written_weights(self) -> dict[str, Tensor]:
        """The part of ``weights`` that this rank writes; all ranks call it together."""
        held = {} if self.experts is None else self.experts.held()
        for name, value in self._undivided():
            if self.ranks.first:  # the others need not keep what was put together for it
                held[name] = value
        return weights_to_write({name: held[name] for name in self._order if name in held}, self.ranks)

    def _undivided(self) -> Iterator[tuple[str, Tensor]]:
        """What ``weights`` gives, one by one, but for divided experts; all ranks take all of them."""
        parameters = dict(self.model.named_parameters())
        for name in self._order:
            if name in self._biases:
                yield name, self._biases[name].data
            elif self.experts is not None and name in self.experts.parameters:
                continue
            elif self.stage < 3 and (self._dtype == torch.float32 or name not in self._trained):
                yield name, parameters[name].data.float()
            else:
                sum_ = torch.zeros(self._shapes[name], device=self._device)
                start, part_L = self._held(name, parameters[name])
                sum_.flatten()[start : start + len(part_L)] = part_L
                yield name, self.ranks.sum_(sum_)

    def _held(self, name: str, parameter: Tensor) -> tuple[int, Tensor]:
        """Where this rank's piece of a parameter starts, and the piece: of the master weights if it is trained."""
        if name in self._trained:
            if name not in self._pieces:
                return 0, torch.zeros(0, device=self._device)
            flat, piece = self._pieces[name]
            return piece.start, piece.of(flat.data)
        start, length = _own_part(parameter, self.ranks.rank)
        return start, parameter.ds_tensor.data[:length]  # type: ignore[attr-defined]

    def close(self) -> None:
        """Give the model back in float32, on every rank whole but for the experts of others; all ranks call it.

        The engine is of no use after it.
        """
        weights = dict(self._undivided())
        self._engine.destroy()
        for path, module in list(self.model.named_modules()):
            parameters = dict(module._parameters)
            if isinstance(module, Router):
                parameters[BIAS] = vars(module).pop(BIAS)
            module._parameters = {
                key: None if parameter is None else _whole(parameter, weights[f"{path}.{key}"])
                for key, parameter in parameters.items()
            }
        if self.experts is not None:
            self.experts.close()


def _whole(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)


def _take_biases(model: KimiK25) -> dict[str, nn.Parameter]:
    """The routers' correction biases by name, taken out of the modules' parameters; they stay attributes."""
    biases = {}
    for path, module in model.named_modules():
        if isinstance(module, Router):
            bias = module._parameters.pop(BIAS)
            assert bias is not None
            biases[f"{path}.{BIAS}"] = vars(module)[BIAS] = bias
    return biases


def _own_part(parameter: Any, rank: int) -> tuple[int, int]:
    """Start and length of a rank's part at stage 3: equal parts, of which the last are short or empty."""
    size = parameter.partition_numel()
    return min(rank * size, parameter.ds_numel), max(0, min(size, parameter.ds_numel - rank * size))


def _config(stage: int, bfloat16: bool) -> dict[str, Any]:
    """DeepSpeed's settings."""
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "contiguous_gradients": True,
        # At stage 1 it would reduce only the gradients that the last micro-batch has.
        "overlap_comm": torch.cuda.is_available() and stage > 1,
    }
    if stage == 3:
        zero |= {
            "reduce_scatter": False,
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_prefetch_bucket_size": BUCKET,
        }
    else:
        zero["compute_grad_norm"] = False  # we compute it, before the step
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it; batches may have any size
        "gradient_accumulation_steps": 1,  # nothing is averaged over micro-batches
        "gradient_clipping": 0.0,  # by default 1, and then it is the norm of Muon's updates that is clipped
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    if bfloat16:
        config |= {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
    return config


def _deepspeed() -> Any:
    """The package, for the accelerator that is here, compiling nothing on a CPU."""
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does without it
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
