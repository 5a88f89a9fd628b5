"""params.schema.json, by which editors complete and check params.yaml; `python -m lib schema` writes it."""

from __future__ import annotations

import json

from pydantic import TypeAdapter

from ..tasks.degradations import DEGRADATIONS
from .resolve import ROOT
from .schema import ParamsFile

FILE = ROOT / "params.schema.json"


def text() -> str:
    """The JSON schema of params.yaml, with the names of degradations; not of models, which a folder adds."""
    schema = TypeAdapter(ParamsFile).json_schema()
    degradation = schema["$defs"]["TaskEntry"]["properties"]["degradation"]
    degradation |= {"properties": {"name": {"enum": [*DEGRADATIONS]}}, "required": ["name"]}
    return json.dumps(schema, indent=1) + "\n"
