"""The link of the families: the hardware's gate against the float gate, on random tokens, for each family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.agreement import (
    choice_bound,
    choice_margins,
    logit_bound,
    selection_keys,
    shared_bound,
    weight_bound,
)
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.gating import Routing, route, sigmoid
from golden.gating_bf16 import RoutingBf16, route_bf16
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.claims.builds import build_all
from sim.claims.measurement import Measurement
from sim.claims.page import Claim, Link, Table
from sim.gate_alone import GateOperands, GateRun, build_gate, run_gate
from spec.design import DesignSpec
from spec.families import family_names
from spec.geometry import GateGeometry
from spec.hardware import lacking_terms
from spec.load import load_entry, preset_names
from spec.model import GatingSpec, ModelSpec

TOKENS = 1 << 20
RTL_TOKENS = 1 << 11
CHUNK = 1 << 10
"""Tokens drawn and routed together: what belongs to them stays in a core's cache."""
SEED = 0
PRODUCTS, MOST_INPUTS, INPUTS = 1 << 13, 64, 16
"""Products of a token at most, and inputs at most, a multiple of the last; the rest is the model's own."""
LEAST_SAME = 0.999
HOW = f"""\
Each family's gate in the hardware's numbers (`golden.gating_bf16`) against the one in float
(`golden.gating`, float64), on {TOKENS:,} random tokens, and the exported Verilog of that gate alone (design
`fpga`) against both golden and its cycle model, on the first {RTL_TOKENS:,} of them. Experts, k, groups and
all else of the gating are those of the family's preset with groups, or with the most experts, that the
hardware has; without one, those of its recorded layer. A preset without a family has a row of its own where
its gate has terms that no family's has. d_model is {MOST_INPUTS}, or less where that are
more than {PRODUCTS:,} products a token. Router rows are N(0, 1/d_model), logit biases N(0, 1/4), selection
biases N(0, 1/100), as `golden.weights.random_weights` draws them with seed {SEED}; tokens are N(0, 1),
{CHUNK:,} of each seed from {SEED} on; all of them bf16 values. Families with equal gates share a row.

*Same experts*: tokens whose set of experts is that of float. *Margin*: of those for which it is another
one, the largest distance in float between the k-th and the next selection score (or the last group chosen
and the next), of logits where the hardware compares logits. It has to be a near tie: *over bound* is the
largest margin over its derived bound (`golden/agreement.py`: twice the error that product, tables and
rounding can make of a score). *Weights*: relative error among tokens with the same experts, the largest and
the mean, and the largest over its derived bound, the weight of a shared expert that has a gate among them;
nearly all of it is the rounding to bf16, of at most 2^-8 = 0.00391.
*Not in hardware*: terms of the family's presets and recorded layers that the hardware lacks; a family all
of whose gates have such a term (`gating.*`) is not measured.

Half of the Verilog's tokens come as fast as they are taken, half with gaps and a stalling output."""


@dataclass(frozen=True)
class Gate:
    """A gate that is measured.

    Attributes
    ----------
    source : what its sizes and terms are of: a preset or a recorded layer.
    model : that model, with as few inputs as are measured, and nothing else that the gate does not need.
    geometry : on the design.
    """

    source: str
    model: ModelSpec
    geometry: GateGeometry

    @classmethod
    def of(cls, source: str, model: ModelSpec, design: DesignSpec) -> Gate:
        """Return the gate of a model."""
        fitting = PRODUCTS // model.gating.num_experts // INPUTS * INPUTS
        d_model = max(INPUTS, min(MOST_INPUTS, fitting))
        ffn = dataclasses.replace(model.ffn, d_expert=1)
        gated = model.d_shared > 0 and model.shared_expert_gate
        small = dataclasses.replace(model, d_model=d_model, ffn=ffn, d_shared=int(gated), d_latent=0)
        return cls(source, small, GateGeometry.of(small, design))


@dataclass(frozen=True)
class FamilyGate:
    """A family, its gate, None where the hardware has none of its gates, and the terms that it lacks.

    In place of a family's name stands a preset's that has none.
    """

    family: str
    gate: Gate | None
    lacking: tuple[str, ...]


def gate_terms(model: ModelSpec) -> list[str]:
    """Return the terms of a model's gating that the hardware lacks."""
    return [term for term in lacking_terms(model) if term.startswith("gating.")]


SIZES = (
    "num_experts",
    "top_k",
    "num_groups",
    "topk_groups",
    "router_width",
    "hash_tokens",
    "scale",
    "epsilon",
)
"""Of a gating, what is no term but a size or a number."""


