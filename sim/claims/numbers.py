"""The links between numbers: Hugging Face, golden in float, golden in the hardware's formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine_bf16 import Contribution
from golden.dispatch_streams import Job
from golden.error_bound import exact, expert_output, output_error_bound
from golden.expert import ffn
from golden.expert_int8 import ActivationScales
from golden.formats import bf16_decode
from golden.layer import layer
from golden.layer_bf16 import job_inputs, layer_bf16
from sim.accelerator import scales_of
from sim.check import COMBINE_TOLERANCE, OUTPUT_TOLERANCE, check_folder
from sim.claims.measurement import Measurement
from sim.claims.page import Claim, Link, Table
from sim.workload import Workload
from spec.design import INTEGER_FORMATS, DesignSpec, Format
from spec.geometry import ImageGeometry
from spec.load import load_design

HOW_FLOAT = """\
Layers recorded from the classes of `transformers` (float32) against `golden.layer` (float64): combine
weights, outputs, and which experts were selected and kept. The bounds are those of `expertbank check`;
that of the weights is times max(1, largest weight). *std*: the standard deviation of the layer's outputs."""
HOW_FORMATS = """\
`golden.layer` (float64) against `golden.layer_bf16` (bf16, fp32 accumulators, tables), on the same bf16
tokens and weights. The bound of each output is derived, no constant fitted: every rounding from token to
output is followed with magnitudes (`golden/error_bound.py`, [numbers.md](numbers.md)). *std* is the
standard deviation of the layer's outputs; *experts*: every expert's results before the combine weights,
over theirs. Both accelerators add 16 products at a time: their numbers are
the same."""
HOW_INT8 = """\
The same with experts in int8, and with int4 weights and int8 inputs (w4a8; scales as `expertbank sim
--format int8` sets them: the largest magnitudes of these tokens in float become 127; all else in bf16); the
same numbers on both accelerators. *Experts*:
every expert's result for every token that it serves, before the combine weights, against `golden.expert`;
*outputs*: the layer's. *Relative*: root of the sum of squared errors over that of the float values. The
bounds are derived as above: what each weight is off by, with its sign; half a step for everything else that
is rounded to int8, all in the worst direction at once, which is why they are far."""


def float_link(measurement: Measurement) -> Link:
    """Hugging Face's recorded layers against the float golden layer."""
    cases = check_folder(measurement.vectors)
    command = f"expertbank check {measurement.vectors}"
    combine = max(_or_infinite(case.combine_max_abs_err) for case in cases)
    output = max(_or_infinite(case.output_rel_err) for case in cases)
    families = len({case.family for case in cases})
    failed = sum(not case.ok for case in cases)
    return Link(
        name="float",
        title="Hugging Face against golden in float",
        how=HOW_FLOAT,
        claims=[
            Claim(
                text=f"layers recorded from Hugging Face, {families} families: float golden fails",
                measured=f"{failed} of {len(cases)}",
                bound="0",
                command=command,
                ok=failed == 0,
                headline=True,
            ),
            Claim(
                text="largest error of a combine weight",
                measured=_error(combine),
                bound=f"{COMBINE_TOLERANCE:.0e}",
                command=command,
                # Each case has its own bound; see its row.
                ok=failed == 0,
            ),
            Claim(
                text="their outputs: largest error over std",
                measured=_error(output),
                bound=f"{OUTPUT_TOLERANCE:.0e}",
                command=command,
                ok=output <= OUTPUT_TOLERANCE,
                headline=True,
            ),
        ],
        tables=[
            Table(
                (
                    "vector",
                    "family",
                    "combine weights, largest error",
                    "outputs, largest error over std",
                    "ok",
                ),
                [
                    (
                        case.file,
                        case.family or "?",
                        _error(_or_infinite(case.combine_max_abs_err)),
                        _error(_or_infinite(case.output_rel_err)),
                        "yes" if case.ok else f"NO: {case.reason}",
                    )
                    for case in cases
                ],
            )
        ],
    )


