"""The float golden layer against Hugging Face's results, an independent reference, and its own rules."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.combine import combine, combine_matrix
from golden.dispatch import dispatch
from golden.expert import activate, ffn
from golden.formats import bf16_decode
from golden.functions import FIXED_MAX, FRACTION_BITS
from golden.gating import group_mask, route, sigmoid, top_k
from golden.gating_bf16 import select
from golden.layer import layer
from golden.vectors import read_vector
from golden.weights import PER_EXPERT, random_token_ids, random_tokens, random_weights, weight_shapes
from spec.families import WEIGHT_NAMES, family_names
from spec.load import load_model
from spec.model import (
    Activation,
    CapacityRule,
    FfnSpec,
    GatingSpec,
    GroupMask,
    GroupScore,
    ModelSpec,
    Normalise,
    Router,
    Score,
    Selection,
)
from tests.reference import reference_layer
from tests.strategies import all_models, gatings, models

DATA = Path(__file__).parent / "data"
VECTORS = sorted(DATA.glob("*.npz"))


def test_vectors_cover_every_family():
    recorded = {read_vector(path).family for path in VECTORS}
    assert len(recorded) == 28
    # No class of transformers is of these.
    assert set(family_names()) - recorded == {"llama_moe", "openmoe", "skywork", "yuan"}
    assert len(VECTORS) == 57


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_layer_agrees_with_hugging_face(path):
    vector = read_vector(path)
    result = layer(
        vector.model,
        vector.weights,
        vector.flat_tokens,
        vector.sequence_lengths,
        token_ids=vector.token_ids,
    )
    assert np.array_equal(np.sort(result.ids), np.sort(vector.topk_indices))
    assert np.array_equal(result.combine != 0, vector.combine != 0)
    # float32 logits of 32 products around 1: a few units of 2**-24 each.
    assert np.abs(result.logits - vector.router_logits).max() < 4e-6
    assert np.abs(result.combine - vector.combine).max() < 3e-7 * max(1.0, vector.combine.max())
    assert (
        np.abs(result.output.reshape(vector.output.shape) - vector.output).max() < 1e-5 * vector.output.std()
    )
    if vector.shared_output is not None:
        shared = result.shared_output.reshape(vector.output.shape)
        assert np.abs(shared - vector.shared_output).max() < 1e-5 * vector.shared_output.std()
    assert (~result.kept).sum() == vector.dropped_assignments


def test_vectors_include_drops_and_a_router_bias():
    assert read_vector(DATA / "switch_transformers_s0.npz").dropped_assignments == 3
    assert read_vector(DATA / "switch_transformers_s1.npz").weights.logit_bias is not None


def test_negative_biased_scores_need_the_infinite_mask():
    """A mask of zero would let rejected groups win where all biased scores are negative."""
    vector = read_vector(DATA / "deepseek_v3_negbias_s0.npz")
    gating, weights = vector.model.gating, vector.weights
    scores = sigmoid(vector.flat_tokens.astype(np.float64) @ weights.router.T.astype(np.float64))
    ranking = scores + weights.selection_bias
    assert ranking.max() < 0
    with_zero = top_k(np.where(group_mask(gating, ranking), ranking, 0.0), gating.top_k)
    assert not np.array_equal(np.sort(with_zero), np.sort(vector.topk_indices))


@settings(max_examples=60)
@given(
    model=st.one_of(models(), all_models(), all_models()),
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(((1, 1), (2, 3), (1, 7))),
)
def test_layer_agrees_with_the_reference(model, seed, shape):
    check_against_reference(model, seed, shape)


@pytest.mark.long
@settings(max_examples=3000)
@given(
    model=st.one_of(models(), all_models()),
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12)),
)
def test_layer_agrees_with_the_reference_in_a_wide_sweep(model, seed, shape):
    check_against_reference(model, seed, shape)


def check_against_reference(model: ModelSpec, seed: int, shape: tuple[int, int]) -> None:
    weights = random_weights(model, seed)
    tokens = random_tokens(model, shape[0] * shape[1], seed)
    token_ids = random_token_ids(model, len(tokens), seed)
    by_sequence = None if token_ids is None else token_ids.reshape(shape)
    expected = reference_layer(model, weights, tokens.reshape(*shape, -1), by_sequence)
    result = layer(model, weights, tokens, [shape[1]] * shape[0], token_ids=token_ids)
    assert np.array_equal(result.ids, expected.topk_indices)
    assert (~result.kept).sum() == expected.dropped_assignments
    np.testing.assert_allclose(result.logits, expected.router_logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.combine, expected.combine, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result.output, expected.output.reshape(len(tokens), -1), rtol=1e-9, atol=1e-11)


# Gating.


def softmax_gating(num_experts: int, k: int, **options) -> GatingSpec:
    return GatingSpec(num_experts=num_experts, top_k=k, score=Score.SOFTMAX, **options)


def test_ties_go_to_the_lowest_index():
    logits = np.array([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -1.0, -2.0, -1.0]])
    routing = route(softmax_gating(5, 3), np.eye(5), logits)
    assert routing.ids.tolist() == [[1, 2, 4], [0, 1, 2], [0, 2, 4]]
    np.testing.assert_allclose(routing.weights, 1 / 3)


def test_ties_of_groups_go_to_the_lowest_index():
    gating = GatingSpec(num_experts=8, top_k=2, score=Score.SIGMOID, num_groups=4, topk_groups=2)
    logits = np.array([[0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0], [0.0] * 8])
    routing = route(gating, np.eye(8), logits)
    assert routing.ids.tolist() == [[2, 1], [0, 1]]


def stable_order(ranking: np.ndarray, k: int) -> np.ndarray:
    """Return a plain stable sort's first k, largest first."""
    return np.argsort(-ranking, axis=1, kind="stable")[:, :k]


