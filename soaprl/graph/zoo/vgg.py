"""VGG-16 (Simonyan and Zisserman 2014, configuration D)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError

# Table 1, column D: convolutions in each stage, and their maps as multiples of the first stage's.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions that each end in a max pooling, then three linear layers."""

    def __init__(
        self, *, num_classes: int, width: int, linear_width: int, image_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        channels = 3
        for stage, (num_convolutions, multiple) in enumerate(_STAGES, start=1):
            for index in range(1, num_convolutions + 1):
                self.stages.add_module(
                    f"conv{stage}_{index}", nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1)
                )
                self.stages.add_module(f"relu{stage}_{index}", nn.ReLU())
                channels = multiple * width
            self.stages.add_module(f"pool{stage}", nn.MaxPool2d(2))
        side = image_size // 2 ** len(_STAGES)
        self.linear6 = nn.Linear(channels * side * side, linear_width)
        self.dropout6 = nn.Dropout(dropout)
        self.linear7 = nn.Linear(linear_width, linear_width)
        self.dropout7 = nn.Dropout(dropout)
        self.linear8 = nn.Linear(linear_width, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 3, size, size) and `labels` of shape (batch,)."""
        x = self.stages(images).flatten(1)
        x = self.dropout6(functional.relu(self.linear6(x)))
        x = self.dropout7(functional.relu(self.linear7(x)))
        return functional.cross_entropy(self.linear8(x), labels)


def vgg_16(
    batch_size: int,
    *,
    num_classes: int = 1000,
    width: int = 64,
    linear_width: int = 4096,
    image_size: int = 224,
    dropout: float = 0.5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """VGG-16, images of shape (batch, 3, image_size, image_size) and labels of shape (batch,)."""
    if image_size < 32:
        raise CaptureError(
            f"expected an image size of at least 32, found {image_size}: five poolings halve it each"
        )
    model = VGG(
        num_classes=num_classes,
        width=width,
        linear_width=linear_width,
        image_size=image_size,
        dropout=dropout,
    )
    images = torch.randn(batch_size, 3, image_size, image_size)
    return model, (images, torch.randint(num_classes, (batch_size,)))