@dataclass(frozen=True)
class Errors:
    """Errors of values in the hardware's formats, over the deviation of the float values.

    Attributes
    ----------
    error, bound : (n, H) each value's error and its derived bound.
    relative, relative_bound : root of the sum of squared errors over that of the float values, and of the
        bounds over the same.
    """

    error: NDArray[np.float64]
    bound: NDArray[np.float64]
    relative: float
    relative_bound: float

    @classmethod
    def of(
        cls,
        ours: NDArray[np.float64],
        real: NDArray[np.float64],
        bound: NDArray[np.float64],
        deviation: float,
    ) -> Errors:
        """Return the errors of ``ours`` against ``real``, in units of ``deviation``."""
        error = np.abs(ours - real)
        norm = float(np.linalg.norm(real)) or 1.0
        relative, relative_bound = (float(np.linalg.norm(values)) / norm for values in (error, bound))
        return cls(error / deviation, bound / deviation, relative, relative_bound)

    @property
    def over_bound(self) -> float:
        """Largest error over its bound; a token whose assignments were all dropped has a bound of 0."""
        exact = self.bound == 0
        if (self.error[exact] > 0).any():
            return float("inf")
        return float((self.error / np.where(exact, 1.0, self.bound)).max(initial=0.0))


@dataclass(frozen=True)
class LayerErrors:
    """How far a layer in the hardware's formats is from the one in float.

    Attributes
    ----------
    same, tokens : tokens with the same experts, and all.
    outputs : of the tokens with the same experts.
    experts : of every expert's results.
    """

    same: int
    tokens: int
    outputs: Errors
    experts: Errors


def layer_errors(work: Workload, design: DesignSpec) -> LayerErrors:
    """Compute a layer in float and in the design's formats."""
    image = ImageGeometry.of(work.model, design)
    values = bf16_decode(work.tokens)
    scales = scales_of(work, design)
    real = layer(work.model, work.weights, values, work.batch_lengths, design.window_tokens)
    ours = layer_bf16(
        work.model,
        image,
        work.weights,
        work.tokens,
        window_tokens=design.window_tokens,
        batch_lengths=work.batch_lengths,
        scales=scales,
    )
    sets = (
        np.sort(np.where(kept, ids, -1), axis=1)
        for ids, kept in ((ours.routing.ids, ours.streams.kept), (real.ids, real.kept))
    )
    same = np.equal(*sets).all(axis=1)
    bound = output_error_bound(work.model, image, work.weights, values, real, scales)
    outputs = Errors.of(
        bf16_decode(ours.output)[same], real.output[same], bound[same], float(real.output.std())
    )
    pairs = list(zip(ours.streams.jobs(), ours.contributions, strict=True))
    return LayerErrors(int(same.sum()), len(same), outputs, _expert_errors(work, image, scales, pairs))


def _expert_errors(
    work: Workload,
    image: ImageGeometry,
    scales: ActivationScales | None,
    pairs: list[tuple[Job, Contribution]],
) -> Errors:
    """Return the errors of all jobs' results."""
    ours, real, bounds = [], [], []
    for job, contribution in pairs:
        routed = job.expert < image.num_experts
        weights = work.weights.expert(job.expert) if routed else work.weights.shared_expert
        spec = work.model.ffn if routed else work.model.shared_ffn
        assert weights is not None
        assert spec is not None
        ours.append(bf16_decode(contribution.results).astype(np.float64))
        inputs = bf16_decode(job_inputs(image, job, work.tokens)).astype(np.float64)
        real.append(ffn(spec, x=inputs, **vars(weights)))
        bounds.append(expert_output(spec, weights, exact(inputs), image.routed, scales).error)
    everything = np.concatenate(real)
    return Errors.of(np.concatenate(ours), everything, np.concatenate(bounds), float(everything.std()))


