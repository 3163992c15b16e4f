"""The rules of the gate, read from limits.toml."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from benchmark.limits import LIMITS_FILE, load_tables
from nailcore.errors import NailtoolError
from nailcore.gate_facts import GateRules

TABLE = "gates.shippable"


def load_rules(max_drop_points: float | None = None, *, path: Path = LIMITS_FILE) -> GateRules:
    """The rules as the file states them; a limit given here replaces the file's.

    Raises:
        NailtoolError: the table is missing, or says something it cannot; or the limit given is below 0.
    """
    table = load_tables(path).get(TABLE)
    if table is None:
        raise NailtoolError(f'{path.name}: there is no table ["{TABLE}"].', hint="Install nailtool again.")
    given: dict[str, object] = {}
    if max_drop_points is not None:
        usual = table.get("max_drop_points")
        given = {"max_drop_points": max_drop_points, "reason": f"the limit was asked for (else {usual})"}
    try:
        return GateRules.model_validate({**table, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise NailtoolError(
            f"The gate's {'.'.join(map(str, first['loc']))}: {first['msg']} (found {first['input']!r}).",
            hint=f'Rules: {", ".join(GateRules.model_fields)}, in ["{TABLE}"] of {path.name}.',
        ) from error
