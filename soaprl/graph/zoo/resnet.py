"""ResNet-101 (He, Zhang, Ren, Sun 2015, table 1), with the stride in the 3 x 3 convolution of a block."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError

# Table 1, 101-layer: blocks in each stage.
_NUM_BLOCKS = (3, 4, 23, 3)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution around a shortcut, which is a projection where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(channels, outputs, 1, stride=stride, bias=False))
            self.shortcut.add_module("norm", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, 4 * width, height / stride, width / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        return functional.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A strided convolution and pooling, four stages of bottleneck blocks, one linear layer."""

    def __init__(self, *, num_classes: int, width: int, num_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.Sequential()
        channels = width
        for stage, num in enumerate(num_blocks):
            for block in range(num):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 2}_block{block + 1}"
                self.stages.add_module(name, Bottleneck(channels, width << stage, stride))
                channels = _EXPANSION * (width << stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 3, size, size) and `labels` of shape (batch,)."""
        x = self.pool1(functional.relu(self.norm1(self.conv1(images))))
        x = self.pool(self.stages(x)).flatten(1)
        return functional.cross_entropy(self.linear(x), labels)


def resnet_101(
    batch_size: int,
    *,
    num_classes: int = 1000,
    width: int = 64,
    image_size: int = 224,
    num_stages: int = 4,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ResNet-101, images of shape (batch, 3, image_size, image_size) and labels of shape (batch,).

    `num_stages` below 4 leaves the last stages out.
    """
    if num_stages > len(_NUM_BLOCKS):
        raise CaptureError(f"expected 1 to {len(_NUM_BLOCKS)} stages, found {num_stages}: change num_stages")
    model = ResNet(num_classes=num_classes, width=width, num_blocks=_NUM_BLOCKS[:num_stages])
    images = torch.randn(batch_size, 3, image_size, image_size)
    return model, (images, torch.randint(num_classes, (batch_size,)))