def check_rows_with_ties(num_rows: int, num_experts: int, k: int, seed: int) -> None:
    """Compare with a stable sort on rows in which most values are shared, some of them losing groups'."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_rows, 1 << 14):
        shape = (min(num_rows - start, 1 << 14), num_experts)
        ranking = rng.integers(0, rng.choice((2, 5, 300)), shape) / 4.0
        ranking[:, : rng.integers(0, num_experts - k + 1)] = -np.inf
        ranking = rng.permuted(ranking, axis=1)
        assert np.array_equal(top_k(ranking, k), stable_order(ranking, k))


@pytest.mark.parametrize(
    ("num_experts", "k"), [(256, 8), (256, 1), (384, 16), (60, 4), (7, 7), (16, 12), (1, 1)]
)
def test_rows_with_ties_agree_with_a_stable_sort(num_experts, k):
    check_rows_with_ties(20_000, num_experts, k, num_experts)


@pytest.mark.long
@pytest.mark.parametrize(("num_experts", "k"), [(256, 8), (128, 4), (512, 10)])
def test_a_million_rows_with_ties_agree_with_a_stable_sort(num_experts, k):
    check_rows_with_ties(1_000_000, num_experts, k, 1)


def test_routing_in_parts_is_routing_at_once(monkeypatch):
    """Groups, ties and all, whatever the number of tokens that are handled together."""
    gating = dataclasses.replace(load_model("deepseek-v3").gating, top_k=6)
    rng = np.random.default_rng(4)
    tokens, router = rng.integers(-2, 3, (1500, 4)), rng.integers(-2, 3, (256, 4)).astype(np.float64)
    bias = rng.integers(0, 2, 256) / 8
    at_once = route(gating, router, tokens, selection_bias=bias)
    scores = sigmoid(tokens @ router.T) + bias
    groups = np.sort(scores.reshape(-1, 8, 32), axis=2)[:, :, -2:].sum(axis=2)
    winners = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(winners, stable_order(groups, 4), True, axis=1)
    expected = stable_order(np.where(winners.repeat(32, axis=1), scores, -np.inf), 6)
    assert np.array_equal(at_once.ids, expected)
    monkeypatch.setattr("golden.gating._TOKENS_AT_A_TIME", 64)
    in_parts = route(gating, router, tokens, selection_bias=bias)
    assert np.array_equal(in_parts.ids, at_once.ids)
    assert np.array_equal(in_parts.weights, at_once.weights)


def test_a_mask_of_zero_lets_losers_beat_negative_scores():
    logits = np.array([[3.0, -5.0, -1.0, -2.0]])
    options = {"num_experts": 4, "top_k": 2, "score": Score.NONE, "num_groups": 2, "topk_groups": 1}
    for mask, ids in ((GroupMask.MINUS_INFINITY, [0, 1]), (GroupMask.ZERO, [0, 2])):
        gating = GatingSpec(**options, group_score=GroupScore.MAX, group_mask=mask, normalise=Normalise.NONE)
        assert route(gating, np.eye(4), logits).ids.tolist() == [ids]


def test_sparse_mixer_by_hand():
    """2.0 is far from 4.0, near to 3.9 only; the winner of the first round is out of the second."""
    gating = GatingSpec(
        num_experts=3,
        top_k=2,
        score=Score.NONE,
        selection=Selection.SPARSE_MIXER,
        jitter=0.02,
        normalise=Normalise.NONE,
    )
    routing = route(gating, np.eye(3), np.array([[3.9, 4.0, 2.0], [0.0, 0.0, 0.0]]))
    assert routing.ids.tolist() == [[1, 0], [0, 1]]
    share = 1.0 / (1.0 + np.exp(-0.1))
    np.testing.assert_allclose(routing.weights, [[share, 1.0], [1 / 3, 1 / 2]], rtol=1e-12)


def test_a_hash_table_needs_token_ids():
    gating = GatingSpec(num_experts=2, top_k=1, selection=Selection.HASH, hash_tokens=2)
    table = np.array([[1], [0]])
    routing = route(gating, np.eye(2), np.zeros((3, 2)), hash_table=table, token_ids=np.array([1, 1, 0]))
    assert routing.ids.ravel().tolist() == [0, 0, 1]
    with pytest.raises(
        ValueError, match=r"\Atoken_ids: must be given for each of 3 tokens: experts are hashed\Z"
    ):
        route(gating, np.eye(2), np.zeros((3, 2)), hash_table=table)


def test_the_attention_router_weighs_the_values_by_query_and_key():
    """Two experts, token 1: expert 0's query 0 sees both values alike, expert 1's only the larger key's."""
    gating = softmax_gating(2, 1, router=Router.ATTENTION)
    value, query, key = np.array([[2.0], [6.0]]), np.array([[0.0], [1e4]]), np.array([[1.0], [2.0]])
    routing = route(gating, value, np.ones((3, 1)), router_query=query, router_key=key)
    assert routing.logits.tolist() == [[4.0, 6.0]] * 3
    with pytest.raises(
        ValueError, match=r"\Arouter_query and router_key: must be given with router='attention'\Z"
    ):
        route(gating, value, np.ones((3, 1)), router_query=query)


