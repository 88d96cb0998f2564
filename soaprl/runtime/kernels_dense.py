"""Kernels of layers with parameters, and of attention: biases counted once, local numbers of groups."""

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor

from soaprl.runtime.calls import Kernel, LocalCall, Results
from soaprl.runtime.random_bits import keep_mask
from soaprl.runtime.shards import LocalDim


def biased_once(call: LocalCall) -> Results:
    """linear, bilinear: the bias belongs to the first part along the reduction."""
    return call.run() if call.lead else call.run(bias=None)


def added_once(call: LocalCall) -> Results:
    """For addmm and its kin: the first argument belongs to the first part along the reduction."""
    if call.lead:
        return call.run()
    return call.run(self=torch.zeros_like(call["self"]))


# On the first part along the reduction these only call the library.
PLAIN_WHERE_LEAD = (biased_once, added_once)


def embedding(call: LocalCall) -> Results:
    """Rows of the local vocabulary; zeros for the ids of other parts."""
    weight, ids, rows = call["weight"], call["indices"], call.dims["weight"][0]
    if rows.whole:
        return call.run()
    check_rows(ids, rows.extent)
    padding = call["padding_idx"]
    local, here = local_rows(ids, rows)
    found = F.embedding(local, weight) if rows.size else weight.new_zeros(*ids.shape, weight.shape[1])
    counts = here if padding < 0 else here & (ids != padding)
    # The padding row is read, but no gradient flows to it.
    return torch.where(counts[..., None], found, torch.where(here[..., None], found.detach(), 0.0))


def check_rows(ids: Tensor, extent: int, *, ignored: int | None = None) -> None:
    """Refuses ids of no row, as the whole operator does; each part would take them for another's.

    Args:
        ids: Numbers of rows.
        extent: How many rows all parts have together.
        ignored: A number that may stand for none.

    Raises:
        IndexError: There is such an id.
    """
    wrong = (ids < 0) | (ids >= extent)
    if ignored is not None:
        wrong &= ids != ignored
    if ids.device.type != "cpu":
        # Without waiting for the device, as the library does it there.
        torch._assert_async(~wrong.any())
    elif wrong.any():
        raise IndexError(f"expected numbers from 0 to {extent - 1}, found {ids[wrong][0].item()}")


def local_rows(ids: Tensor, rows: LocalDim) -> tuple[Tensor, Tensor]:
    """Each id as a local row number (any number, where the part has no such row), and whether it has."""
    held = rows.indices().to(ids.device)
    if not len(held):
        return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    local = torch.searchsorted(held, ids.contiguous()).clamp(max=len(held) - 1)
    return local, held[local] == ids


def embedding_bag(call: LocalCall) -> Results:
    """The bags of the part, each a run of ids that ends where the next one starts.

    Rows of other parts count as 0, and a mean divides by the whole bag. Only the first result is computed for
    a part; the others are bookkeeping of the whole call's own backward pass, and zero.
    """
    if call.whole:
        return call.run()
    num_bags, (ids, offsets) = call.results[0][0].size, (call["indices"], call["offsets"])
    ends = offsets if len(offsets) > num_bags else torch.cat([offsets, offsets.new_full((1,), len(ids))])
    first, last = ends[0].item(), ends[-1].item()
    weights = call["per_sample_weights"]
    weights = None if weights is None else weights[first:last]
    ids, ends = ids[first:last], ends - ends[0]
    if call.dims["weight"][0].whole:
        found = call.run(
            indices=ids, offsets=ends[:-1], per_sample_weights=weights, include_last_offset=False
        )
        assert not isinstance(found, Tensor), "embedding_bag has several results"
        out = found[0]
    else:
        out = _bag_sums(call, ids, ends, weights)
    return (out, *(ids.new_zeros([d.size for d in dims]) for dims in call.results[1:]))


def _bag_sums(call: LocalCall, ids: Tensor, ends: Tensor, weights: Tensor | None) -> Tensor:
    table, mode = call.local("weight"), call["mode"]
    assert mode in (0, 1), "a maximum over a bag is not split along the vocabulary"
    check_rows(ids, call.dims["weight"][0].extent)
    num_bags = len(ends) - 1
    local, here = local_rows(ids, call.dims["weight"][0])
    counted = torch.ones_like(here) if call.get("padding_idx") is None else ids != call["padding_idx"]
    scale = (here & counted).to(table.dtype)
    scale = scale if weights is None else scale * weights
    bag = torch.searchsorted(ends[1:].contiguous(), torch.arange(len(ids), device=ids.device), right=True)
    rows = F.embedding(local, table) * scale[:, None]
    out: Tensor = table.new_zeros(num_bags, table.shape[1]).index_add(0, bag, rows)
    if mode == 1:
        sizes = table.new_zeros(num_bags).index_add(0, bag, counted.to(table.dtype))
        out = out / sizes.clamp(min=1)[:, None]
    return out


