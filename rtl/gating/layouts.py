"""Payloads of the gate's streams and of the rows that flow through it."""

from amaranth import unsigned
from amaranth.lib import data

from golden.functions import FRACTION_BITS, SCORE_BITS
from golden.gating_bf16 import select_bits
from rtl.arith import F32
from rtl.functions import SqrtSoftplus
from spec.gate_plan import GatePlan
from spec.geometry import GateGeometry
from spec.model import GatingSpec, Score

LOGIT_BITS = 32
SCORE_WIDTH = SCORE_BITS + 1
"""Bits of a score of at most 1."""


def token_layout(stream_lanes: int):
    """Return an input beat: ``stream_lanes`` bf16 elements; ``last`` ends the batch, not the token."""
    return data.StructLayout({"data": data.ArrayLayout(unsigned(16), stream_lanes), "last": unsigned(1)})


def assignment_layout(num_experts: int, *, shared_gate: bool = False, score_bits: int = 0):
    """Return a token-expert assignment.

    ``last`` is set on the last assignment of a token, ``last_token`` on all of the batch's last token;
    ``shared``, where the shared expert has a gate, is its weight for the token, on all of the token's;
    ``score``, where it is given, is what the weight was made of.
    """
    return data.StructLayout(
        {
            "expert": unsigned(max(1, (num_experts - 1).bit_length())),
            "weight": unsigned(16),
            "last": unsigned(1),
            "last_token": unsigned(1),
            **({"shared": unsigned(16)} if shared_gate else {}),
            **({"score": unsigned(score_bits)} if score_bits else {}),
        }
    )


def row_shape(geometry: GateGeometry) -> range:
    """Return what numbers the rows of the product: at least one bit, so that no port has width 0."""
    return range(max(2, geometry.num_rows))


def logit_row_layout(lanes: int):
    """Return a row of the product: logits of ``lanes`` experts; ``first``, ``last`` row of a token."""
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "logits": data.ArrayLayout(F32, lanes),
        }
    )


def logit_part_layout(rows: int, group_tokens: int):
    """Return what a register read of the banks brings: half of the logits of a block, for one token.

    An fp32 logit takes two reads, its upper 16 bits first; ``low`` is the second. ``last_token`` of its
    group, ``last_block`` of its token.

    ::

        valid       1   0   1   0   1   0   1      two tokens, one block of them after the other
        token       0       0       1       1
        low         0       1       0       1
        last_token  0       0       1       1
    """
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "low": unsigned(1),
            "token": unsigned(max(1, (group_tokens - 1).bit_length())),
            "last_token": unsigned(1),
            "last_block": unsigned(1),
            "data": data.ArrayLayout(unsigned(16), rows),
        }
    )


def score_bits(score: Score) -> int:
    """Bits of the magnitude of a score; that of a logit has its 20 fraction bits, the others 30."""
    return {Score.SQRT_SOFTPLUS: SqrtSoftplus.BITS, Score.NONE: LOGIT_BITS - 1}.get(score, SCORE_WIDTH)


def given_score_bits(geometry: GateGeometry) -> int:
    """Bits of the score that goes with an assignment, 0 where none does; a logit is in offset binary."""
    plan = geometry.plan
    if not plan.gives_scores:
        return 0
    return LOGIT_BITS if plan.signed else score_bits(plan.weight_score)


def key_bits(gating: GatingSpec) -> int:
    """Bits of a selection key: a logit, or a biased score of ``select_bits`` fraction bits.

    A bias has 32 bits, and no score is larger than its range but a logit's, with 4 places more.
    """
    if GatePlan(gating).ranked_by_logit:
        return LOGIT_BITS
    if gating.score is Score.NONE:
        return LOGIT_BITS + select_bits(gating) - FRACTION_BITS + 1
    return 33 if gating.score is Score.SOFTMAX else 34


def payload_bits(gating: GatingSpec) -> int:
    """Bits that a candidate carries beside its key: a score, a logit (as a key), or nothing."""
    plan = GatePlan(gating)
    if plan.carries_score:
        return score_bits(gating.score)
    return LOGIT_BITS if plan.carries_logit else 0


def candidate_layout(key_bits: int, payload_bits: int):
    """Return a candidate: whether there is one, its key in offset binary, what goes along."""
    return data.StructLayout(
        {
            "payload": unsigned(payload_bits),
            "key": unsigned(key_bits),
            "valid": unsigned(1),
        }
    )


def index_bits(gating: GatingSpec) -> int:
    """Bits of an expert's index."""
    return max(1, (gating.num_experts - 1).bit_length())


def _row_layout(candidate, lanes: int, index_bits: int):
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "index": unsigned(index_bits),
            "lanes": data.ArrayLayout(candidate, lanes),
        }
    )


def candidate_row_layout(geometry: GateGeometry):
    """Return a row of candidates; ``index`` is the expert in lane 0, the others follow."""
    gating = geometry.gating
    candidate = candidate_layout(key_bits(gating), payload_bits(gating))
    return _row_layout(candidate, geometry.logits_per_cycle, index_bits(gating))


def logit_candidates_layout(geometry: GateGeometry):
    """Return such a row whose keys are the logits."""
    return _row_layout(
        candidate_layout(LOGIT_BITS, 0), geometry.logits_per_cycle, index_bits(geometry.gating)
    )


def choice_layout(gating: GatingSpec):
    """Return a chosen expert with its key and payload; ``first``, ``last`` of a token's choices."""
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "index": unsigned(index_bits(gating)),
            "key": unsigned(key_bits(gating)),
            "payload": unsigned(payload_bits(gating)),
        }
    )