def test_the_attention_router_in_parts_is_the_same(monkeypatch):
    gating = softmax_gating(6, 2, router=Router.ATTENTION)
    rng = np.random.default_rng(0)
    value, query, key = rng.standard_normal((3, 6, 4))
    tokens = rng.standard_normal((50, 4))
    whole = route(gating, value, tokens, router_query=query, router_key=key)
    monkeypatch.setattr("golden.gating._SHARES_AT_A_TIME", 3 * 36)
    parts = route(gating, value, tokens, router_query=query, router_key=key)
    assert np.array_equal(whole.logits, parts.logits)


def test_logits_are_normalised():
    gating = softmax_gating(4, 1, logit_deviation=2.0)
    routing = route(gating, np.eye(4), np.array([[1.0, 3.0, 1.0, 3.0], [7.0, 7.0, 7.0, 7.0]]))
    assert routing.logits.tolist() == [[-2.0, 2.0, -2.0, 2.0], [0.0] * 4]


def test_each_prototype_chooses_and_weighs_for_itself():
    gating = softmax_gating(4, 2, num_prototypes=2, normalise=Normalise.NONE)
    logits = np.log([[1.0, 3.0, 400.0, 400.0]])
    routing = route(gating, np.eye(4), logits)
    # The first prototype has its choice though the second one's logits are larger; of equals the lowest.
    assert routing.ids.tolist() == [[1, 2]]
    assert routing.weights[0].tolist() == pytest.approx([0.75, 0.5])


