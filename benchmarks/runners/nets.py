"""The networks in plain torch, as a user of any framework writes them."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.spec import CLASSES, SHAPES, WIDTHS


class Dense(nn.Module):
    """Two hidden layers with ReLU: McMahan's 2NN at width 200."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(inputs, width)
        self.layer2 = nn.Linear(width, width)
        self.output = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(x).relu()
        return self.output(self.layer2(x).relu())


class Convolutional(nn.Module):
    """McMahan's CNN: two 5 x 5 convolutions with pooling, 512 units; 1,663,370 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(64 * 7 * 7, 512)
        self.output = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu())
        return self.output(self.dense(x.flatten(1)).relu())


def build(model: str) -> nn.Module:
    """Return the network of a spec."""
    return Convolutional() if model == "cnn" else Dense(SHAPES[model][0], WIDTHS[model])
