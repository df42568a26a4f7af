# Compiled or made at start: no type checker can look inside.
from typing import Any

def __getattr__(name: str) -> Any: ...
