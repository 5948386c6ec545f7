"""How useful synthetic images are: classifiers trained on them, tested on real ones.

Three classifiers of different strength are trained on synthetic images alone: a logistic
regression, a multilayer perceptron and a small convolutional network. Every one is scored on real
images once, at the end. What there is to choose, a checkpoint or a learning rate, is chosen on a
part of the synthetic images that trains nothing; without such a part the last step is taken. So a
score is not an optimum over many looks at real images.

Mean and best of the three are told together. The best one is a choice made on private records, and
named so; ``picked`` is the score of the classifier that the synthetic images would choose.

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
    picked: float | None = None  # Of the one that a synthetic validation part chose, if any did.

    @property
    def mean(self) -> float:
        """Returns the mean of the three, the one figure to compare methods by."""
        return (self.logistic + self.mlp + self.cnn) / 3

    @property
    def best(self) -> float:
        """Returns the best of the three: chosen by a score on private records, so it flatters."""
        return max(self.logistic, self.mlp, self.cnn)

    def to_json(self) -> dict[str, float]:
        """Returns the three scores, their mean and their best, and the picked one if there is."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {**found, "mean": self.mean, "best": self.best}

    @classmethod
    def from_json(cls, content: Mapping[str, float]) -> Self:
        """Reads ``to_json``."""
        return cls(
            logistic=content["logistic"],
            mlp=content["mlp"],
            cnn=content["cnn"],
            picked=content.get("picked"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """What one classifier says of the real images, and how it does on synthetic ones."""

    classes: Int64Array  # [N]
    validation: float | None  # Accuracy on the synthetic part that trains nothing.


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
    answers = _train(synthetic_images, synthetic_labels, test, num_classes, seed, config, device)
    scores = {name: _accuracy(one.classes, test.labels) for name, one in answers.items()}
    marks = {name: one.validation for name, one in answers.items() if one.validation is not None}
    picked = max(marks, key=lambda name: marks[name]) if marks else None
    return ClassifierScores(**scores, picked=None if picked is None else scores[picked])


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
    answers = _train(synthetic_images, synthetic_labels, test, num_classes, seed, config, device)
    return answers["logistic"].classes, answers["mlp"].classes, answers["cnn"].classes


def fit_network(
    images: UInt8Array,
    labels: Int64Array,
    num_classes: int,
    seed: int,
    config: ClassifierConfig,
    device: str = "cpu",
) -> nn.Sequential:
    """Returns the convolutional network trained on uint8 [N, C, H, W] and int64 [N], all of them.

    It classifies what it is shown: samples by real classes, or anything by public ones.
    """
    built = _built(SmallConvNet, seed, images.shape[1], images.shape[2], num_classes)
    network = built.to(device)
    targets = torch.from_numpy(labels.astype(np.int64))
    _fit(network, (to_unit(images), targets), None, seed, config, config.learning_rate)
    assert isinstance(network, nn.Sequential)
    return network.eval()


def predict(network: nn.Module, images: UInt8Array) -> Int64Array:
    """uint8 [N, C, H, W] -> predicted class int64 [N]."""
    return _predict(network, to_unit(images))


def _train(
    images: UInt8Array,
    labels: Int64Array,
    test: PrivateImages,
    num_classes: int,
    seed: int,
    config: ClassifierConfig,
    device: str,
) -> dict[str, _Answers]:
    """Trains all three, and asks each of them about the real images, once."""
    _check(images, labels, test, num_classes)
    inputs, targets = to_unit(images), torch.from_numpy(labels.astype(np.int64))
    held: tuple[Tensor, Tensor] | None = None
    if config.validation_share:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        count = max(1, round(config.validation_share * len(inputs)))
        held = inputs[order[:count]], targets[order[:count]]
        inputs, targets = inputs[order[count:]], targets[order[count:]]
    test_inputs = to_unit(test.images)
    channels, side = images.shape[1], images.shape[2]

    def answers(build: type[nn.Module], *sizes: int) -> _Answers:
        found: tuple[float, nn.Module] | None = None
        for rate in (config.learning_rate, *config.more_rates):
            network = _built(build, seed, channels, side, num_classes, *sizes).to(device)
            mark = _fit(network, (inputs, targets), held, seed, config, rate)
            if found is None or mark > found[0]:
                found = mark, network
        assert found is not None
        return _Answers(
            classes=_predict(found[1], test_inputs), validation=found[0] if held else None
        )

    return {
        "logistic": _logistic(inputs, targets, held, test_inputs, config),
        "mlp": answers(Perceptron, config.hidden_width),
        "cnn": answers(SmallConvNet),
    }


def _built(build: type[nn.Module], seed: int, *sizes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # Module constructors draw from the global one.
        torch.manual_seed(seed)
        network = build(*sizes)
    # Twice as fast on a CPU; torch's stubs do not know the argument.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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
    network: nn.Module,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None,
    seed: int,
    config: ClassifierConfig,
    rate: float,
) -> float:
    """Takes exactly ``config.steps`` Adam steps on batches drawn with replacement.

    Returns the highest accuracy on ``validation`` at a checkpoint, and leaves the network as it was
    then: the last time, of several. Without one it stays as the last step left it.
    """
    inputs, targets = training
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / config.steps))
    draw = torch.Generator().manual_seed(seed)
    looks = {config.steps * look // config.checkpoints for look in range(1, config.checkpoints + 1)}
    best, kept = 0.0, {}
    network.train()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)  # Dropout has no generator of its own.
        for step in range(1, config.steps + 1):
            rows = torch.randint(len(inputs), (config.batch_size,), generator=draw)
            logits = network(inputs[rows].to(device))
            loss = F.cross_entropy(
                logits, targets[rows].to(device), label_smoothing=config.label_smoothing
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if validation is not None and step in looks:
                mark = _accuracy(_predict(network, validation[0]), validation[1].numpy())
                network.train()
                if mark >= best:
                    best = mark
                    kept = {name: value.clone() for name, value in network.state_dict().items()}
    if kept:
        network.load_state_dict(kept)
    return best


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
    inputs: Tensor,
    labels: Tensor,
    held: tuple[Tensor, Tensor] | None,
    test_inputs: Tensor,
    config: ClassifierConfig,
) -> _Answers:
    """Has a logistic regression on raw pixels answer; there is nothing to choose about it."""
    model = LogisticRegression(max_iter=config.logistic_iterations)
    with warnings.catch_warnings():  # Stopping after a fixed number of iterations is meant.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs.flatten(1).numpy(), labels.numpy())
    mark = None
    if held is not None:
        mark = _accuracy(model.predict(held[0].flatten(1).numpy()), held[1].numpy())
    return _Answers(classes=model.predict(test_inputs.flatten(1).numpy()), validation=mark)


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
