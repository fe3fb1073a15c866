"""Payloads of the gate's streams and of the rows that flow through it."""

from amaranth import unsigned
from amaranth.lib import data

from rtl.arith import F32
from spec.geometry import GateGeometry
from spec.model import Score


def token_layout(stream_lanes: int):
    """Return an input beat: ``stream_lanes`` bf16 elements; ``last`` ends the batch, not the token."""
    return data.StructLayout({"data": data.ArrayLayout(unsigned(16), stream_lanes), "last": unsigned(1)})


def assignment_layout(num_experts: int, *, shared_gate: bool = False):
    """Return a token-expert assignment.

    ``last`` is set on the last assignment of a token, ``last_token`` on all of the batch's last token;
    ``shared``, where the shared expert has a gate, is its weight for the token, on all of the token's.
    """
    return data.StructLayout(
        {
            "expert": unsigned(max(1, (num_experts - 1).bit_length())),
            "weight": unsigned(16),
            "last": unsigned(1),
            "last_token": unsigned(1),
            **({"shared": unsigned(16)} if shared_gate else {}),
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


def key_bits(score: Score) -> int:
    """Bits of a selection key: a logit, or a biased score of 24 fraction bits."""
    return 32 if score is Score.SOFTMAX else 34


def payload_bits(score: Score) -> int:
    """Bits that a candidate carries beside its key: a sigmoid score; a softmax needs the key only."""
    return 0 if score is Score.SOFTMAX else 31


def candidate_layout(score: Score):
    """Return a candidate: whether there is one, its key in offset binary, its score."""
    return data.StructLayout(
        {
            "payload": unsigned(payload_bits(score)),
            "key": unsigned(key_bits(score)),
            "valid": unsigned(1),
        }
    )


def candidate_row_layout(score: Score, lanes: int, index_bits: int):
    """Return a row of candidates; ``index`` is the expert in lane 0, the others follow."""
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "index": unsigned(index_bits),
            "lanes": data.ArrayLayout(candidate_layout(score), lanes),
        }
    )


def choice_layout(score: Score, index_bits: int):
    """Return a chosen expert with its key and score; ``first``, ``last`` of a token's choices."""
    return data.StructLayout(
        {
            "valid": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "index": unsigned(index_bits),
            "key": unsigned(key_bits(score)),
            "payload": unsigned(payload_bits(score)),
        }
    )
