"""Which behaviors there are, and how their TOML files are read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise import demo
from excise.errors import BehaviorError

_SHIPPED = Path(__file__).parent
_SECTIONS = ("detectors", "deflections")
_DEMO = Path(demo.__file__).parent / "behaviors"


def known_behaviors() -> dict[str, Path]:
    """The behaviors that come with the package, by name; those of the demo model as `demo:NAME`."""
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.toml"))}
    return shipped | {f"demo:{path.stem}": path for path in sorted(_DEMO.glob("*.toml"))}


def locate(name_or_path: str | Path) -> Path:
    """The file of a behavior: a path to a `.toml`, or a name (`demo:` may be left out). Raises `BehaviorError`."""
    known = known_behaviors()
    for key in (str(name_or_path), f"demo:{name_or_path}"):
        if key in known:
            return known[key]
    path = Path(name_or_path).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path
    if path.suffix == ".toml":
        raise BehaviorError(f"no behavior file at {path}", hint=f"check the path; known behaviors: {', '.join(known)}")
    raise BehaviorError(
        f"unknown behavior '{name_or_path}'", hint=f"known: {', '.join(known)}; or give the path of a .toml file"
    )


def read_toml(path: Path, *, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a behavior file with the terms of its patterns filled in, and its packs added.

    `[detectors.terms]` and `[deflections.terms]` name parts of regular expressions; `<name>` in a pattern or a later
    term stands for one. `packs` names files, relative to this one and with `*` for any text, whose patterns are added:
    one per language. `detectors = "NAME"` takes those of another behavior, a name or a path relative to this file.

    before  files that take their detectors from this one

    Raises `BehaviorError`.
    """
    content = _read(path, before)
    packs = content.pop("packs", [])
    for pack in [each for pattern in packs for each in _matching(path.parent, str(pattern))]:
        added = _read(pack, before)
        for section in _SECTIONS:
            patterns = added.get(section, {}).get("patterns", [])
            if patterns:
                found = content.setdefault(section, {})
                found["patterns"] = [*found.get("patterns", []), *patterns]
    return content


def _read(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BehaviorError(f"{path} is not a TOML file: {error}", hint="see https://toml.io for its form") from error
    detectors = content.get("detectors")
    if isinstance(detectors, str):
        beside = path.parent / detectors
        other = locate(beside if beside.suffix == ".toml" else detectors)
        known = (*before, path.resolve())
        if other.resolve() in known:
            raise BehaviorError(f"{path} takes its detectors from itself", hint="name another behavior, or write them")
        content["detectors"] = read_toml(other, before=known).get("detectors")
    for section in _SECTIONS:
        detectors = content.get(section)
        if isinstance(detectors, dict) and isinstance(detectors.get("terms"), dict):
            terms: dict[str, str] = {}
            for name, term in detectors.pop("terms").items():
                terms[name] = f"(?:{_filled(str(term), terms)})"
            patterns = detectors.get("patterns", [])
            detectors["patterns"] = [_filled(str(pattern), terms) for pattern in patterns]
    return content


def _matching(folder: Path, pattern: str) -> list[Path]:
    whole = (folder / pattern).absolute()
    found = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
    if not found:
        raise BehaviorError(
            f"no file of patterns matches {folder / pattern}", hint="`packs` are paths relative to the behavior's file"
        )
    return found


def _filled(pattern: str, terms: Mapping[str, str]) -> str:
    for name, term in terms.items():
        pattern = pattern.replace(f"<{name}>", term)
    return pattern
