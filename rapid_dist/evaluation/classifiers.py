"""How useful synthetic images are: classifiers trained on them, tested on real ones.

Three classifiers of different strength are trained on synthetic images alone: a logistic
regression, a multilayer perceptron and a small convolutional network. Every one takes a fixed
number of steps and is scored once, after the last; nothing is ever chosen by a score on real
images, so a score is not an optimum over many looks. The three are reported together: the best
alone would flatter, and would be a choice made on private records.

The scores are counted on private records: they are internal results and stay on this side of
the trust boundary (P13).

Letters: N images, C channels, H = W side.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from rapid_dist.data.images import Int64Array, PrivateImages, UInt8Array, to_unit
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.settings import ClassifierConfig

LARGEST_FULL_SIDE = 32  # Wider images are convolved with stride 2 first: the same cost as at 32.


@dataclass(frozen=True, kw_only=True)
class ClassifierScores:
    """Accuracy on held-out real images of each classifier, in [0, 1]."""

    logistic: float
    mlp: float
    cnn: float

    @property
    def mean(self) -> float:
        """Returns the mean of the three, the one figure to compare methods by."""
        return (self.logistic + self.mlp + self.cnn) / 3

    def to_json(self) -> dict[str, float]:
        """Returns the three scores and their mean."""
        return {**asdict(self), "mean": self.mean}

    @classmethod
    def from_json(cls, content: Mapping[str, float]) -> Self:
        """Reads ``to_json``."""
        return cls(logistic=content["logistic"], mlp=content["mlp"], cnn=content["cnn"])


def train_and_score(
    synthetic_images: UInt8Array,
    synthetic_labels: Int64Array,
    test: PrivateImages,
    num_classes: int,
    seed: int,
    config: ClassifierConfig,
    device: str = "cpu",
) -> ClassifierScores:
    """Trains the three classifiers on synthetic images and scores each on real ones.

    Args:
      synthetic_images: uint8 [N, C, H, W].
      synthetic_labels: int64 [N], in 0..num_classes-1.
      seed: decides every initial weight and batch; the same seed gives the same scores.
      device: where the two networks are trained.
    """
    logistic, mlp, cnn = train_and_predict(
        synthetic_images, synthetic_labels, test, num_classes, seed, config, device
    )
    return ClassifierScores(
        logistic=_accuracy(logistic, test.labels),
        mlp=_accuracy(mlp, test.labels),
        cnn=_accuracy(cnn, test.labels),
    )


def train_and_predict(
    synthetic_images: UInt8Array,
    synthetic_labels: Int64Array,
    test: PrivateImages,
    num_classes: int,
    seed: int,
    config: ClassifierConfig,
    device: str = "cpu",
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Returns what each classifier says of the real images, int64 [N] each; as ``train_and_score``.

    Guarantees: what is said of one real image depends on that image and the synthetic ones alone.
    """
    _check(synthetic_images, synthetic_labels, test, num_classes)
    inputs = to_unit(synthetic_images)
    targets = torch.from_numpy(synthetic_labels.astype(np.int64))
    test_inputs = to_unit(test.images)
    channels, side = synthetic_images.shape[1], synthetic_images.shape[2]

    def predicted(build: type[nn.Module], *sizes: int) -> Int64Array:
        with torch.random.fork_rng(devices=[]):  # Module constructors draw from the global one.
            torch.manual_seed(seed)
            network = build(channels, side, num_classes, *sizes)
        # Twice as fast on a CPU; torch's stubs do not know the argument.
        network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _fit(network, inputs, targets, seed, config)
        return _predict(network, test_inputs)

    return (
        _logistic(inputs, synthetic_labels, test_inputs, config),
        predicted(Perceptron, config.hidden_width),
        predicted(SmallConvNet),
    )


class Perceptron(nn.Sequential):
    """Two hidden layers on raw pixels."""

    def __init__(self, channels: int, side: int, num_classes: int, width: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * side * side, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, num_classes),
        )


class SmallConvNet(nn.Sequential):
    """Two convolutions and two dense layers, after LeNet; for sides of 8 to 64 pixels.

    Pooling stands before the ReLU: they commute, and pooling first leaves less to rectify.
    """

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        stride = 2 if side > LARGEST_FULL_SIDE else 1
        last_side = -(-side // stride) // 4
        super().__init__(
            nn.Conv2d(channels, 32, 3, stride=stride, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * last_side * last_side, 128),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(128, num_classes),
        )


def _fit(
    network: nn.Module, inputs: Tensor, targets: Tensor, seed: int, config: ClassifierConfig
) -> None:
    """Takes exactly ``config.steps`` Adam steps on batches drawn with replacement."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / config.steps))
    draw = torch.Generator().manual_seed(seed)
    network.train()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)  # Dropout has no generator of its own.
        for _ in range(config.steps):
            rows = torch.randint(len(inputs), (config.batch_size,), generator=draw)
            logits = network(inputs[rows].to(device))
            loss = F.cross_entropy(
                logits, targets[rows].to(device), label_smoothing=config.label_smoothing
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()


def _rate(progress: float) -> float:
    """Returns the share of the highest learning rate at a point of training in [0, 1)."""
    return min(progress / 0.1, (1 - progress) / 0.9)


@torch.no_grad()
def _predict(network: nn.Module, inputs: Tensor) -> Int64Array:
    """float32 [N, C, H, W] -> predicted class int64 [N]."""
    device = next(network.parameters()).device
    network.eval()
    parts = [network(part.to(device)).argmax(1).cpu() for part in torch.split(inputs, 1_000)]
    return torch.cat(parts).numpy()


def _logistic(
    inputs: Tensor, labels: Int64Array, test_inputs: Tensor, config: ClassifierConfig
) -> Int64Array:
    """Returns the classes int64 [N] that a logistic regression on raw pixels predicts."""
    model = LogisticRegression(max_iter=config.logistic_iterations)
    with warnings.catch_warnings():  # Stopping after a fixed number of iterations is meant.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs.flatten(1).numpy(), labels)
    predicted: Int64Array = model.predict(test_inputs.flatten(1).numpy())
    return predicted


def _accuracy(predicted: Int64Array, labels: Int64Array) -> float:
    return float(np.mean(predicted == labels))


def _check(images: UInt8Array, labels: Int64Array, test: PrivateImages, num_classes: int) -> None:
    if num_classes < 2:
        raise ConfigError(
            f"Classifiers need at least 2 classes, got num_classes={num_classes}. "
            "Evaluate images without labels by fidelity alone."
        )
    if images.shape[1:] != test.images.shape[1:]:
        raise ConfigError(
            f"Synthetic images are {images.shape[1:]} but the real ones {test.images.shape[1:]} "
            "(channels, height, width). Evaluate both at one size."
        )
    if len(images) != len(labels):
        raise ConfigError(f"Got {len(images)} synthetic images but {len(labels)} labels.")
    present = np.unique(labels)
    if len(present) < 2 or present[0] < 0 or present[-1] >= num_classes:
        raise ConfigError(
            f"Synthetic labels must cover at least 2 of the classes 0..{num_classes - 1}, got "
            f"{present.tolist()}. Generate images of every class."
        )
