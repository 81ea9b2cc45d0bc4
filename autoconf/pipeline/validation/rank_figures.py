"""Memory of one GPU of a traced job, as a function of tokens and GPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankFigures:
    """Memory of one GPU of a job under one stack.

    At each moment it is ``constant + per_token * tokens + sharded / gpus`` bytes. Moments are triples of these
    coefficients. They include everything except the states of the optimizer.

    >>> figures = RankFigures(moments=((0, 8, 200),), end=(0, 0, 150), states=100, step=50, shards_states=True)
    >>> figures.peak_bytes(tokens=10, gpus=2)
    230.0
    """

    moments: tuple[tuple[float, float, float], ...]  # moments of forward and backward passes
    end: tuple[float, float, float]  # end of the backward pass, where the optimizer steps
    states: float  # states of the optimizer, summed over all GPUs
    step: float  # its temporaries, likewise
    shards_states: bool  # False: every GPU has all states

    def peak_bytes(self, tokens: float, gpus: int) -> float:
        """Peak bytes of a GPU.

        Args:
            tokens: tokens per GPU and micro-batch.
            gpus: number of GPUs, >= 1; 1 only for figures that were traced on one GPU.
        """
        return self._peak(tokens, gpus)[0]

    def activation_bytes(self, tokens: float, gpus: int) -> float:
        """The part of the peak that grows with the tokens.

        >>> RankFigures(((0, 8, 200),), (0, 0, 150), 100, 50, True).activation_bytes(tokens=10, gpus=2)
        80
        """
        return self._peak(tokens, gpus)[1]

    def _peak(self, tokens: float, gpus: int) -> tuple[float, float]:
        share = 1 / gpus if self.shards_states else 1.0
        steps = [0.0] * len(self.moments) + [self.step * share]
        return max(
            (self.states * share + constant + per_token * tokens + sharded / gpus + step, per_token * tokens)
            for (constant, per_token, sharded), step in zip((*self.moments, self.end), steps, strict=True)
        )