def formats_link(measurement: Measurement) -> Link:
    """Golden in float against golden in the hardware's number formats."""
    layers = {name: layer_errors(work, measurement.design) for name, work in measurement.workloads.items()}
    tokens = sum(one.tokens for one in layers.values())
    others = tokens - sum(one.same for one in layers.values())
    over_bound = max(one.outputs.over_bound for one in layers.values())
    largest, largest_bound, mean, mean_bound = (
        max(float(value) for value in values)
        for values in zip(
            *(
                (
                    one.outputs.error.max(),
                    one.outputs.bound.max(),
                    one.outputs.error.mean(),
                    one.outputs.bound.mean(),
                )
                for one in layers.values()
                if one.same
            ),
            strict=True,
        )
    )
    command = "expertbank claims --only formats"
    return Link(
        name="formats",
        title="golden in float against golden in the hardware's number formats",
        how=HOW_FORMATS,
        claims=[
            Claim(
                text="tokens that select other experts in bf16 than in float",
                measured=f"{others} of {tokens}",
                bound="0",
                command=command,
                ok=others == 0,
                headline=True,
            ),
            Claim(
                text="bf16 against float: largest error of an output over its derived bound",
                measured=f"{over_bound:.3f}",
                bound="1",
                command=command,
                ok=over_bound <= 1,
                headline=True,
            ),
            Claim(
                text="largest error of an output over std",
                measured=f"{largest:.4f}",
                bound=f"{largest_bound:.2f}, derived",
                command=command,
                ok=largest <= largest_bound,
            ),
            Claim(
                text="largest mean error of a layer's outputs over std",
                measured=f"{mean:.4f}",
                bound=f"{mean_bound:.3f}, derived",
                command=command,
                ok=mean <= mean_bound,
            ),
        ],
        tables=[
            Table(
                (
                    "layer",
                    "same experts",
                    "largest error",
                    "mean error",
                    "largest error over bound",
                    "experts: largest error",
                ),
                [
                    (
                        name,
                        f"{one.same} of {one.tokens}",
                        f"{one.outputs.error.max():.4f}" if one.same else "-",
                        f"{one.outputs.error.mean():.4f}" if one.same else "-",
                        f"{one.outputs.over_bound:.3f}",
                        f"{one.experts.error.max():.4f}",
                    )
                    for name, one in layers.items()
                ],
            )
        ],
    )


def int8_link(measurement: Measurement) -> Link:
    """Golden in float against golden with experts in the integer formats."""
    claims, rows = [], []
    for number_format in INTEGER_FORMATS:
        design = load_design(measurement.design.name, number_format)
        layers = {name: layer_errors(work, design) for name, work in measurement.workloads.items()}
        claims += _integer_claims(number_format, list(layers.values()))
        rows += [_integer_row(name, number_format, one) for name, one in layers.items()]
    return Link(
        name="int8",
        title="golden in float against golden with experts in int8 and w4a8",
        how=HOW_INT8,
        claims=claims,
        tables=[
            Table(
                (
                    "layer",
                    "format",
                    "same experts",
                    "experts: largest error",
                    "relative",
                    "largest over bound",
                    "outputs: largest error",
                    "mean error",
                    "relative",
                    "largest over bound",
                ),
                rows,
            )
        ],
    )


def _integer_claims(number_format: Format, layers: Sequence[LayerErrors]) -> list[Claim]:
    """Return what is claimed of layers with experts in an integer format."""
    command = "expertbank claims --only int8"
    tokens = sum(one.tokens for one in layers)
    others = tokens - sum(one.same for one in layers)
    claims = [
        Claim(
            text=f"tokens that select other experts with experts in {number_format} than in float",
            measured=f"{others} of {tokens}",
            bound="0",
            command=command,
            ok=others == 0,
        )
    ]
    compared = [one for one in layers if one.same]
    for one_value, all_values, errors in (
        ("a layer's output", "a layer's outputs", [one.outputs for one in compared]),
        ("an expert's result", "its experts' results", [one.experts for one in compared]),
    ):
        over_bound = max(one.over_bound for one in errors)
        relative = max(one.relative for one in errors)
        relative_bound = max(one.relative_bound for one in errors)
        claims += [
            Claim(
                text=f"{number_format} against float: largest error of {one_value} over its derived bound",
                measured=f"{over_bound:.3f}",
                bound="1",
                command=command,
                ok=over_bound <= 1,
            ),
            Claim(
                text=f"{number_format} against float: largest relative error of {all_values}",
                measured=f"{relative:.4f}",
                bound=f"{relative_bound:.2f}, derived",
                command=command,
                ok=relative <= relative_bound,
                headline=True,
            ),
        ]
    return claims


def _integer_row(name: str, number_format: Format, one: LayerErrors) -> tuple[str, ...]:
    """Return a layer's row of the link's table."""
    outputs = one.outputs
    return (
        name,
        number_format,
        f"{one.same} of {one.tokens}",
        f"{one.experts.error.max():.3f}",
        f"{one.experts.relative:.4f}",
        f"{one.experts.over_bound:.3f}",
        *(
            (
                f"{outputs.error.max():.3f}",
                f"{outputs.error.mean():.4f}",
                f"{outputs.relative:.4f}",
                f"{outputs.over_bound:.3f}",
            )
            if one.same
            else ("-",) * 4
        ),
    )


def _or_infinite(value: float | None) -> float:
    return float("inf") if value is None else value


def _error(value: float) -> str:
    return f"{value:.2e}"
