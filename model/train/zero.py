"""Training with optimizer state, gradients or weights divided among ranks: DeepSpeed's ZeRO stages 1, 2 and 3 with our
own MuonClip (source: ZeRO, arXiv 1910.02054; the optimizer ``model.train.sharded_optimizer``).

DeepSpeed cuts the parameters into flat tensors, averages gradients and gathers weights; what is done to the pieces is
ours. Its own Muon is not used: it falls back to other rules in some modes without a word.

Three things are kept in our own hands. The routers' correction biases, which no gradient moves, stay whole on every
rank and out of DeepSpeed's sight. QK-clip multiplies the float32 pieces within the optimizer's step, so weights and
master copies stay one. And media are shared out over the ranks (``model.train.decoupled_encoder``), whose backward of
the vision side runs within DeepSpeed's: all ranks run the same modules, also those whose rows hold no image.

Experts that ranks divide (``model.expert_parallel``) are other ones on every rank. DeepSpeed takes such in layers of
its own making alone, so they stay out of its sight with an optimizer of their own (``model.train.own_experts``).

Shapes: L elements of a piece; H heads; E routed experts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.data.packing import Batch
from model.errors import MoonflowError
from model.moe import Router
from model.multimodal import KimiK25
from model.precision import products_in
from model.quantization import experts_in
from model.train.decoupled_encoder import DecoupledEncoder
from model.train.engine import Figures, batch_loss
from model.train.optimizer import clip_factors
from model.train.own_experts import OwnExperts
from model.train.phase import Phase
from model.train.ranks import Ranks
from model.train.sharded_optimizer import Piece, ShardedMuonClip
from model.train.slices import Slice

PERSISTENT = 10_000  # elements; smaller parameters stay whole at stage 3 (DeepSpeed: 100,000)
BUCKET = 50_000_000  # elements reduced at a time (DeepSpeed: 500,000,000, which a small GPU has no room for)
VISION_SIDE = ("vision_tower.", "mm_projector.")
BIAS = "e_score_correction_bias"


class _Loss(nn.Module):
    """What DeepSpeed sees: a module whose forward is the loss."""

    def __init__(self, model: KimiK25, phase: Phase, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.phase, self.ranks = model, phase, ranks
        self.encoder = DecoupledEncoder(model, ranks)
        self.figures: Figures = {}
        self.media = False  # whether the last global batch had any

    def forward(self, batch: Batch) -> Tensor:
        products = torch.bfloat16 if self.phase.products == "bfloat16" else None
        with products_in(products), experts_in(self.phase.expert_precision):
            features_MD = self.encoder.forward(batch)
            self.media = features_MD is not None
            if features_MD is not None and features_MD.requires_grad:
                features_MD.register_post_accumulate_grad_hook(lambda _: self.encoder.backward())
            loss, self.figures = batch_loss(self.model, batch, self.ranks, features_MD)
        return loss * self.ranks.world  # DeepSpeed averages over the ranks; the shares are to be added


class ZeroEngine:
    """An ``Engine`` over DeepSpeed; the model is in its hands until ``close``.

    Several ranks only. The model holds its weights when the engine is opened; later they change by ``load_weights``.

    Args:
        ranks: its layout's ``zero_stage`` is 1, 2 or 3.
        bfloat16: weights and gradients in bfloat16 around float32 master weights. Else all is float32.
    """

    def __init__(self, model: KimiK25, phase: Phase, ranks: Ranks, *, bfloat16: bool = False) -> None:
        self.model, self.phase, self.ranks = model, phase, ranks
        self.stage = ranks.layout.zero_stage
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(phase.learns(name))
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._device = ranks.device
        self._order = list(model.state_dict())
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._biases = _take_biases(model)
        self._experts = None if ranks.experts is None else OwnExperts(model, phase, ranks)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._trained = {name for name, _ in trained}
        self._vision_side = frozenset(name for name in self._trained if name.startswith(VISION_SIDE))
        self.optimizer = ShardedMuonClip(trained, phase.learning_rate, weight_decay=phase.weight_decay)
        self._loss = _Loss(model, phase, ranks)
        deepspeed = _deepspeed()
        self._engine, *_ = deepspeed.initialize(
            model=self._loss, optimizer=self.optimizer, config=_config(self.stage, bfloat16), dist_init_required=False
        )
        self._zero = self._engine.optimizer
        flats = list(self._flats())
        assert ranks.everyone is not None
        self.optimizer.place(flats, ranks.everyone)
        self._pieces = {piece.name: (flat, piece) for flat, pieces in flats for piece in pieces}

    def _flats(self) -> Iterator[tuple[Tensor, list[Piece]]]:
        """DeepSpeed's flat float32 tensors of this rank and what lies in them, in the order of its updates."""
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

    def _piece(self, name: str, start: int, length: int, offset: int) -> Piece:
        return Piece(name, self._shapes[name], start, length, offset)

    def backward(self, batch: Batch) -> Figures:
        loss = self._engine(batch)
        self.optimizer.idle = frozenset() if self._loss.media else self._vision_side
        if not self._loss.media and self.stage == 3:
            # Nothing is written over the vision side's gradients of an earlier step.
            self._zero.grad_partitions_flat_buffer.zero_()
        self._engine.backward(loss)
        # The loss was scaled for DeepSpeed, which averages; these are summed.
        of_experts = 0.0 if self._experts is None else self._experts.sum_gradients(1 / self.ranks.world)
        return self._loss.figures | {"gradient_norm": (self._gradient_norm() ** 2 + of_experts) ** 0.5}

    def _gradient_norm(self) -> float:
        parts = [part for parts in self._zero.averaged_gradients.values() for part in parts]
        norms = torch.stack(torch._foreach_norm(parts)).double()
        return float(self.ranks.sum_(norms.square().sum()).sqrt())

    def update(self, step: int) -> Figures:
        rate, model = self.phase.rate(step), self.model
        self.optimizer.set_learning_rate(rate)
        clipped = self._clip() if self.phase.learns_attention else 0
        self._engine.step()
        if self._experts is not None:
            self._experts.update(rate)
        self.optimizer.row_factors = {}
        if self._zero.overflow:
            raise MoonflowError("DeepSpeed left out a step: its gradient was not finite and should have been discarded")
        routers = list(model.routers())
        if routers:
            loads = self.ranks.sum_(torch.stack([router.load_E for router in routers]))
            for router, load_E in zip(routers, loads, strict=True):
                router.load_E.copy_(load_E)
                router.update_bias(self.phase.bias_update_rate if self.phase.learns_routing else 0.0)
        return {"learning_rate": rate, "qk_clip/heads": float(clipped)}

    def _clip(self) -> int:
        """Hand the optimizer the factors of rows whose logits were too large on any rank; returns how many heads."""
        attentions = {name: one for name, one in self.model.named_modules() if one in set(self.model.attentions())}
        largest = self.ranks.max_(torch.stack([one.max_logit_h for one in attentions.values()]))
        clipped = 0
        for (name, attention), largest_h in zip(attentions.items(), largest, strict=True):
            attention.max_logit_h = largest_h
            factors = clip_factors(attention, attention.clip_threshold)
            if factors is not None:
                weights = (f"{name}.q_b_proj.weight", f"{name}.kv_b_proj.weight")
                self.optimizer.row_factors |= dict(zip(weights, factors, strict=True))
                clipped += int((largest_h > attention.clip_threshold).sum())
        return clipped

    def discard(self) -> None:
        zero = self._zero
        zero.zero_grad()
        zero.averaged_gradients.clear()
        if self.stage < 3:
            zero.all_grad_tensors.clear()
        if self._experts is not None:
            self._experts.discard()
        for router in self.model.routers():
            router.load_E.zero_()

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        own = {} if self._experts is None else self._experts.named_state()
        return {**self.optimizer.named_state(), **own}

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_named_state(tensors)
        if self._experts is not None:
            self._experts.load_named_state(tensors)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The model's ``state_dict``, whole and float32, on every rank; all ranks call it together."""
        parameters, whole = dict(self.model.named_parameters()), {}
        experts = {} if self._experts is None else self._experts.weights()
        for name in self._order:
            if name in self._biases:
                whole[name] = self._biases[name].data
            elif name in experts:
                whole[name] = experts[name]
            elif self.stage < 3 and (self._dtype == torch.float32 or name not in self._trained):
                whole[name] = parameters[name].data.float()
            else:
                sum_ = torch.zeros(self._shapes[name], device=self._device)
                start, part_L = self._held(name, parameters[name])
                sum_.flatten()[start : start + len(part_L)] = part_L
                whole[name] = self.ranks.sum_(sum_)
        return whole

    def _held(self, name: str, parameter: Tensor) -> tuple[int, Tensor]:
        """Where this rank's piece of a parameter starts, and the piece: of the master weights if it is trained."""
        if name in self._trained:
            if name not in self._pieces:
                return 0, torch.zeros(0, device=self._device)
            flat, piece = self._pieces[name]
            return piece.start, piece.of(flat.data)
        start, length = _own_part(parameter, self.ranks.rank)
        return start, parameter.ds_tensor.data[:length]  # type: ignore[attr-defined]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of ``state_dict``, whole, master weights included; the optimizer's state stays."""
        parameters: Iterator[tuple[str, Any]] = self.model.named_parameters()
        for name, parameter in parameters:
            value = weights[name].to(self._device)
            if name in self._pieces:
                flat, piece = self._pieces[name]
                piece.of(flat.data).copy_(value.flatten()[piece.start : piece.start + piece.length])
            if self.stage == 3:
                start, length = _own_part(parameter, self.ranks.rank)
                parameter.ds_tensor.data[:length].copy_(value.flatten()[start : start + length])
            if parameter.shape == value.shape:  # at stage 3 only what is whole at the moment
                parameter.data.copy_(value)
        for name, bias in self._biases.items():
            bias.data.copy_(weights[name])
        if self._experts is not None:
            self._experts.load_weights(weights)

    def close(self) -> None:
        """Give the model back, whole and float32 on every rank; all ranks call it. The engine is of no use after it."""
        weights = self.weights()
        self._engine.destroy()
        if self._experts is not None:
            self._experts.close()
        for path, module in list(self.model.named_modules()):
            parameters = dict(module._parameters)
            if isinstance(module, Router):
                parameters[BIAS] = vars(module).pop(BIAS)
            module._parameters = {
                key: None if parameter is None else _whole(parameter, weights[f"{path}.{key}"])
                for key, parameter in parameters.items()
            }


def _whole(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)


def _take_biases(model: KimiK25) -> dict[str, nn.Parameter]:
    """The routers' correction biases by name. They stay attributes, but are parameters of no module any more."""
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
        "overlap_comm": torch.cuda.is_available(),
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
        "train_micro_batch_size_per_gpu": 1,  # it counts, no more; our batches are what they are
        "gradient_accumulation_steps": 1,
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
