"""What the generic shrinking of `zoo.shrink` does not know about causal language models: overrides by architecture.

Values are keyword arguments of the configuration class; a nested dictionary reaches into a nested configuration. A
callable takes the head size of the variant.
"""

from __future__ import annotations

from typing import Any

OVERRIDES: dict[str, dict[str, Any]] = {}
