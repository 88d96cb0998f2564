"""Boxes of tensors to and from `torch.distributed.checkpoint`.

A checkpoint is a set of tensors by key, each in disjoint boxes that some rank wrote; what reads it asks for
boxes of its own, which need not be those that were written. Bytes are tensors of uint8.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from soaprl.errors import ExecutionError
from soaprl.runtime.program import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A box of a tensor of a checkpoint.

    Attributes:
        key: Which tensor.
        size: Shape of the whole tensor.
        box: Which elements.
        content: What is written, or where to read to; shape: that of the box.
    """

    key: str
    size: tuple[int, ...]
    box: Box
    content: Tensor


def whole_shard(key: str, content: Tensor) -> Shard:
    """All of a tensor."""
    size = tuple(content.shape)
    return Shard(key=key, size=size, box=tuple((0, extent) for extent in size), content=content)


def packed(content: Any) -> Tensor:
    """Plain values and tensors in dicts, lists and tuples, as a tensor of uint8.

    Raises:
        ExecutionError: They hold something else, which only unpickling with its code could restore.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    stream.seek(0)
    try:
        torch.load(stream, weights_only=True)
    except Exception as error:
        raise ExecutionError(
            "the state of an optimizer or schedule holds objects that a checkpoint cannot:"
            f" {str(error).splitlines()[0]}; keep it to numbers, strings, tensors, lists and dicts"
        ) from error
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def unpacked(content: Tensor) -> Any:
    """What `packed` made a tensor of; executes nothing."""
    return torch.load(io.BytesIO(bytes(content.tolist())), weights_only=True)


def write_shards(
    folder: Path, shards: Sequence[Shard], *, group: ProcessGroup | None, distributed: bool
) -> None:
    """Writes the shards of all ranks of `group` to `folder`, which must be empty; all of them call this.

    Raises:
        ExecutionError: Something cannot be written.
    """
    writer = FileSystemWriter(folder, sync_files=True)
    planner = _SaveShards(shards)
    try:
        with _alone():
            save({}, storage_writer=writer, planner=planner, process_group=group, no_dist=not distributed)
    except (CheckpointException, OSError) as error:
        raise ExecutionError(f"cannot write the checkpoint to {folder}: {_cause(error)}") from error


def read_shards(folder: Path, wanted: Iterable[Shard]) -> None:
    """Reads into the content of the shards; needs no other rank.

    A tensor that was saved in another shape with as many elements (the dimensions of another capture) is read
    as a whole first.

    Raises:
        ExecutionError: The checkpoint lacks one of them, or is damaged.
    """
    sizes = stored_sizes(folder)
    direct: list[Shard] = []
    reshaped: list[tuple[Shard, Tensor]] = []
    for shard in wanted:
        if shard.key not in sizes:
            raise ExecutionError(f"checkpoint {folder}: expected {shard.key!r}, which is missing")
        size = sizes[shard.key]
        if size == shard.size:
            direct.append(shard)
            continue
        whole = torch.empty(size, dtype=shard.content.dtype)
        if whole.numel() != torch.Size(shard.size).numel():
            raise ExecutionError(
                f"checkpoint {folder}: expected {shard.key!r} of shape {shard.size}, found {size}: use the"
                " model and options that were trained"
            )
        reshaped.append((shard, whole))
    planner = _LoadShards([*direct, *(whole_shard(s.key, whole) for s, whole in reshaped)])
    try:
        with _alone():
            load({}, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    except (CheckpointException, OSError) as error:
        raise ExecutionError(f"cannot read checkpoint {folder}: {_cause(error)}") from error
    for shard, whole in reshaped:
        index = tuple(slice(start, stop) for start, stop in shard.box)
        shard.content.copy_(whole.reshape(shard.size)[index])


@contextmanager
def _alone() -> Iterator[None]:
    """PyTorch warns of checkpoints of a single process, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def stored_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor in a checkpoint, by key.

    Raises:
        ExecutionError: It cannot be read.
    """
    return {key: tuple(found.size) for key, found in _stored(folder).items()}


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The type of every tensor in a checkpoint, by key."""
    return {key: found.properties.dtype for key, found in _stored(folder).items()}


def stored_files(folder: Path) -> set[str]:
    """The names of all files that hold a checkpoint's tensors."""
    found = FileSystemReader(folder).read_metadata().storage_data
    return {info.relative_path for info in found.values()}


def _stored(folder: Path) -> Mapping[str, TensorStorageMetadata]:
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except Exception as error:
        raise ExecutionError(f"cannot read checkpoint {folder}: {error}") from error
    found = metadata.state_dict_metadata
    return {key: kind for key, kind in found.items() if isinstance(kind, TensorStorageMetadata)}


def _cause(error: BaseException) -> str:
    """A failure of any rank in one line."""
    if isinstance(error, CheckpointException):
        rank, (first, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(first).__name__}: {first}"
    return str(error)


def _chunk(shard: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(
        offsets=torch.Size([start for start, _ in shard.box]),
        sizes=torch.Size([stop - start for start, stop in shard.box]),
    )


class _SaveShards(DefaultSavePlanner):
    """Writes the given shards; that they are disjoint and complete is checked by PyTorch's planner."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = {(s.key, _chunk(s).offsets): s for s in shards}

    def create_local_plan(self) -> SavePlan:
        """One item for each shard."""
        self.plan = SavePlan([self._item(shard) for shard in self._shards.values()])
        return self.plan

    def _item(self, shard: Shard) -> WriteItem:
        chunk = _chunk(shard)
        return WriteItem(
            index=MetadataIndex(shard.key, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=chunk,
                properties=TensorProperties(dtype=shard.content.dtype),
                size=torch.Size(shard.size),
            ),
        )

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The content of one item."""
        assert index.offset is not None, "shards are written by offset"
        return self._shards[index.fqn, index.offset].content.detach()


class _LoadShards(LoadPlanner):
    """Reads into the given shards."""

    def __init__(self, wanted: Sequence[Shard]) -> None:
        self._by_key: dict[str, list[Shard]] = {}
        for shard in wanted:
            self._by_key.setdefault(shard.key, []).append(shard)
        self._metadata: Metadata | None = None

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keeps what the checkpoint holds."""
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """What to read of each stored box."""
        assert self._metadata is not None, "the planner is set up first"
        items: list[ReadItem] = []
        for key, shards in self._by_key.items():
            stored = self._metadata.state_dict_metadata[key]
            assert isinstance(stored, TensorStorageMetadata), f"{key} is a tensor"
            # One at a time, so that the index of an item says whose it is.
            for number, shard in enumerate(shards):
                found = create_read_items_for_chunk_list(key, stored, [_chunk(shard)])
                items += [replace(i, dest_index=replace(i.dest_index, index=number)) for i in found]
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """The local plans."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """The local plan."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never called: all is tensors."""
        raise AssertionError(f"{read_item.dest_index.fqn} is no tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where an item is read to."""
        index = read_item.dest_index.index
        assert index is not None, "items are numbered"
        target = self._by_key[read_item.dest_index.fqn][index].content.detach()
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dim, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: content is read in place."""


__all__ = [
    "Shard",
    "packed",
    "read_shards",
    "stored_dtypes",
    "stored_files",
    "stored_sizes",
    "unpacked",
    "whole_shard",
    "write_shards",
]
