"""The models of the zoo: names, sizes, sources.

Batch for each device: 64, AlexNet 256, as in the paper, for all that the paper measures and for models of the
same kind. Transformers count tokens: 8 sequences of 512 or 1,024 tokens keep a device's matrix units busy,
and in single precision with Adam fit into 16 GB (GPT-2, BERT-large) or 80 GB (GPT-2 medium). GPT-2 large and
XL and the Llama-style model take fewer, because weights, gradients and optimizer state leave less room; those
of llama-7b (16 bytes a parameter, 108 GB) fit on no single device, so data parallelism alone cannot train it.
DLRM does little work for a sample: 2,048, as in the MLPerf reference.
"""

from dataclasses import dataclass
from typing import TypeAlias

Option: TypeAlias = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """A model of the zoo.

    Attributes:
        name: What users call it.
        description: One line: layers, inputs, whose model it is.
        family: ``convolutional``, ``recurrent``, ``transformer``, ``recommendation`` or ``mixture``.
        batch_per_device: Samples for each device where the user names no batch size.
        num_parameters: Trainable parameters with default options; tied ones count once.
        source: Where that number is published, or what it is the sum of.
        optimizer: What such models are usually trained with, as `soaprl.cost.optimizers` names it.
        factory: ``module:function``, called as ``function(batch_size, **options)``.
        options: Name and default of everything that can be varied.
    """

    name: str
    description: str
    family: str
    batch_per_device: int
    num_parameters: int
    source: str
    optimizer: str
    factory: str
    options: dict[str, Option]


_GPT2_OPTIONS: dict[str, Option] = {
    "num_layers": 12,
    "width": 768,
    "num_heads": 12,
    "vocabulary": 50_257,
    "sequence": 1024,
    "dropout": 0.1,
}


def _gpt2(
    name: str, num_layers: int, width: int, num_heads: int, num_parameters: int, batch_per_device: int
) -> ZooModel:
    return ZooModel(
        name=name,
        description=f"GPT-2: {num_layers} decoder layers of width {width}, 1024 tokens",
        family="transformer",
        batch_per_device=batch_per_device,
        num_parameters=num_parameters,
        source="released checkpoint, tied output layer",
        optimizer="adam",
        factory="soaprl.graph.zoo.gpt2:gpt2",
        options={**_GPT2_OPTIONS, "num_layers": num_layers, "width": width, "num_heads": num_heads},
    )


def _language_model(name: str, description: str, steps: int, chunk: int) -> ZooModel:
    return ZooModel(
        name=name,
        description=description,
        family="recurrent",
        batch_per_device=64,
        num_parameters=108_111_632,
        source="none published; embedding 20,480,000 + 2 x 33,570,816 + softmax 20,490,000",
        optimizer="momentum",
        factory="soaprl.graph.zoo.rnn:rnnlm",
        options={"vocabulary": 10_000, "hidden": 2048, "num_layers": 2, "steps": steps, "chunk": chunk},
    )


_CONVOLUTIONAL = (
    ZooModel(
        name="lenet",
        description="LeNet-5: 2 convolutions, 3 linear layers, 32 x 32 grey images",
        family="convolutional",
        batch_per_device=64,
        num_parameters=61_706,
        source="156 + 2,416 + 48,120 + 10,164 + 850, the usual fully connected LeNet-5",
        optimizer="momentum",
        factory="soaprl.graph.zoo.lenet:lenet",
        options={"num_classes": 10},
    ),
    ZooModel(
        name="alexnet",
        description="AlexNet in one tower: 5 convolutions, 3 linear layers, 224 x 224 images",
        family="convolutional",
        batch_per_device=256,
        num_parameters=61_100_840,
        source="torchvision, alexnet",
        optimizer="momentum",
        factory="soaprl.graph.zoo.alexnet:alexnet",
        options={"num_classes": 1000, "width": 64, "linear_width": 4096, "dropout": 0.5},
    ),
    ZooModel(
        name="vgg-16",
        description="VGG-16: 13 convolutions, 3 linear layers, 224 x 224 images",
        family="convolutional",
        batch_per_device=64,
        num_parameters=138_357_544,
        source="torchvision, vgg16",
        optimizer="momentum",
        factory="soaprl.graph.zoo.vgg:vgg_16",
        options={
            "num_classes": 1000,
            "width": 64,
            "linear_width": 4096,
            "image_size": 224,
            "dropout": 0.5,
        },
    ),
    ZooModel(
        name="inception-v3",
        description="Inception-v3: 94 convolutions in parallel branches, 299 x 299 images",
        family="convolutional",
        batch_per_device=64,
        num_parameters=23_834_568,
        source="torchvision, inception_v3 without the auxiliary classifier (27,161,264 with it)",
        optimizer="momentum",
        factory="soaprl.graph.zoo.inception:inception_v3",
        options={"num_classes": 1000, "width": 32, "image_size": 299, "dropout": 0.5},
    ),
    ZooModel(
        name="resnet-101",
        description="ResNet-101: 33 bottleneck blocks, 224 x 224 images",
        family="convolutional",
        batch_per_device=64,
        num_parameters=44_549_160,
        source="torchvision, resnet101",
        optimizer="momentum",
        factory="soaprl.graph.zoo.resnet:resnet_101",
        options={"num_classes": 1000, "width": 64, "image_size": 224, "num_stages": 4},
    ),
)