def test_an_expert_that_a_table_names_twice_counts_twice():
    model = small_model(gating=GatingSpec(num_experts=4, top_k=2, selection=Selection.HASH, hash_tokens=1))
    weights = dataclasses.replace(random_weights(model, 0), hash_table=np.array([[2, 2]]))
    tokens = random_tokens(model, 1, 0)
    result = layer(model, weights, tokens, token_ids=np.array([0]))
    assert result.combine.tolist() == [[0.0, 0.0, 1.0, 0.0]]
    once = ffn(model.ffn, **vars(weights.expert(2)), x=tokens)
    np.testing.assert_allclose(result.output - result.shared_output, once, rtol=1e-12)


def test_one_of_one():
    routing = route(softmax_gating(1, 1), np.ones((1, 3)), np.ones((2, 3)))
    assert routing.ids.tolist() == [[0], [0]]
    assert routing.weights.tolist() == [[1.0], [1.0]]


def test_all_experts_chosen():
    logits = np.array([[0.0, 2.0, 1.0]])
    routing = route(softmax_gating(3, 3, normalise=Normalise.NONE), np.eye(3), logits)
    assert routing.ids.tolist() == [[1, 2, 0]]
    assert routing.weights.sum() == pytest.approx(1.0, abs=1e-15)


def test_top_two_sum_and_maximum_rank_groups_differently():
    logits = np.array([[4.0, -4.0, 1.0, 1.0]])
    options = {"num_experts": 4, "top_k": 1, "score": Score.SIGMOID, "num_groups": 2, "topk_groups": 1}
    by_sum = route(GatingSpec(**options, group_score=GroupScore.TOP2_SUM), np.eye(4), logits)
    by_max = route(GatingSpec(**options, group_score=GroupScore.MAX), np.eye(4), logits)
    assert (by_sum.ids.item(), by_max.ids.item()) == (2, 0)


def test_selection_bias_chooses_but_does_not_weigh():
    gating = GatingSpec(
        num_experts=2, top_k=1, score=Score.SIGMOID, selection_bias=True, normalise=Normalise.NONE, scale=2.0
    )
    routing = route(gating, np.eye(2), np.zeros((1, 2)), selection_bias=np.array([0.0, 1.0]))
    assert routing.ids.item() == 1
    assert routing.weights.item() == 1.0


@given(gating=gatings(), seed=st.integers(0, 2**32), scale=st.sampled_from((1e-3, 1.0, 30.0, 1e4)))
def test_routing_keeps_its_promises(gating, seed, scale):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((5, gating.num_experts)) * scale
    bias = rng.standard_normal(gating.num_experts) if gating.selection_bias else None
    routing = route(gating, np.eye(gating.num_experts), logits, selection_bias=bias)
    assert routing.ids.shape == routing.weights.shape == (5, gating.top_k)
    assert all(len(set(row)) == gating.top_k for row in routing.ids.tolist())
    if gating.group_mask is GroupMask.MINUS_INFINITY:
        groups = [{e // gating.group_size for e in row} for row in routing.ids.tolist()]
        assert max(map(len, groups)) <= gating.topk_groups
    weight_score = gating.weight_score or gating.score
    assert (routing.weights >= 0).all() or weight_score is Score.NONE
    softmax = weight_score is gating.score is Score.SOFTMAX and not gating.selection_bias
    if softmax and gating.normalise is Normalise.SUM and gating.epsilon <= 1e-6:
        sums = routing.weights.sum(axis=1) / gating.scale
        # The largest softmax score is at least 1 / E, that of the best group a half of it.
        assert (np.abs(sums - 1) < 2e-6 * gating.num_experts + 1e-12).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-20])
