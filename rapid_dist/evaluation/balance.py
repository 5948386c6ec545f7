"""Whether samples are of the classes that were asked for, by a classifier of real images.

The classifier, the judge, is trained on the private training records and errs itself: its accuracy
on held-out records stands beside what it says. All of it is internal (P13).
"""

from dataclasses import asdict, dataclass

import numpy as np

from rapid_dist.data.images import Int64Array, PrivateImages, UInt8Array
from rapid_dist.evaluation.classifiers import fit_network, predict
from rapid_dist.evaluation.settings import ClassifierConfig


@dataclass(frozen=True, kw_only=True)
class ClassBalance:
    """The classes that a judge sees in samples, against those that were asked for."""

    total_variation: float  # Between the two shares of classes, in [0, 1]; 0 is best.
    agreement: float  # Share of samples in which the judge sees the class that was asked for.
    judge_accuracy: float  # Of the judge itself on held-out records.

    def to_json(self) -> dict[str, float]:
        """Returns every figure by name."""
        return asdict(self)


class Judge:
    """A convolutional network trained on real images alone."""

    def __init__(
        self,
        train: PrivateImages,
        held_out: PrivateImages,
        config: ClassifierConfig,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self._num_classes = train.spec.num_classes
        self._network = fit_network(
            train.images, train.labels, self._num_classes, seed, config, device
        )
        seen = predict(self._network, held_out.images)
        self._accuracy = float(np.mean(seen == held_out.labels))

    def look(self, images: UInt8Array, labels: Int64Array) -> ClassBalance:
        """Says of images uint8 [N, C, S, S] what it sees beside the labels int64 [N] asked for."""
        seen = predict(self._network, images)
        return ClassBalance(
            total_variation=total_variation(labels, seen, self._num_classes),
            agreement=float(np.mean(seen == labels)),
            judge_accuracy=self._accuracy,
        )


def total_variation(asked: Int64Array, seen: Int64Array, num_classes: int) -> float:
    """Returns half the sum of differences between two shares of classes, of int64 [N] and [M]."""
    shares = [np.bincount(one, minlength=num_classes) / len(one) for one in (asked, seen)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
