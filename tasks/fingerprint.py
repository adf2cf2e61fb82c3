"""Names for stored results: equal inputs give an equal name, changed ones another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any


def fingerprint(*parts: Any, sources: tuple[ModuleType, ...] = ()) -> str:
    """Return 16 hex digits of the SHA-256 over JSON values and the text of source modules.

    A stored result outlives the DVC stage that wrote it, so its name has to change with the code
    that computed it as well: otherwise an edited function would be answered with old figures.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for module in sources:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