def test_sigmoids_that_all_vanish_give_weights_of_zero(epsilon):
    gating = GatingSpec(num_experts=3, top_k=2, score=Score.SIGMOID, epsilon=epsilon)
    logits = np.array([[-1e4, -1e5, -1e4], [-1e4, 0.0, -1e4]])
    routing = route(gating, np.eye(3), logits)
    assert routing.ids.tolist() == [[0, 1], [1, 0]]
    assert routing.weights[0].tolist() == [0.0, 0.0]
    assert routing.weights[1].tolist() == pytest.approx([1.0, 0.0])
    fixed = np.trunc(logits * (1 << FRACTION_BITS)).clip(-FIXED_MAX, FIXED_MAX).astype(np.int64)
    in_bf16 = select(gating, fixed, None)
    assert in_bf16.ids.tolist() == routing.ids.tolist()
    assert bf16_decode(in_bf16.weights).tolist() == routing.weights.tolist()


def test_sigmoid_neither_overflows_nor_warns():
    assert sigmoid(np.array([-1e308, -800.0, 0.0, 800.0, 1e308])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


# Dispatch.


def test_capacity_drops_the_latest():
    ids = np.array([[0, 1], [0, 2], [1, 0], [0, 1]])
    kept = dispatch(ids, 2, [4])
    assert kept.tolist() == [[True, True], [True, True], [True, False], [False, False]]


def test_capacity_counts_per_sequence():
    ids = np.zeros((4, 1), np.int64)
    assert dispatch(ids, 1, [2, 2]).ravel().tolist() == [True, False, True, False]
    assert dispatch(ids, 1, [1, 0, 3]).ravel().tolist() == [True, True, False, False]
    assert dispatch(ids, 1, [4]).ravel().tolist() == [True, False, False, False]


def test_no_capacity_limit_drops_nothing():
    assert dispatch(np.zeros((9, 1), np.int64), 0, [9]).all()


def test_sequence_lengths_must_add_up():
    with pytest.raises(ValueError, match=r"\Asequence_lengths: must add up to 3 tokens, not 4\Z"):
        dispatch(np.zeros((3, 1), np.int64), 1, [2, 2])


def test_capacity_rules_by_hand():
    """Expert 0 has one place, by turns: the first token, the first first choice, the largest weight."""
    ids = np.array([[1, 0], [0, 2], [0, 3]])
    weights = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])

    def first(rule: CapacityRule) -> int:
        kept = dispatch(ids, 1, [3], rule=rule, weights=weights)
        assert kept[ids != 0].all()
        return int(np.flatnonzero((kept & (ids == 0)).any(axis=1))[0])

    assert [first(rule) for rule in CapacityRule] == [0, 1, 2, 2]
    # Of equal priorities the earlier token; without a limit nothing is dropped.
    same = np.full((3, 2), 0.5)
    kept = dispatch(ids, 1, [3], rule=CapacityRule.BATCH_PRIORITY, weights=same)
    assert kept.tolist() == [[True, False], [True, True], [False, True]]
    for rule in CapacityRule:
        assert dispatch(ids, 0, [3], rule=rule, weights=weights).all()


def test_windows_claim_places_one_after_the_other():
    ids = np.array([[1, 0], [2, 0], [0, 1], [0, 2]])
    whole = dispatch(ids, 2, [4], rule=CapacityRule.GSHARD)
    assert (whole & (ids == 0)).any(axis=1).tolist() == [False, False, True, True]
    in_windows = dispatch(ids, 2, [4], rule=CapacityRule.GSHARD, window_tokens=2)
    assert (in_windows & (ids == 0)).any(axis=1).tolist() == [True, True, False, False]
    # Windows start anew with each sequence.
    anew = dispatch(ids, 2, [1, 3], rule=CapacityRule.GSHARD, window_tokens=2)
    assert (anew & (ids == 0)).any(axis=1).tolist() == [True, True, True, False]


def test_priority_needs_weights():
    ids = np.zeros((2, 1), np.int64)
    for weights in (None, np.zeros((2, 2))):
        with pytest.raises(
            ValueError, match=r"\Aweights: must have the shape of ids=\(2, 1\) for the rule batch_priority\Z"
        ):
            dispatch(ids, 1, [2], rule=CapacityRule.BATCH_PRIORITY, weights=weights)


