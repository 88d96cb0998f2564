"""A DenseNet: every layer reads the concatenation of all earlier ones of its block."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return self.conv2(functional.relu(self.norm2(y)))


class DenseBlock(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


class DenseNet(nn.Module):
    def __init__(self, num_classes: int = 10, growth: int = 12, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        channels = 24
        self.block1 = DenseBlock([DenseLayer(channels + i * growth, growth) for i in range(layers)])
        channels += layers * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )
        channels //= 2
        self.block2 = DenseBlock([DenseLayer(channels + i * growth, growth) for i in range(layers)])
        channels += layers * growth
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(images))))
        x = functional.relu(self.norm(x)).mean(dim=(2, 3))
        return functional.cross_entropy(self.classifier(x), labels, label_smoothing=0.1)


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return DenseNet(), (torch.randn(batch_size, 3, 16, 16), torch.randint(10, (batch_size,)))