def terms_of(gating: GatingSpec) -> tuple[object, ...]:
    """Return a gating's terms without its sizes."""
    own = tuple(value for name, value in vars(gating).items() if name not in SIZES)
    return (*own, gating.grouped, gating.epsilon > 0)


def family_gates(vectors: Path, design: DesignSpec) -> list[FamilyGate]:
    """Return every family with the gate that is measured of it, then presets with terms of their own."""
    models: dict[str, list[tuple[str, ModelSpec]]] = {name: [] for name in family_names()}
    others: list[tuple[str, ModelSpec]] = []
    for name in preset_names("models"):
        model, entry = load_entry(name)
        family = "" if entry.catalogue is None else entry.catalogue.family
        (models[family] if family else others).append((name, model))
    for found in models.values():
        found.sort(key=lambda one: (not one[1].gating.grouped, -one[1].gating.num_experts))
    for path in sorted(vectors.glob("*.npz")):
        vector = read_vector(path)
        models[vector.family].append((path.stem, vector.model))
    known = {terms_of(model.gating) for found in models.values() for _, model in found}
    others = [one for one in others if not gate_terms(one[1]) and terms_of(one[1].gating) not in known]
    for name, model in sorted(others, key=lambda one: -one[1].gating.num_experts):
        if terms_of(model.gating) not in known:
            known.add(terms_of(model.gating))
            models[name] = [(name, model)]
    families = []
    for family, found in models.items():
        gates = [Gate.of(name, model, design) for name, model in found if not gate_terms(model)]
        lacking = sorted({term for _, model in found for term in lacking_terms(model)})
        families.append(FamilyGate(family, gates[0] if gates else None, tuple(lacking)))
    return families


@dataclass(frozen=True)
class Agreement:
    """The hardware's numbers against float.

    Attributes
    ----------
    tokens, same : how many, and how many with the same set of experts.
    margin, margin_over_bound : the largest of the others; 0 without others.
    weight_error, mean_weight_error, weight_over_bound : relative, among those with the same set.
    """

    tokens: int
    same: int
    margin: float
    margin_over_bound: float
    weight_error: float
    mean_weight_error: float
    weight_over_bound: float