_RECURRENT = (
    ZooModel(
        name="rnntc",
        description="text classifier: 4 LSTM layers of 1024, 40 steps",
        family="recurrent",
        batch_per_device=64,
        num_parameters=54_069_250,
        # The paper leaves the vocabulary open; Movie Reviews has 18,765 words (Kim 2014, table 1).
        source="none published; embedding 20,480,000 + 4 x 8,396,800 + classifier 2,050",
        optimizer="momentum",
        factory="soaprl.graph.zoo.rnn:rnntc",
        options={
            "vocabulary": 20_000,
            "hidden": 1024,
            "num_layers": 4,
            "num_classes": 2,
            "steps": 40,
            "chunk": 10,
        },
    ),
    _language_model("rnnlm", "language model: 2 LSTM layers of 2048, 40 steps", 40, 10),
    _language_model("rnnlm-2step", "the language model unrolled for 2 steps, for exact optima", 2, 1),
    ZooModel(
        name="nmt",
        description="translation: 2 encoder and 2 decoder LSTM layers of 1024, attention, 40 steps",
        family="recurrent",
        batch_per_device=64,
        num_parameters=135_068_928,
        source="none published; embeddings 65,536,000 + 4 x 8,396,800 + attention 3,145,728"
        " + softmax 32,800,000",
        optimizer="momentum",
        factory="soaprl.graph.zoo.nmt:nmt",
        options={"vocabulary": 32_000, "hidden": 1024, "num_layers": 2, "steps": 40, "chunk": 10},
    ),
)

_TRANSFORMERS = (
    ZooModel(
        name="bert-large",
        description="BERT-large: 24 encoder layers of width 1024, 512 tokens, masked words",
        family="transformer",
        batch_per_device=8,
        num_parameters=335_174_458,
        source="released checkpoint (335,141,888) less pooler 1,049,600, plus masked-word head 1,082,170",
        optimizer="adam",
        factory="soaprl.graph.zoo.bert:bert",
        options={
            "num_layers": 24,
            "width": 1024,
            "num_heads": 16,
            "vocabulary": 30_522,
            "sequence": 512,
            "dropout": 0.1,
        },
    ),
    _gpt2("gpt2", 12, 768, 12, 124_439_808, 8),
    _gpt2("gpt2-medium", 24, 1024, 16, 354_823_168, 8),
    _gpt2("gpt2-large", 36, 1280, 20, 774_030_080, 4),
    _gpt2("gpt2-xl", 48, 1600, 25, 1_557_611_200, 2),
    ZooModel(
        name="llama-7b",
        description="Llama-style: 32 decoder layers of width 4096, 2048 tokens",
        family="transformer",
        batch_per_device=1,
        num_parameters=6_738_415_616,
        source="released checkpoint of the first Llama, 7B",
        optimizer="adam",
        factory="soaprl.graph.zoo.llama:llama",
        options={
            "num_layers": 32,
            "width": 4096,
            "num_heads": 32,
            "hidden": 11_008,
            "vocabulary": 32_000,
            "sequence": 2048,
        },
    ),
    ZooModel(
        name="vit-b-16",
        description="ViT-B/16: 12 encoder layers of width 768, 224 x 224 images",
        family="transformer",
        batch_per_device=64,
        num_parameters=86_567_656,
        source="torchvision, vit_b_16",
        optimizer="adam",
        factory="soaprl.graph.zoo.vit:vit",
        options={
            "num_layers": 12,
            "width": 768,
            "num_heads": 12,
            "patch": 16,
            "image_size": 224,
            "num_classes": 1000,
            "dropout": 0.1,
        },
    ),
)

_OTHERS = (
    ZooModel(
        name="dlrm",
        description="DLRM: 26 embedding tables of Criteo Kaggle's sizes, dot products, perceptrons",
        family="recommendation",
        batch_per_device=2048,
        num_parameters=540_677_217,
        source="about 540 million reported for Criteo Kaggle; 33,762,577 rows x 16 + 475,985",
        optimizer="momentum",
        factory="soaprl.graph.zoo.dlrm:dlrm",
        options={"width": 16, "max_rows": 10_131_227},
    ),
    ZooModel(
        name="moe",
        description="mixture of experts: 4 decoder layers with 8 experts, the best 2 for each token",
        family="mixture",
        batch_per_device=8,
        num_parameters=104_449_024,
        source="none published; 4 layers x 17,854,464 + embedding, output and final norm 33,031,168",
        optimizer="adam",
        factory="soaprl.graph.zoo.moe:moe",
        options={
            "num_layers": 4,
            "width": 512,
            "num_heads": 8,
            "num_experts": 8,
            "num_chosen": 2,
            "vocabulary": 32_000,
            "sequence": 512,
            "dropout": 0.1,
        },
    ),
)

CATALOGUE = (*_CONVOLUTIONAL, *_RECURRENT, *_TRANSFORMERS, *_OTHERS)
