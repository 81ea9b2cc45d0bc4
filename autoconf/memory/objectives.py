"""The moments of a micro-batch by its objective: the loss of supervised fine-tuning, of TRL or of LLaMA-Factory.

TRL 1.9.0 runs the model on chosen and rejected samples together, and again, without gradients, as the reference model.
Decoder layers hold what they hold for any loss. The losses hold copies of logits, of which a table gives the bytes;
docs/reference/stacks.md says how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Objective, Stack
from autoconf.memory.profile import HeadWay, Point, Trainable
from autoconf.memory.sharding import BytesPerParameter, Strategy
from autoconf.memory.units import Floats

_CASTS = 1e6  # constant bytes of a moment from which on they are a copy of the head, or its gradient


class LossBytes(NamedTuple):
    """Bytes that a loss holds for each logit of a micro-batch.

    Attributes:
        own: During the reference model's forward pass; 0 if there is none.
        over: The most in the code that wraps the model.
        turn: Between the forward and the backward pass.
        backward: The most in the backward pass of the loss.
    """

    own: float
    over: float
    turn: float
    backward: float


# By whose losses they are, objective and bytes of a logit. trl v1.9.0, trl/trainer/utils.py, selective_log_softmax:
# bfloat16 logits keep their log-softmax, float32 ones themselves; entropy_from_logits copies the logits, since they
# are a slice.
_LOSSES: dict[tuple[str, Objective, int], LossBytes] = {
    ("trl", "dpo", 2): LossBytes(own=4, over=8, turn=2, backward=5),  # trl/trainer/dpo_trainer.py, _compute_loss
    ("trl", "dpo", 4): LossBytes(own=4, over=12, turn=4, backward=12),
    ("trl", "dpo_precomputed", 2): LossBytes(own=0, over=6, turn=2, backward=5),
    ("trl", "dpo_precomputed", 4): LossBytes(own=0, over=8, turn=4, backward=12),
    ("trl", "orpo", 2): LossBytes(own=0, over=5, turn=3, backward=6),  # trl/experimental/orpo/orpo_trainer.py
    ("trl", "orpo", 4): LossBytes(own=0, over=8, turn=6, backward=14),
    ("trl", "kto", 2): LossBytes(own=4, over=10, turn=2, backward=8),  # trl/trainer/kto_trainer.py, _compute_loss
    ("trl", "kto", 4): LossBytes(own=4, over=16, turn=4, backward=16),
    # trl/trainer/grpo_trainer.py, _get_per_token_logps_and_entropies, with beta 0
    ("trl", "grpo", 2): LossBytes(own=0, over=7, turn=2, backward=8),
    ("trl", "grpo", 4): LossBytes(own=0, over=9, turn=4, backward=16),
    # LLaMA-Factory v0.9.5, src/llamafactory/train/dpo/trainer.py, concatenated_forward: float32 logits, returned, and
    # trainer_utils.py, get_batch_logps: the log-softmax of a copy of them.
    ("llama-factory", "dpo", 4): LossBytes(own=8, over=20, turn=4, backward=12),
    ("llama-factory", "orpo", 4): LossBytes(own=0, over=12, turn=4, backward=12),
    # src/llamafactory/train/kto/trainer.py, concatenated_forward, for the model and for the reference model: copies of
    # chosen and rejected logits stay, and so do logits while those of other completions are made for the KL term.
    ("llama-factory", "kto", 4): LossBytes(own=12, over=24, turn=4, backward=12),
}
_WITH_ENTROPY = {("trl", objective) for objective in ("dpo", "dpo_precomputed", "kto", "grpo")}
OF_PAIRS = ("reward", "dpo", "dpo_precomputed", "orpo")  # the model runs on both samples of a pair
REFERRING = ("dpo", "kto")


@dataclass(frozen=True)
class Setup:
    """What the moments depend on besides those of layers and head.

    Attributes:
        objective: The objective.
        losses: Whose code computes the loss.
        vocabulary: Logits of a token.
        hidden: Elements of a hidden state.
        computing: Bytes of a logit as the head computes it.
        logit: Bytes of a logit as the loss gets it.
        reference: Bytes of the parameters of a reference model, which sharding divides like those of the model.
        gathered: Bytes of it that every GPU holds during its forward pass.
        whole: Bytes of it that every GPU holds always.
        head: Parameters of the head that the objective replaces by one score.
    """

    objective: Objective
    losses: str = "trl"
    vocabulary: int = 0
    hidden: int = 0
    computing: int = 2
    logit: int = 2
    reference: float = 0.0
    gathered: float = 0.0
    whole: int = 0
    head: int = 0

    @property
    def scores_beside_words(self) -> bool:
        """Whether a reward model keeps its head for words, whose logits are made and not used.

        LLaMA-Factory v0.9.5, src/llamafactory/train/rm/workflow.py; trl v0.24.0, trl/models/modeling_value_head.py.
        """
        return self.objective == "reward" and self.losses == "llama-factory"

    @property
    def produced(self) -> int:
        """Bytes for each logit while logits are made; under autocast accelerate copies them to float32."""
        return self.logit + (self.computing if self.logit != self.computing else 0)

    @property
    def entropy(self) -> int:
        """Bytes of the entropy of the logits of 128 tokens: their log-softmax, its exponential, and their product.

        trl v1.9.0, trl/trainer/utils.py, entropy_from_logits.
        """
        return 3 * 128 * self.vocabulary * self.logit * ((self.losses, self.objective) in _WITH_ENTROPY)

    def of_units(self, trainable: Trainable) -> Trainable:
        """The parameters of a job with this objective."""
        if not self.whole and not self.head:
            return trainable
        units = replace(trainable.units, buffer_bytes=trainable.units.buffer_bytes + self.whole)
        if not self.head:
            return trainable._replace(units=units)
        trains = units.frozen == 0
        frozen, trained = (0, self.head) if trains else (self.head, 0)
        units = replace(
            units, frozen=units.frozen - frozen, root_frozen=units.root_frozen - frozen,
            trainable=units.trainable - trained, root_trainable=units.root_trainable - trained,
        )  # fmt: skip
        replaced = (self.vocabulary, self.hidden)
        shapes = tuple((s, n) for s, n in trainable.shapes if s.embedding or s.dimensions != replaced)
        return Trainable(units, shapes if trains else trainable.shapes)


def setup_of(
    stack: Stack, method: str, full: Trainable | None, head: HeadWay, per: BytesPerParameter, strategy: Strategy
) -> Setup:
    """What the moments of a job depend on besides those of layers and head.

    Args:
        stack: The training stack.
        method: ``full``, ``lora`` or ``qlora``.
        full: All parameters of the model; only ``sft`` does not need them.
        head: The settings of its head.
        per: Bytes of parameters.
        strategy: How GPUs share the job.
    """
    if stack.objective == "sft" or full is None:
        return Setup(stack.objective)
    embedding = next(shape for shape, _ in full.shapes if shape.embedding)
    vocabulary, hidden = embedding.dimensions
    mixed = head.mixed_precision != "no"
    computing = 4 if head.torch_dtype == "float32" and not mixed else 2
    setup = Setup(
        stack.objective, stack.losses, vocabulary, hidden, computing,
        # accelerate/accelerator.py, prepare_model, where native_amp: convert_outputs_to_fp32.
        logit=4 if mixed or stack.losses == "llama-factory" else computing,
    )  # fmt: skip
    if stack.objective == "reward":
        # transformers/modeling_layers.py, GenericForSequenceClassification: one score instead of a head of its own.
        untied = any(s.dimensions == embedding.dimensions and not s.embedding for s, _ in full.shapes)
        return replace(setup, head=embedding.elements if untied and not setup.scores_beside_words else 0)
    if stack.objective not in REFERRING or method != "full":
        return setup  # adapters are disabled instead (trl/trainer/dpo_trainer.py, ref_model)
    parameters, root = full.units.trainable, full.units.root_trainable
    frozen = per.frozen_computing if strategy.startswith("zero") else per.frozen
    # llamafactory/train/dpo/trainer.py and kto/trainer.py: FSDP2 has layers of the reference model as units, too.
    in_units = strategy == "fsdp1" or (strategy == "fsdp2" and stack.losses == "llama-factory")
    return replace(
        setup,
        reference=parameters * frozen,
        # trl/models/utils.py, prepare_fsdp: FSDP2 gathers the reference model as one unit, into a buffer and out of it.
        gathered=2 * parameters * per.frozen_computing if strategy == "fsdp2" and not in_units else 0.0,
        # torch/distributed/fsdp/_runtime_utils.py, _post_forward_reshard: FSDP's root waits for a backward pass.
        whole=root * per.frozen_computing if in_units else 0,
    )


def with_gradient_of_forward(heads: Floats) -> Floats:
    """Moments of a head with the gradient that its loss makes in the forward pass, if it does.

    liger_kernel/ops/fused_linear_cross_entropy.py makes the head's gradient with the logits. The trace has it among
    gradients, so moments before the backward pass lack it, and so do those in which it is not yet accumulated.
    """
    loss = heads[:, 0] == Point.LOSS
    made = float((heads[loss, 5] - heads[loss, 6]).min(initial=np.inf))
    if not 0 < made < np.inf:
        return heads
    found = heads.copy()
    found[~loss, 1] += made
    found[loss, 6] = np.maximum(found[loss, 6], made)
    return found


def joined(setup: Setup, layers: Floats, others: Sequence[Floats], heads: Floats) -> Floats:
    """All moments of a micro-batch, with the columns of ``StackMoment``; tokens are those of a sample of the data.

    Args:
        setup: What they depend on besides.
        layers: Moments of the layers, and the tensors that they keep meanwhile.
        others: Moments of layers with checkpoints, during which these ``layers`` keep their tensors; none if
            ``layers`` has checkpoints.
        heads: Moments of the head, of all logits unless the objective is ``sft``.
    """
    kept, over = (layers[layers[:, 0] == point][0] for point in (Point.KEPT, Point.KEPT_OVER))
    of_layers = np.concatenate([some[some[:, 0] < Point.KEPT] for some in (layers, *others)])
    if setup.objective == "sft":
        heads = heads.copy()
        forward = heads[:, 0] == Point.HEAD
        heads[forward, 1:5] += kept[1:5]
        heads[~forward, 1:5] += over[1:5]
        return np.concatenate([of_layers, heads])
    if setup.objective == "reward":
        found = np.concatenate([_without_gradient_of(setup, of_layers), _score(setup, heads, kept, over)])
    else:
        found = np.concatenate([of_layers, _loss(setup, heads, kept, over)])
        if setup.objective in REFERRING:
            found = np.concatenate([found, _reference(setup, others[0] if others else layers, over, heads)])
    if setup.objective in OF_PAIRS:
        found[:, [2, 4]] *= 2
    return found


def _around(setup: Setup, heads: Floats) -> float:
    """Bytes for each token that the head holds besides logits: those of the final norm, and of soft caps."""
    turn = heads[heads[:, 0] == Point.TURN][:, 2].max()
    return float(max(turn - 4 * setup.vocabulary, 0.0) + 2 * setup.computing * setup.hidden)


def _row(point: Point, base: Floats, constant: float, per_token: float) -> Floats:
    row = base.copy()
    row[0] = point
    row[1:3] += constant, per_token
    return row


def _loss(setup: Setup, heads: Floats, kept: Floats, over: Floats) -> Floats:
    """The moments of head and loss. The backward pass of the head is that of any loss over logits."""
    bytes_, around = _LOSSES[setup.losses, setup.objective, setup.logit], _around(setup, heads)
    constant = heads[heads[:, 0] == Point.HEAD][:, 1].max()  # a copy of the head in the dtype of computation
    rows = [
        _row(point, base, constant + more, each * setup.vocabulary + around)
        for point, base, each, more in (
            (Point.HEAD, kept, setup.produced, 0),
            (Point.HEAD_OVER, over, bytes_.over, setup.entropy),
            (Point.TURN, over, bytes_.turn, 0),
            (Point.LOSS, over, bytes_.backward, 0),
        )
    ]
    backward = heads[(heads[:, 0] == Point.LOSS) & ((heads[:, 5] > 0) | (heads[:, 1] > _CASTS))].copy()
    most = bytes_.backward * setup.vocabulary + 2 * around
    backward = backward[backward[:, 2] <= most]  # without those in which another loss copies logits
    backward[:, 1:5] += over[1:5]
    return np.concatenate([np.array(rows), backward])


def _reference(setup: Setup, layers: Floats, over: Floats, heads: Floats) -> Floats:
    """The reference model's forward pass, while the model waits for its backward pass."""
    own, around = _LOSSES[setup.losses, setup.objective, setup.logit].own * setup.vocabulary, _around(setup, heads)
    kept = layers[layers[:, 0] == Point.KEPT][0]
    forward = layers[np.isin(layers[:, 0], [Point.GATHER, Point.FORWARD])].copy()
    forward[:, 1:5] += over[1:5] - kept[1:5]  # what runs without gradients keeps nothing
    forward[:, 1] += setup.gathered
    forward[:, 2] += own + around
    constant = heads[heads[:, 0] == Point.HEAD][:, 1].max() + setup.gathered
    end = _row(Point.HEAD_OVER, over, constant, own + setup.produced * setup.vocabulary + 2 * around)
    return np.concatenate([forward, end[None]])


def _score(setup: Setup, heads: Floats, kept: Floats, over: Floats) -> Floats:
    """The moments of a head that gives one score for each token, whose loss holds next to nothing."""
    held = 8 * setup.computing * setup.hidden
    points = ((Point.HEAD, kept), (Point.HEAD_OVER, over), (Point.TURN, over), (Point.LOSS, over))
    rows = [_row(point, base, 0.0, held) for point, base in points]
    if setup.scores_beside_words:
        constant = heads[heads[:, 0] == Point.HEAD][:, 1].max()  # a copy of the head in the dtype of computation
        rows.append(_row(Point.HEAD, kept, constant, setup.produced * setup.vocabulary + held))
    return np.array(rows)


def _without_gradient_of(setup: Setup, layers: Floats) -> Floats:
    """Moments without the gradient of a head that is not there."""
    found = layers.copy()
    found[:, 8] = np.maximum(found[:, 8] - setup.head * setup.computing, 0.0)
    return found