@dataclass(frozen=True, eq=False)
class GateBench:
    """A gate with its random router, and the tokens of each chunk."""

    gate: Gate
    weights: LayerWeights

    @classmethod
    def of(cls, gate: Gate) -> GateBench:
        """Return the gate with a router drawn for it."""
        return cls(gate, random_weights(gate.model, SEED, experts=()))

    def tokens(self, chunk: int) -> Bits16:
        """Return the bf16 patterns of a chunk's tokens."""
        return bf16_encode(random_tokens(self.gate.model, CHUNK, SEED + chunk))

    def hardware(self, tokens: Bits16) -> RoutingBf16:
        """Return golden's routing in the hardware's numbers."""
        weights = self.weights
        router, cols = bf16_encode(weights.router), self.gate.geometry.cols
        return route_bf16(
            self.gate.geometry.gating,
            router,
            tokens,
            cols,
            weights.logit_bias,
            weights.selection_bias,
            shared_gate=weights.shared_gate_bits,
            gives_scores=self.gate.geometry.gives_scores,
        )

    def real(self, tokens: Bits16) -> Routing:
        """Return golden's routing in float."""
        weights = self.weights
        values = bf16_decode(tokens)
        gating = self.gate.geometry.gating
        return route(gating, weights.router, values, weights.logit_bias, weights.selection_bias)

    def shared(self, tokens: Bits16) -> NDArray[np.float64] | None:
        """Return the shared expert's weights in float, (T,), where it has a gate."""
        gate = self.weights.shared_expert_gate
        return None if gate is None else sigmoid(bf16_decode(tokens).astype(np.float64) @ gate[0])

    def logit_bound(self, tokens: Bits16) -> NDArray[np.float64]:
        """Return what a token's logits can be off by, that of a shared expert's gate included."""
        weights = self.weights
        gate = weights.shared_expert_gate
        rows = weights.router if gate is None else np.concatenate([weights.router, gate])
        return logit_bound(rows, bf16_decode(tokens), self.gate.geometry.cols, weights.logit_bias)

    def weight_bounds(
        self, tokens: Bits16, real: Routing, logit_error: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the bounds on what :func:`compare` measures, in its order."""
        gating = self.gate.geometry.gating
        bound = weight_bound(gating, real.logits, real.ids, real.weights, logit_error)
        bound = np.take_along_axis(bound, np.argsort(real.ids, axis=1), axis=1)
        shared = self.shared(tokens)
        return bound if shared is None else np.column_stack([bound, shared_bound(shared, logit_error)])

    def agreement(self, num_tokens: int) -> Agreement:
        """Return how the two agree on so many tokens, whole chunks."""
        gating, weights = self.gate.model.gating, self.weights
        same = count = 0
        margin = margin_over = largest = largest_over = total = 0.0
        for chunk in range(num_tokens // CHUNK):
            tokens = self.tokens(chunk)
            ours, real = self.hardware(tokens), self.real(tokens)
            logit_error = self.logit_bound(tokens)
            agreed, error = compare(ours, real, self.shared(tokens))
            same += int(agreed.sum())
            if not agreed.all():
                logits = real.logits[~agreed]
                keys = selection_keys(gating, logits, weights.selection_bias)
                margins = np.stack(choice_margins(gating, keys))
                bounds = np.stack(choice_bound(gating, logits, logit_error[~agreed]))
                margin = max(margin, float(margins.min(axis=0).max()))
                margin_over = max(margin_over, float((margins / bounds).min(axis=0).max()))
            if agreed.any():
                bound = self.weight_bounds(tokens, real, logit_error)[agreed]
                largest = max(largest, float(error.max()))
                largest_over = max(largest_over, float((error / bound).max()))
                total += float(error.sum())
                count += error.size
        mean = total / max(1, count)
        return Agreement(num_tokens, same, margin, margin_over, largest, mean, largest_over)

    def verilog(self, num_tokens: int, root: Path) -> GateRun:
        """Return what the exported Verilog does with the first tokens."""
        weights = self.weights
        tokens = np.concatenate([self.tokens(chunk) for chunk in range(num_tokens // CHUNK)])
        operands = GateOperands(
            self.gate.geometry,
            bf16_encode(weights.router),
            weights.logit_bias,
            weights.selection_bias,
            weights.shared_gate_bits,
            tokens,
            self.hardware(tokens),
        )
        rtl = build_gate(self.gate.geometry, root)
        return run_gate(rtl, operands, seed=SEED, waves=root / "waves")


def compare(
    ours: RoutingBf16, real: Routing, shared: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which tokens have the same experts, and the relative errors (those tokens, k) of their weights.

    By expert: two choices closer than the error may stand in the other order. With ``shared``, (T,), the
    weight of the shared expert is one more.
    """
    our_order, real_order = np.argsort(ours.ids, axis=1), np.argsort(real.ids, axis=1)
    our_ids, real_ids = (
        np.take_along_axis(ids, order, axis=1)
        for ids, order in ((ours.ids, our_order), (real.ids, real_order))
    )
    same: NDArray[np.bool_] = (our_ids == real_ids).all(axis=1)
    weights = bf16_decode(np.take_along_axis(ours.weights, our_order, axis=1)[same]).astype(np.float64)
    wanted = np.take_along_axis(real.weights, real_order, axis=1)[same]
    if shared is not None and ours.shared is not None:
        weights = np.column_stack([weights, bf16_decode(ours.shared[same])])
        wanted = np.column_stack([wanted, shared[same]])
    difference = np.abs(weights - wanted)
    # A weight of 0 has no relative error but none.
    least = np.finfo(np.float64).tiny
    error: NDArray[np.float64] = difference / np.maximum(np.abs(wanted), least)
    return same, error


def families_link(measurement: Measurement) -> Link:
    """Return the link: every distinct gate once, in golden and in Verilog."""
    families = family_gates(measurement.vectors, measurement.design)
    shared: dict[GateGeometry, list[FamilyGate]] = {}
    for one in families:
        if one.gate is not None:
            shared.setdefault(one.gate.geometry, []).append(one)
    jobs = [
        (f"gate of {users[0].family}", (geometry, measurement.root)) for geometry, users in shared.items()
    ]
    build_all(build_gate, jobs, measurement.progress)
    measured = []
    for number, (_, users) in enumerate(shared.items(), 1):
        gate = users[0].gate
        assert gate is not None
        names = ", ".join(one.family for one in users)
        measurement.progress(f"gate {number} of {len(shared)}: {names} ({gate.source})")
        bench = GateBench.of(gate)
        measured.append((users, gate, bench.agreement(TOKENS), bench.verilog(RTL_TOKENS, measurement.root)))
    return link_of(families, measured)


Measured = tuple[list[FamilyGate], Gate, Agreement, GateRun]


def link_of(families: list[FamilyGate], measured: list[Measured]) -> Link:
    """Return claims and tables of what was measured."""
    agreements = [agreement for _, _, agreement, _ in measured]
    runs = [run for *_, run in measured]
    least = min(agreement.same / agreement.tokens for agreement in agreements)
    margin = max(agreement.margin_over_bound for agreement in agreements)
    weight = max(agreement.weight_error for agreement in agreements)
    weight_over = max(agreement.weight_over_bound for agreement in agreements)
    bits, differing = sum(run.bits for run in runs), sum(run.differing for run in runs)
    diverged = sum(run.divergence is not None for run in runs)
    in_hardware = sum(one.gate is not None for one in families)
    tokens = min(agreement.tokens for agreement in agreements)
    rtl_tokens = min(run.tokens for run in runs)
    command = "expertbank claims --only families"
    return Link(
        name="families",
        title="each family's gate in hardware against float",
        how=HOW,
        claims=[
            Claim(
                text=f"gates of {in_hardware} of {len(families)} families ({len(measured)} different ones),"
                f" {tokens:,} tokens each: least share with the experts of float",
                measured=f"{least:.4%}",
                bound=f"at least {LEAST_SAME:.1%}",
                command=command,
                ok=least >= LEAST_SAME,
                headline=True,
            ),
            Claim(
                text="the others are near ties: largest margin in float over its derived bound",
                measured=f"{margin:.3f}",
                bound="1",
                command=command,
                ok=margin <= 1,
            ),
            Claim(
                text="largest relative error of a weight, over its derived bound",
                measured=f"{weight:.5f}, {weight_over:.3f}",
                bound="1",
                command=command,
                ok=weight_over <= 1,
                headline=True,
            ),
            Claim(
                text=f"their Verilog, {rtl_tokens:,} tokens each: bits that differ from golden",
                measured=f"{differing:,} of {bits:,}",
                bound="0",
                command=command,
                ok=differing == 0,
                headline=True,
            ),
            Claim(
                text="gates with a handshake in another cycle than the model says",
                measured=f"{diverged} of {len(runs)}",
                bound="0",
                command=command,
                ok=diverged == 0,
            ),
        ],
        tables=[_float_table(families, measured), _rtl_table(measured)],
    )


def _float_table(families: list[FamilyGate], measured: list[Measured]) -> Table:
    columns = (
        "families",
        "gate of",
        "experts, k, groups",
        "d_model",
        "tokens",
        "same experts",
        "margin",
        "over bound",
        "weights: largest",
        "mean",
        "over bound",
        "not in hardware",
    )
    rows: list[tuple[str, ...]] = []
    for users, gate, agreement, _ in measured:
        gating = gate.model.gating
        groups = f", {gating.topk_groups} of {gating.num_groups}" if gating.grouped else ""
        others = agreement.same < agreement.tokens
        rows.append(
            (
                _names(users),
                gate.source,
                f"{gating.num_experts}, {gating.top_k}{groups}",
                str(gate.model.d_model),
                f"{agreement.tokens:,}",
                f"{agreement.same / agreement.tokens:.4%}",
                f"{agreement.margin:.1e}" if others else "-",
                f"{agreement.margin_over_bound:.3f}" if others else "-",
                f"{agreement.weight_error:.5f}",
                f"{agreement.mean_weight_error:.5f}",
                f"{agreement.weight_over_bound:.3f}",
                _lacking(users),
            )
        )
    dashes = ["-"] * (len(columns) - 3)
    rows += [
        (one.family, "not in hardware", *dashes, _lacking([one])) for one in families if one.gate is None
    ]
    return Table(columns, rows)


def _rtl_table(measured: list[Measured]) -> Table:
    return Table(
        ("families", "gate of", "tokens", "cycles", "bits compared", "differing", "handshakes equal"),
        [
            (
                _names(users),
                gate.source,
                f"{run.tokens:,}",
                f"{run.cycles:,}",
                f"{run.bits:,}",
                f"{run.differing:,}",
                "yes" if run.divergence is None else f"NO: {run.divergence}",
            )
            for users, gate, _, run in measured
        ],
    )


def _names(users: list[FamilyGate]) -> str:
    return ", ".join(one.family for one in users)


def _lacking(users: list[FamilyGate]) -> str:
    """Return the terms that each family lacks, the family named where they are several."""
    named = [
        (f"{one.family}: " if len(users) > 1 else "") + ", ".join(f"`{term}`" for term in one.lacking)
        for one in users
        if one.lacking
    ]
    return "; ".join(named)
