"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) for 32 x 32 grey images."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet(nn.Module):
    """Two convolutions with average pooling, three linear layers.

    As in most later descriptions, the second convolution sees all maps of the first (originally only some),
    and a linear layer scores the classes (originally distances to prototypes).
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5)
        self.pool1 = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.pool2 = nn.AvgPool2d(2)
        self.linear1 = nn.Linear(16 * 5 * 5, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 1, 32, 32) and `labels` of shape (batch,)."""
        x = self.pool1(torch.tanh(self.conv1(images)))
        x = self.pool2(torch.tanh(self.conv2(x))).flatten(1)
        x = torch.tanh(self.linear2(torch.tanh(self.linear1(x))))
        return functional.cross_entropy(self.linear3(x), labels)


def lenet(batch_size: int, *, num_classes: int = 10) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """LeNet-5, images of shape (batch, 1, 32, 32) and labels of shape (batch,)."""
    images = torch.randn(batch_size, 1, 32, 32)
    return LeNet(num_classes=num_classes), (images, torch.randint(num_classes, (batch_size,)))
