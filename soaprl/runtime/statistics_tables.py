"""The batch statistics that one rank's tasks share with others, on their way; see `ReduceStatistics`."""

from collections.abc import Container

import torch
from torch import Tensor

from soaprl.runtime.program import ReduceStatistics
from soaprl.runtime.segments import Task


class StatisticsTables:
    """Statistics of one iteration, by task; each is taken once.

    Attributes:
        rows: The row of statistics that a task gave.
        tables: The rows of all tasks that normalize together.
        table_gradients: What a task gives as the gradient of the table; None for zero.
        row_gradients: The gradient of its own row.
    """

    def __init__(self) -> None:
        self.rows: dict[Task, Tensor] = {}
        self.tables: dict[Task, Tensor] = {}
        self.table_gradients: dict[Task, Tensor | None] = {}
        self.row_gradients: dict[Task, Tensor] = {}

    def contribution(self, step: ReduceStatistics) -> Tensor:
        """This rank's rows of a table, the others 0; in the backward pass its gradient of the table."""
        keys = [(step.operator, part) for part in step.parts]
        if step.direction == "forward":
            first = next(self.rows[key] for key in keys if key in self.rows)
            table = first.new_zeros(len(keys), *first.shape)
            for row, key in enumerate(keys):
                if key in self.rows:
                    table[row] = self.rows.pop(key)
            return table
        given = [self.table_gradients.pop(key) for key in keys if key in self.table_gradients]
        total = torch.zeros_like(next(self.tables[key] for key in keys if key in self.tables))
        for gradient in given:
            total = total if gradient is None else total + gradient
        return total

    def enter(self, step: ReduceStatistics, total: Tensor, tasks: Container[Task]) -> None:
        """Takes the table, or its gradient, for those of its tasks that are among `tasks`."""
        for row, part in enumerate(step.parts):
            if (step.operator, part) in tasks:
                if step.direction == "forward":
                    self.tables[step.operator, part] = total
                else:
                    self.row_gradients[step.operator, part] = total[row]
