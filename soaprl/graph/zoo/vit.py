"""Vision transformer ViT-B/16 (Dosovitskiy et al. 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError
from soaprl.graph.zoo.transformer import FeedForward, PreNormBlock, initialize


class VisionTransformer(nn.Module):
    """Cuts an image into patches, runs a transformer over them, classifies what the class token became."""

    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        patch: int,
        image_size: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise CaptureError(
                f"expected an image size that is a multiple of the patch size, "
                f"found {image_size} and {patch}: change one of them"
            )
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty((image_size // patch) ** 2 + 1, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(
                PreNormBlock(
                    width,
                    num_heads,
                    FeedForward(width, 4 * width),
                    causal=False,
                    dropout=dropout,
                    epsilon=1e-6,
                )
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self.apply(initialize)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 3, size, size) and `labels` of shape (batch,)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (batch, patches, width)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        x = torch.cat((class_token, patches), dim=1) + self.position  # (batch, 1 + patches, width)
        x = self.norm(self.layers(self.dropout(x)))
        return functional.cross_entropy(self.head(x[:, 0]), labels)


def vit(
    batch_size: int,
    *,
    num_layers: int = 12,
    width: int = 768,
    num_heads: int = 12,
    patch: int = 16,
    image_size: int = 224,
    num_classes: int = 1000,
    dropout: float = 0.1,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A vision transformer, images of shape (batch, 3, image_size, image_size), labels of shape (batch,)."""
    model = VisionTransformer(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        patch=patch,
        image_size=image_size,
        num_classes=num_classes,
        dropout=dropout,
    )
    images = torch.randn(batch_size, 3, image_size, image_size)
    return model, (images, torch.randint(num_classes, (batch_size,)))
