"""Selection among equals: golden, in float and in the hardware's numbers, against a plain stable sort."""

from __future__ import annotations

import numpy as np
import pytest

import golden.gating
import golden.gating_bf16
from golden.functions import SCORE_BITS, SELECT_BITS, score_from, sigmoid
from spec.model import GatingSpec, GroupMask, GroupScore, Score

GATINGS = {
    # Few of many: the largest again and again. Many of few: sorted.
    "few of many": GatingSpec(num_experts=24, top_k=2),
    "many of few": GatingSpec(num_experts=6, top_k=5),
    "groups by two": GatingSpec(
        num_experts=16, top_k=3, score=Score.SIGMOID, selection_bias=True, num_groups=4, topk_groups=2
    ),
    "groups by the best": GatingSpec(
        num_experts=12,
        top_k=4,
        score=Score.SIGMOID,
        selection_bias=True,
        num_groups=4,
        topk_groups=3,
        group_score=GroupScore.MAX,
    ),
}
FEW, MANY = 1 << 12, 1 << 20
ROWS_AT_A_TIME = 1 << 16


def sorted_choice(gating: GatingSpec, keys: np.ndarray) -> np.ndarray:
    """Return each row's experts by stable sorts alone, and nothing of golden's."""
    keys = keys.astype(np.float64)
    if gating.grouped:
        groups = keys.reshape(len(keys), gating.num_groups, -1)
        best = -np.sort(-groups, axis=2, kind="stable")
        ranks = best[..., 0] + (best[..., 1] if gating.group_score is GroupScore.TOP2_SUM else 0)
        losers = np.argsort(-ranks, axis=1, kind="stable")[:, gating.topk_groups :]
        np.put_along_axis(groups, losers[..., None], -np.inf, axis=1)
    return np.argsort(-keys, axis=1, kind="stable")[:, : gating.top_k]


def float_choice(gating: GatingSpec, levels: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what golden in float chooses of scores that are eighths, and those scores with their bias."""
    scores = levels / 8.0
    biased = scores + bias if gating.selection_bias else scores
    return golden.gating.select(gating, scores, bias if gating.selection_bias else None), biased


def hardware_choice(
    gating: GatingSpec, levels: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what golden in the hardware's numbers chooses of logits that are eighths, and its keys."""
    logits = levels << 17
    if not gating.selection_bias:
        return golden.gating_bf16.select(gating, logits, None).ids, logits
    fixed = np.rint(bias * 2.0**SELECT_BITS).astype(np.int64)
    keys = (score_from(*sigmoid(logits)) >> (SCORE_BITS - SELECT_BITS)) + fixed
    return golden.gating_bf16.select(gating, logits, fixed).ids, keys


CHOICES = {"float": float_choice, "hardware": hardware_choice}


def check_ties(kind: str, name: str, num_rows: int) -> None:
    """Compare so many rows of at most five different values."""
    gating = GATINGS[name]
    rng = np.random.default_rng(len(name))
    tied = 0
    for _ in range(0, num_rows, ROWS_AT_A_TIME):
        levels = rng.integers(-2, 3, (min(num_rows, ROWS_AT_A_TIME), gating.num_experts))
        bias = rng.integers(-1, 2, gating.num_experts) / 4.0
        ids, keys = CHOICES[kind](gating, levels, bias)
        want = sorted_choice(gating, keys)
        wrong = np.flatnonzero((ids != want).any(axis=1))
        assert not wrong.size, f"row {wrong[0]}: {keys[wrong[0]]}: {ids[wrong[0]]}, not {want[wrong[0]]}"
        chosen = np.take_along_axis(keys, want, axis=1)
        tied += int((chosen[:, :-1] == chosen[:, 1:]).any(axis=1).sum())
    assert tied > num_rows / 8


@pytest.mark.parametrize("name", GATINGS)
@pytest.mark.parametrize("kind", CHOICES)
def test_ties(kind, name):
    check_ties(kind, name, FEW)


@pytest.mark.long
@pytest.mark.parametrize("name", GATINGS)
@pytest.mark.parametrize("kind", CHOICES)
def test_a_million_rows_with_ties(kind, name):
    check_ties(kind, name, MANY)


@pytest.mark.parametrize("name", ["few of many", "many of few"])
@pytest.mark.parametrize("kind", CHOICES)
def test_another_order_of_equals_is_found(monkeypatch, kind, name):
    """The check sees a selection that takes the highest index of equals."""
    module = golden.gating if kind == "float" else golden.gating_bf16
    planted = "_take_largest" if kind == "float" else "_top"

    def highest(keys: np.ndarray, count: int) -> np.ndarray:
        width = keys.shape[1]
        return width - 1 - np.argsort(-keys[:, ::-1], axis=1, kind="stable")[:, :count]

    monkeypatch.setattr(module, planted, highest)
    with pytest.raises(AssertionError, match=r"^row \d+: "):
        check_ties(kind, name, FEW)


FAR = {
    "all": (GatingSpec(num_experts=16, top_k=3), [[3, 12, 9], [2, 15, 7]]),
    "groups": (
        GatingSpec(
            num_experts=16,
            top_k=3,
            num_groups=4,
            topk_groups=2,
            group_score=GroupScore.MAX,
            group_mask=GroupMask.ZERO,
        ),
        [[3, 12, 0], [2, 15, 0]],
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_far_logits_are_ranked_as_in_hardware(name):
    """Softmax shares of logits 745 below the largest are 0 in float64: the logits rank them."""
    gating, want = FAR[name]
    logits = np.full((2, 16), -1900.0)
    logits[0, [3, 9, 12]] = 100.0, -900.0, -800.0
    logits[1, [2, 15, 7]] = 1500.0, 600.0, -1000.0
    fixed = np.rint(logits * 2.0**20).astype(np.int64)
    assert golden.gating_bf16.select(gating, fixed, None).ids.tolist() == want
    assert golden.gating.route(gating, np.eye(16), logits).ids.tolist() == want
    shares = golden.gating.score(gating.score, logits)
    assert golden.gating.select(gating, shares, None).tolist() != want
