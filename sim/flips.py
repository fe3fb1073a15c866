"""Bits flipped in words of banks that hold check bits: where, and what the hardware then has to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.secded import CHECK_BITS, DATA_BITS
from spec.errors import require
from spec.registers import ECC_COUNTERS

Ints = NDArray[np.int64]
WORD_BYTES = DATA_BITS // 8
WORD_BITS = DATA_BITS + CHECK_BITS


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Bits flipped in the banks: in as many words of data with their check bits, one bit or two.

    Attributes
    ----------
    single, double : words with one bit flipped, with two.
    corrected, uncorrected : how often these words are read.
    """

    single: int = 0
    double: int = 0
    corrected: int = 0
    uncorrected: int = 0

    def miscounted(self, block: str, corrected: int | None, uncorrected: int | None) -> str:
        """Return how what was counted is not how often the words are read, or nothing."""
        for name, seen, expected in (
            ("corrected", corrected, self.corrected),
            ("uncorrected", uncorrected, self.uncorrected),
        ):
            if seen != expected:
                return f"{block}: {name} {seen} words, of those planted {expected} are read"
        return ""


NO_FLIPS = Flips()


def secded_of(planted: Flips, counts: Sequence[int]) -> dict[str, int]:
    """Return ``secded`` of a report: words planted, and what was counted (corrected, uncorrected)."""
    return {
        "planted": planted.single,
        "planted_double": planted.double,
        **dict(zip(ECC_COUNTERS, counts, strict=True)),
    }


def flip_problems(planted: Flips, counts: Sequence[int], mismatches: int | None) -> list[str]:
    """Return what is wrong with a run whose words have flipped bits: wrong counts, words not corrected."""
    corrected, uncorrected = counts
    miscounted = planted.miscounted("pim", corrected, uncorrected)
    problems = [miscounted] if miscounted else []
    if uncorrected:
        problems.append(
            f"pim: {uncorrected} words read with two flipped bits; {mismatches} bits differ from golden"
        )
    return problems


@dataclass(frozen=True)
class FlippedWords:
    """Words of several images in which bits are flipped, the first ``single`` one bit, the others two.

    Attributes
    ----------
    image, burst : (words,) which image a word lies in, and its burst's number there.
    """

    image: Ints
    burst: Ints
    single: int

    def read(self, reads: Sequence[Ints]) -> Flips:
        """Return what is counted if each image's bursts are read so often: (bursts,) of each."""
        times = np.zeros(len(self.burst), dtype=np.int64)
        for number, of_image in enumerate(reads):
            here = self.image == number
            times[here] = of_image[self.burst[here]]
        return Flips(
            single=self.single,
            double=len(times) - self.single,
            corrected=int(times[: self.single].sum()),
            uncorrected=int(times[self.single :].sum()),
        )


def flip_words(
    images: Sequence[NDArray[np.uint8]],
    read: Sequence[Ints],
    *,
    units: int,
    single: int,
    double: int,
    seed: int,
) -> FlippedWords:
    """Flip bits of words, in place: one in ``single`` words, two in ``double`` others.

    A bit is any of a word's 72, data or check.

    Parameters
    ----------
    images : each (bursts, bytes) uint8, a burst of every unit after the other, its check bits behind it.
    read : of each image the numbers of the bursts that are read; words of others stay.

    Raises :class:`spec.errors.InputError` if there are fewer words.
    """
    rng = np.random.default_rng(seed)
    stored = images[0].shape[1] // units
    per_unit = stored // (WORD_BYTES + 1)
    burst = np.concatenate([np.asarray(some, dtype=np.int64) for some in read])
    image = np.repeat(np.arange(len(read)), [len(some) for some in read])
    most = len(burst) * units * per_unit
    both = " with --double-flips" if single and double else ""
    require(
        single + double <= most,
        f"must be at most {most}, the words read,{both} not {single + double}",
        key="flips" if single else "double_flips",
    )
    chosen = rng.choice(most, single + double, replace=False)
    where, word = chosen // (units * per_unit), chosen % (units * per_unit)
    first = rng.integers(0, WORD_BITS, len(chosen))
    other = (first + rng.integers(1, WORD_BITS, len(chosen))) % WORD_BITS
    image, burst = image[where], burst[where]
    unit, in_unit = word // per_unit, word % per_unit
    for number, content in enumerate(images):
        lines = content.reshape(len(content), units, stored)
        here = image == number
        second = here & (np.arange(len(here)) >= single)
        for bits, some in ((first, here), (other, second)):
            # A unit's check bytes, one for each word, lie behind its words.
            data = in_unit * WORD_BYTES + bits // 8
            byte = np.where(bits < DATA_BITS, data, per_unit * WORD_BYTES + in_unit)
            place = (burst[some], unit[some], byte[some])
            # (A word has its bits flipped once each, and no other word shares its bytes.)
            lines[place] ^= (1 << bits[some] % 8).astype(np.uint8)
    return FlippedWords(image, burst, single)
