from typing import Any

Penalty = Any
Importance = Any
