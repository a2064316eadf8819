"""Weight formats, one per file. A new one is a module with a class like `Plain`, and its line in `FORMATS`."""

from excise.bake.formats.base import Format, Piece
from excise.bake.formats.plain import Plain

FORMATS: tuple[Format, ...] = (Plain(),)

__all__ = ["FORMATS", "Format", "Piece", "Plain"]
