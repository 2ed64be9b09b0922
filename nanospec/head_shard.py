"""An output head whose rows lie on several processes: each scores its own, one all-reduce brings them together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from nanospec.ops.gathered_linear import check_operands, gathered_linear


@dataclass(frozen=True)
class HeadShard:
    """This process's rows of a head [V, D]; the others of `group` hold the rest, each row once.

    rows        [n, D], the rows `start` to `start + n`; n may differ from process to process, and be 0
    vocab_size  V
    group       None: all processes

    Raises ValueError for rows that are not 2-D or do not lie inside the vocabulary.
    """

    rows: Tensor
    start: int
    vocab_size: int
    group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.rows.dim() != 2:
            raise ValueError(f"rows must be [n, D], got shape {tuple(self.rows.shape)}")
        if not 0 <= self.start <= self.start + self.num_rows <= self.vocab_size:
            raise ValueError(
                f"rows must lie in a vocabulary of {self.vocab_size}, got {self.num_rows} from row {self.start} on"
            )

    @classmethod
    def of_rows(cls, rows: Tensor, group: ProcessGroup | None = None) -> HeadShard:
        """The shard of `rows` where the processes of `group` hold consecutive parts, in the order of their ranks.

        Every process of the group calls this together. Raises as the class.
        """
        num_rows = torch.tensor([rows.shape[0]], device=rows.device)
        gathered = [torch.empty_like(num_rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, num_rows, group=group)
        counts = torch.cat(gathered).tolist()
        return cls(rows.detach(), sum(counts[: dist.get_rank(group)]), sum(counts), group)

    @property
    def num_rows(self) -> int:
        return self.rows.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Of the whole head, [V, D]."""
        return torch.Size((self.vocab_size, self.rows.shape[1]))

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def detach(self) -> HeadShard:
        return HeadShard(self.rows.detach(), self.start, self.vocab_size, self.group)

    def local_bias(self, bias: Tensor) -> Tensor:
        """This process's part [n] of a bias [V], which is sharded as the head is, or whole."""
        if isinstance(bias, DTensor):
            return bias.to_local().detach()
        return bias.detach()[self.start : self.start + self.num_rows]

    def logits(
        self, hidden: Tensor, head_pos: Tensor, bias: Tensor | None = None, count: Tensor | None = None
    ) -> Tensor:
        """Logits [B, n, K] of the rows `head_pos` int64 [B or 1, K] of the whole head, -inf from `count` on.

        hidden [B, n, D], head_pos and count are those of every process; bias [num_rows] is the local part. Columns
        whose rows lie here are moved to the front and scored; those of the others are 0, and so the sum over the
        processes adds nothing but zeros to what a row's owner computed: every process gets the same bits, in any order
        of summation. Every process of the group calls this together. Raises as `gathered_linear`.
        """
        check_operands(hidden, self.rows, head_pos, bias, count, None)
        columns = torch.arange(head_pos.shape[1], device=head_pos.device)
        local_pos = head_pos - self.start
        is_here = (local_pos >= 0) & (local_pos < self.num_rows)
        if count is not None:
            is_here = is_here & (columns < count[:, None])
        logits = hidden.new_zeros(*hidden.shape[:2], head_pos.shape[1])
        if self.num_rows:
            order = (~is_here).byte().argsort(dim=1, stable=True)  # [B or 1, K]: ours first
            num_here = is_here.sum(1, dtype=torch.int32)
            front = local_pos.expand_as(order).gather(1, order).clamp(0, self.num_rows - 1)
            part = gathered_linear(hidden, self.rows, front, bias, num_here)
            part = part.masked_fill((columns >= num_here[:, None])[:, None], 0.0)
            logits.scatter_(2, order[:, None].expand_as(part), part)
        dist.all_reduce(logits, group=self.group)
        return logits if count is None else logits.masked_fill_((columns >= count[:, None])[:, None], float("-inf"))


def head_shard(weight: Tensor | HeadShard) -> HeadShard | None:
    """This process's part of a head that lies on several: a shard, or what a DTensor [V, D] is here; None: it is whole.

    Raises NotImplementedError for a DTensor that is not sharded by rows over one dimension of its mesh.
    """
    if isinstance(weight, HeadShard) or not isinstance(weight, DTensor):
        return weight if isinstance(weight, HeadShard) else None
    mesh, placements = weight.device_mesh, weight.placements
    split = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    parts = [placements[dim] for dim in split]
    if len(parts) != 1 or type(parts[0]) is not Shard or not parts[0].is_shard(0):
        raise NotImplementedError(f"head weight must be sharded by rows over one mesh dimension, got {placements}")
    _, offset = compute_local_shape_and_global_offset(weight.shape, mesh, placements)
    rows, vocab_size = weight.to_local().detach(), weight.shape[0]
    return HeadShard(rows, min(offset[0], vocab_size), vocab_size, mesh.get_group(split[0]))


def whole_head(weight: Tensor | HeadShard) -> Tensor:
    """A head that is known to be whole."""
    assert isinstance(weight, Tensor), "a sharded head is never read but by `HeadShard.logits`"
    return weight
