"""Keys and values in buffers with room to spare: Transformers' own dynamic layer copies all of them for every token."""

from __future__ import annotations

from jaxtyping import Float
from torch import LongTensor, Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_SPARE = 64


class GrowingLayer(DynamicLayer):
    """What a `DynamicLayer` is, for one that holds something already; it grows by a half where its room runs out."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert layer.keys is not None
        assert layer.values is not None
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True
        self._buffers = (layer.keys, layer.values)  # full: room is made by the next token
        self._show(layer.keys.shape[-2])

    def update(
        self,
        key_states: Float[Tensor, "row head token width"],
        value_states: Float[Tensor, "row head token other_width"],
        *_: object,
        **__: object,
    ) -> tuple[Float[Tensor, "row head all width"], Float[Tensor, "row head all other_width"]]:
        """Add tokens; gives all there are."""
        assert self.keys is not None
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        if after > self._buffers[0].shape[-2]:
            self._buffers = (_roomier(self._buffers[0], before, after), _roomier(self._buffers[1], before, after))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:after] = new
        self._show(after)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Keep rows, in this order."""
        assert self.keys is not None
        length = self.keys.shape[-2]
        self._buffers = (_rows(self._buffers[0], beam_idx, length), _rows(self._buffers[1], beam_idx, length))
        self._show(length)

    def absorb(self, other: GrowingLayer, *, unread: int) -> None:
        """Add the rows of another layer, aligned on the right; the first `unread` tokens of these rows are dropped."""
        assert self.keys is not None
        assert other.keys is not None
        width = max(self.keys.shape[-2] - unread, other.keys.shape[-2])
        mine = (self.keys[:, :, unread:], self.values[:, :, unread:])  # type: ignore[index]
        self._buffers = (_joined(mine[0], other.keys, width), _joined(mine[1], other.values, width))  # type: ignore[arg-type]
        self._show(width)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def with_room(cache: Cache) -> None:
    """Give layers of a cache that has read a prompt room to grow: those that are plainly Transformers' dynamic ones."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4:  # type: ignore[union-attr]
            cache.layers[index] = GrowingLayer(layer)


def _roomier(buffer: Tensor, used: int, needed: int) -> Tensor:
    rows, heads, _, width = buffer.shape
    larger = buffer.new_empty(rows, heads, max(needed + _SPARE, needed * 3 // 2), width)
    larger[:, :, :used] = buffer[:, :, :used]
    return larger


def _rows(buffer: Tensor, index: Tensor, used: int) -> Tensor:
    rows, heads, room, width = len(index), *buffer.shape[1:]
    kept = buffer.new_empty(rows, heads, room, width)
    kept[:, :, :used] = buffer[:, :, :used].index_select(0, index.to(buffer.device))
    return kept


def _joined(mine: Tensor, theirs: Tensor, width: int) -> Tensor:
    """All rows, aligned on the right, with room; zeros on the left, as what is masked is summed all the same."""
    rows, heads, _, size = mine.shape
    both = mine.new_zeros(rows + len(theirs), heads, width + _SPARE, size)
    both[:rows, :, width - mine.shape[2] : width] = mine
    both[rows:, :, width - theirs.shape[2] : width] = theirs
    return both
