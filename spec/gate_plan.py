"""What the gate makes of a gating: which number ranks the experts, what of it the weights need.

Golden in the hardware's formats, RTL and cycle model ask the same questions of :class:`GatePlan`, and build
or compute what the answers need, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from spec.model import GatingSpec, GroupMask, GroupScore, Normalise, Score

EPSILON_BITS = 30
"""Fraction bits of an epsilon, as of the scores."""


@dataclass(frozen=True)
class GatePlan:
    """The steps of a gating in hardware.

    A softmax is monotone: without a bias, or sums of two, its logits rank experts and groups as it would, and
    a softmax is made of the chosen ones alone. Its shares are above zero, so that then a losing group's
    score of 0 is no better than none.

    ``gives_scores``: the chosen experts' scores are given beside their weights, a softmax's as shares.
    """

    gating: GatingSpec
    gives_scores: bool = False

    @property
    def weight_score(self) -> Score:
        """The score that becomes the weight."""
        return self.gating.weight_score or self.gating.score

    @property
    def ranked_by_logit(self) -> bool:
        """Whether logits rank the experts."""
        gating = self.gating
        if gating.score is Score.SOFTMAX:
            by_sum = gating.grouped and gating.group_score is GroupScore.TOP2_SUM
            return not (gating.selection_bias or by_sum)
        return gating.score is Score.NONE and not gating.selection_bias

    @property
    def shares_first(self) -> bool:
        """Whether all shares of a softmax are there before the selection."""
        return self.gating.score is Score.SOFTMAX and not self.ranked_by_logit

    @property
    def masks_to_zero(self) -> bool:
        """Whether losers stay in the choice, with a selection score of 0."""
        gating = self.gating
        softmax_logits = gating.score is Score.SOFTMAX and self.ranked_by_logit
        return gating.grouped and gating.group_mask is GroupMask.ZERO and not softmax_logits

    @property
    def carries_score(self) -> bool:
        """Whether the score that ranked an expert, before its bias, is the one of its weight."""
        kept = self.weight_score is self.gating.score and not self.ranked_by_logit
        return kept and not self.signed

    @property
    def key_is_logit(self) -> bool:
        """Whether a chosen expert's logit is its selection score."""
        return self.ranked_by_logit and not self.masks_to_zero

    @property
    def carries_logit(self) -> bool:
        """Whether a candidate's logit goes along for its weight."""
        return not (self.carries_score or self.key_is_logit)

    @property
    def exponentials(self) -> bool:
        """Whether the weights come from exponentials of the chosen logits."""
        return self.weight_score is Score.SOFTMAX and not self.carries_score

    @property
    def first_is_largest(self) -> bool:
        """Whether a token's first choice has its largest logit."""
        gating = self.gating
        return self.key_is_logit and not (gating.grouped and gating.group_score is GroupScore.TOP2_SUM)

    @property
    def shares_of_chosen(self) -> bool:
        """Whether the chosen exponentials become shares before they are normalised: an epsilon sees them.

        Without one, shares and exponentials give the same weights. Scores that are given are shares.
        """
        normalised = self.gating.normalise is not Normalise.NONE
        return self.exponentials and (self.gives_scores or (normalised and self.has_epsilon))

    @property
    def totals_softmax(self) -> bool:
        """Whether the weights need the sum of all exponentials."""
        return self.exponentials and (self.gating.normalise is Normalise.NONE or self.shares_of_chosen)

    @property
    def seeks_largest(self) -> bool:
        """Whether a token's largest logit is looked for beside the choice."""
        return self.exponentials and not self.first_is_largest

    @property
    def needs_all_logits(self) -> bool:
        """Whether the weights need logits that are not chosen."""
        return self.totals_softmax or self.seeks_largest

    @property
    def has_epsilon(self) -> bool:
        """Whether an epsilon is more than half of a score's last place."""
        return self.gating.epsilon > 2.0 ** -(EPSILON_BITS + 1)

    @property
    def signed(self) -> bool:
        """Whether weights may be negative: they are logits."""
        return self.weight_score is Score.NONE

    @property
    def normalises_by_sum(self) -> bool:
        """Whether the chosen scores are divided by their sum; a norm of order 1 is one of magnitudes."""
        gating = self.gating
        return gating.normalise is Normalise.SUM or (
            gating.normalise is Normalise.P_NORM and gating.norm_order == 1.0
        )

    @property
    def normalises_by_norm(self) -> bool:
        """Whether the chosen scores are divided by a norm of another order than 1."""
        return self.gating.normalise is Normalise.P_NORM and self.gating.norm_order != 1.0
