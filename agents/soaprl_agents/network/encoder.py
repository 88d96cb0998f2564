"""Graph encoders: messages along edges in both directions, residual rounds that share their weights.

One round, for node i with embedding h_i and pooled graph g (implemented in `GraphEncoder.forward`):

    m_i = mean and maximum over edges (j -> i) of relu(A h_j + B h_i + C e_ji)
    m'_i = the same over edges reversed, with weights of its own
    h_i <- h_i + MLP(norm(h_i), m_i, m'_i, mean_j h_j, g)

Messages as in Gilmer et al., Neural Message Passing for Quantum Chemistry (2017), section 2; mean and maximum
together tell how many neighbours agree (Corso et al., Principal Neighbourhood Aggregation, 2020).
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter


class Perceptron(nn.Sequential):
    """Linear, normalization, relu, linear."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__(
            nn.Linear(width_in, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width_out)
        )


class EdgeMessages(MessagePassing):  # type: ignore[misc] # torch_geometric's own annotations are incomplete
    """Mean and maximum of the messages that arrive at each node."""

    def __init__(self, hidden: int) -> None:
        super().__init__(aggr=["mean", "max"])
        self.source = nn.Linear(hidden, hidden)
        self.target = nn.Linear(hidden, hidden, bias=False)

    def forward(self, nodes: Tensor, edges: Tensor, edge_terms: Tensor) -> Tensor:
        """Messages [nodes, 2 hidden]; `edge_terms` [edges, hidden] are the edges' part of them."""
        arrived: Tensor = self.propagate(
            edges, sent=self.source(nodes), met=self.target(nodes), terms=edge_terms, size=None
        )
        return arrived

    def message(self, sent_j: Tensor, met_i: Tensor, terms: Tensor) -> Tensor:
        """The message along each edge."""
        return torch.relu(sent_j + met_i + terms)


class GraphEncoder(nn.Module):
    """Embeds the nodes of graphs side by side; see the module."""

    def __init__(self, *, edge_width: int, hidden: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.edge_terms = nn.Linear(edge_width, 2 * hidden)
        self.forth = EdgeMessages(hidden)
        self.back = EdgeMessages(hidden)
        self.norm = nn.LayerNorm(hidden)
        self.update = Perceptron(7 * hidden, hidden, hidden)

    def forward(
        self, nodes: Tensor, edges: Tensor, edge_features: Tensor, graph: Tensor, condition: Tensor
    ) -> Tensor:
        """Embeddings [N, hidden].

        Args:
            nodes: First embeddings [N, hidden].
            edges: i64 [2, E].
            edge_features: [E, edge_width].
            graph: i64 [N], the graph of each node.
            condition: [graphs, hidden], what all nodes of a graph are told.
        """
        terms_forth, terms_back = self.edge_terms(edge_features).chunk(2, dim=-1)
        told, reverse = condition[graph], edges.flip(0)
        for _ in range(self.rounds):
            normal = self.norm(nodes)
            parts = (
                normal,
                self.forth(normal, edges, terms_forth),
                self.back(normal, reverse, terms_back),
                pooled(normal, graph, len(condition))[graph],
                told,
            )
            nodes = nodes + self.update(torch.cat(parts, dim=-1))
        return nodes


def pooled(nodes: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
    """The mean over the nodes of each graph, [graphs, width]."""
    mean: Tensor = scatter(nodes, graph, dim=0, dim_size=num_graphs, reduce="mean")
    return mean