@given(st.data())
def test_dispatch_agrees_with_counting(data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    k, num_experts, capacity = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(4, 6)),
        data.draw(st.integers(1, 4)),
    )
    rule = data.draw(st.sampled_from(CapacityRule))
    window = data.draw(st.sampled_from((None, 1, 2, 4, 16)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ids = np.argsort(rng.random((sum(lengths), num_experts)), axis=1)[:, :k]
    weights = rng.integers(0, 3, ids.shape)  # many are equal
    expected = np.zeros(ids.shape, np.bool_)
    start = 0
    for length in lengths:
        load = [0] * num_experts
        claims = []
        for t in range(length):
            for j in range(k):
                choice = 0 if rule is CapacityRule.SWITCH else j
                priority = max(weights[start + t]) if rule.value.endswith("_priority") else 0
                claims.append((t // (window or 100), choice, -priority, t, j))
        for *_, t, j in sorted(claims):
            expert = ids[start + t, j]
            expected[start + t, j] = load[expert] < capacity
            load[expert] += 1
        start += length
    kept = dispatch(ids, capacity, lengths, rule=rule, weights=weights, window_tokens=window)
    assert kept.tolist() == expected.tolist()


# Experts and combine.


def test_relu_expert_by_hand():
    spec = FfnSpec(d_expert=2, activation=Activation.RELU, bias=True)
    up, down = np.array([[1.0, -1.0], [2.0, 0.0]]), np.array([[1.0, 10.0], [0.0, 1.0]])
    y = ffn(
        spec,
        None,
        up,
        down,
        np.array([[1.0, 3.0]]),
        up_bias=np.array([0.0, 1.0]),
        down_bias=np.array([5.0, 0.0]),
    )
    assert y.tolist() == [[35.0, 3.0]]


def test_clamps_of_swiglu():
    spec = FfnSpec(d_expert=1, activation=Activation.CLAMPED_SWIGLU)
    g, u = np.array([100.0, 7.0, -1e4]), np.array([100.0, -100.0, 0.0])
    saturated = 7.0 / (1.0 + np.exp(-1.702 * 7.0))
    np.testing.assert_allclose(activate(spec, g, u), [8 * saturated, -6 * saturated, 0.0], rtol=1e-15, atol=0)


def test_combine_adds_in_the_stated_order():
    """1e16 absorbs a following 1.0: each order of the three terms gives another sum."""
    ids = np.array([[2, 0]])
    outputs = np.array([[[-1e16], [1.0]]])
    ones, kept = np.ones((1, 2)), np.ones((1, 2), np.bool_)
    shared = np.array([[1e16]])
    assert combine(ids, ones, kept, outputs, shared).item() == 0.0
    assert combine(ids[:, ::-1], ones, kept, outputs, shared).item() == 1.0
    assert shared.item() == 1e16


def test_combine_ignores_dropped_assignments():
    ids, weights = np.array([[0, 2]]), np.array([[0.25, 0.75]])
    kept = np.array([[True, False]])
    assert combine(ids, weights, kept, np.ones((1, 2, 1))).item() == 0.25
    assert combine_matrix(ids, weights, kept, 3).tolist() == [[0.25, 0.0, 0.0]]


def test_experts_without_tokens_and_all_tokens_to_one_expert():
    model = small_model()
    weights = random_weights(model, 3)
    bias = np.array([0, 0, 60, 0], np.float32)
    result = layer(
        dataclasses.replace(model, gating=dataclasses.replace(model.gating, logit_bias=True, top_k=1)),
        dataclasses.replace(weights, logit_bias=bias),
        random_tokens(model, 6, 3),
    )
    assert set(result.ids.ravel()) == {2}
    assert np.flatnonzero(result.combine.any(axis=0)).tolist() == [2]


# Random weights.


def small_model(**changes) -> ModelSpec:
    model = ModelSpec(
        name="small", d_model=16, gating=softmax_gating(4, 2), ffn=FfnSpec(d_expert=8), d_shared=8
    )
    return dataclasses.replace(model, **changes)


def full_model() -> ModelSpec:
    """A model with every weight but the hash table."""
    return small_model(
        gating=GatingSpec(
            num_experts=4,
            top_k=2,
            router=Router.ATTENTION,
            score=Score.SIGMOID,
            selection_bias=True,
            logit_bias=True,
        ),
        ffn=FfnSpec(d_expert=8, bias=True),
        d_latent=12,
        latent_bias=True,
        shared_bias=True,
        shared_expert_gate=True,
        output_bias=True,
    )


def test_random_weights_are_deterministic_and_bf16():
    model = full_model()
    first, again, other = random_weights(model, 7), random_weights(model, 7), random_weights(model, 8)
    shapes = weight_shapes(model)
    assert set(shapes) == set(WEIGHT_NAMES) - {"hash_table", "router_hidden", "second_up"}
    for name, shape in shapes.items():
        array = getattr(first, name)
        assert array.shape == shape
        assert np.array_equal(array, array.astype(ml_dtypes.bfloat16).astype(np.float32))
        assert np.array_equal(array, getattr(again, name))
        assert not np.array_equal(array, getattr(other, name))
    tokens = random_tokens(model, 5, 7)
    assert np.array_equal(tokens, tokens.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(tokens, random_tokens(model, 5, 7))


def test_a_subset_of_experts_agrees_with_the_full_set():
    model = full_model()
    full, some = random_weights(model, 1), random_weights(model, 1, experts=[3, 1])
    some.check(model, num_experts=2)
    for name in weight_shapes(model):
        expected = getattr(full, name)
        assert np.array_equal(getattr(some, name), expected[[3, 1]] if name in PER_EXPERT else expected)
    assert some.held == (3, 1)
    some.check(model)
    for number in (1, 3):
        assert some.holds(number)
        for name, array in vars(full.expert(number)).items():
            assert np.array_equal(array, getattr(some.expert(number), name)), name
    assert not some.holds(0)
    with pytest.raises(ValueError, match="not in tuple"):
        some.expert(0)


def test_a_subset_costs_only_its_own_memory():
    model = load_model("deepseek-v3").scaled(8)
    tracemalloc.start()
    random_weights(model, 0, experts=[200])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One of 256 experts; all of them take 700 MB.
    assert peak < 64e6


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "gpt-oss-20b", "mixtral-8x7b", "qwen3-30b-a3b", "switch-base-128"]
)
def test_random_layers_have_sane_scales(name):
    model = load_model(name).scaled(32)
    weights = random_weights(model, 0)
    weights.check(model)
    result = layer(model, weights, random_tokens(model, 64, 0))
    assert 0.8 < result.logits.std() < 1.4
    assert 0.02 < result.output.std() < 4
    assert len(np.unique(result.ids)) > model.gating.num_experts // 3


def test_bad_seeds_and_experts():
    with pytest.raises(ValueError, match=r"\Aseed: must be in 0\.\.9223372036854775807, not -1\Z"):
        random_weights(small_model(), -1)
    with pytest.raises(ValueError, match=r"\Aexperts: must be in 0\.\.3, not 4\Z"):
        random_weights(small_model(), 0, experts=[4])
    with pytest.raises(ValueError, match=r"\Atokens: must be in 1\.\.16777216, not 0\Z"):
        random_tokens(small_model(), 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": np.zeros((4, 16))}, r"router: must be float32, not float64"),
        ({"router": [[0.0]]}, r"router: must be an array, not list"),
        (
            {"up": np.full((4, 8, 16), np.inf, np.float32)},
            r"up: must be finite, but element \(0, 0, 0\) is inf",
        ),
    ],
)
def test_weights_refuse_what_is_not_finite_float32(changes, message):
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        dataclasses.replace(random_weights(small_model(), 0), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": np.zeros((3, 16), np.float32)}, r"router: must have shape \(4, 16\), not \(3, 16\)"),
        ({"gate": None}, r"gate: is missing in model small"),
        ({"logit_bias": np.zeros(4, np.float32)}, r"logit_bias: must be absent in model small"),
    ],
)
def test_layer_refuses_weights_of_another_model(changes, message):
    model = small_model()
    weights = dataclasses.replace(random_weights(model, 0), **changes)
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        layer(model, weights, random_tokens(model, 1, 0))