def scaled_dot_product_attention(call: LocalCall) -> Results:
    """Attention of local queries to all keys; the causal mask knows where the queries are."""
    query, key, value = call["query"], call["key"], call["value"]
    if call["enable_gqa"]:
        heads, groups = call.dims["query"][-3], call.dims["key"][-3]
        owner = heads.indices() // (heads.extent // groups.extent) - groups.start
        key, value = (t.index_select(-3, owner.to(t.device)) for t in (key, value))
    rows, columns = call.dims["query"][-2], call.dims["key"][-2]
    mask, causal = call["attn_mask"], call["is_causal"]
    if causal and not (rows.whole and columns.whole):
        mask = (columns.indices()[None, :] <= rows.indices()[:, None]).to(query.device)
        causal = False
    if call["dropout_p"] > 0:
        return _attention_with_dropout(call, query, key, value, mask, causal)
    return F.scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale=call["scale"])


def _attention_with_dropout(
    call: LocalCall, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    scale = call["scale"] if call["scale"] is not None else query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)
    dims = (*call.dims["query"][:-1], call.dims["key"][-2])
    kept = keep_mask(dims, call["dropout_p"], call.seed, weights.device)
    dropped: Tensor = weights * kept / (1 - call["dropout_p"])
    return dropped @ value


def recurrent(call: LocalCall) -> Results:
    """lstm, gru, rnn: as they are; with dropout between layers, layer by layer with our own masks."""
    if not (call["train"] and call["dropout"] > 0 and call["num_layers"] > 1):
        return call.run()
    num_weights = len(call["params"]) // call["num_layers"]
    directions = 2 if call["bidirectional"] else 1
    x, states, finals = call["input"], call["hx"], []
    for layer in range(call["num_layers"]):
        if layer > 0:
            dims = (*call.results[0][:-1], _widened(call.results[0][-1]))
            kept = keep_mask(dims, call["dropout"], call.seed + layer, x.device)
            x = x * kept / (1 - call["dropout"])
        rows = slice(layer * directions, (layer + 1) * directions)
        hx = [s[rows] for s in states] if isinstance(states, list) else states[rows]
        params = call["params"][layer * num_weights : (layer + 1) * num_weights]
        x, *last = call.run(input=x, hx=hx, params=params, num_layers=1, dropout=0.0)
        finals.append(last)
    return (x, *(torch.cat(parts) for parts in zip(*finals, strict=True)))


def _widened(dim: LocalDim) -> LocalDim:
    """All of a dimension; the hidden state of a fused recurrent layer is never split."""
    assert dim.whole, "the hidden dimension of a fused recurrent layer is whole"
    return replace(dim, label=(), factors=(), span=None)


def recurrent_cell(call: LocalCall) -> Results:
    """lstm_cell, rnn_tanh_cell, rnn_relu_cell: the gates of the local hidden units, from all of the state."""
    if call.whole:
        return call.run()
    states = call["hx"]
    gates = F.linear(call["input"], call["w_ih"], call["b_ih"])
    if isinstance(states, list):
        hidden, cell = states
        gates = gates + F.linear(hidden, call["w_hh"], call["b_hh"])
        entry, forget, new, exit_ = gates.chunk(4, -1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        return exit_.sigmoid() * cell.tanh(), cell
    gates = gates + F.linear(states, call["w_hh"], call["b_hh"])
    return gates.tanh() if "tanh" in call.target else gates.relu()


def without_running_statistics(call: LocalCall) -> Results:
    """batch_norm, instance_norm: in training each part normalizes what it has; running statistics stay.

    Normalizing each part by itself is what data-parallel training does without synchronized statistics.
    """
    training = call["training"] if "training" in call.arguments else call["use_input_stats"]
    return call.run(running_mean=None, running_var=None) if training else call.run()


def group_norm(call: LocalCall) -> Results:
    """As many groups as the local channels make."""
    channels = call.dims["input"][1]
    per_group = channels.extent // call["num_groups"]
    assert channels.size % per_group == 0, "a group is never split"
    return call.run(num_groups=channels.size // per_group)


# On a part that has all of everything these only call the library.
PLAIN_WHERE_WHOLE = (embedding, embedding_bag, group_norm)


def dense_kernels() -> dict[str, Kernel]:
    """Kernels by target without overload."""
    table: dict[str, Kernel] = {
        "aten.embedding": embedding,
        "aten.embedding_bag": embedding_bag,
        "aten.scaled_dot_product_attention": scaled_dot_product_attention,
        "aten.batch_norm": without_running_statistics,
        "aten.instance_norm": without_running_statistics,
        "aten.group_norm": group_norm,
    }
    table.update(dict.fromkeys(("aten.linear", "aten.bilinear"), biased_once))
    table.update(dict.fromkeys(("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv"), added_once))
    table.update(dict.fromkeys(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"), recurrent))
    cells = ("aten.lstm_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
    table.update(dict.fromkeys(cells, recurrent_cell))
    return table
