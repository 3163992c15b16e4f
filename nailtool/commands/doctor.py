"""`nailtool doctor` and `nailtool devices`: what this machine can and cannot do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, OutOption, QuietOption, load_registry
from nailtool.defaults import DEFAULT_OUT
from nailtool.terminal import Terminal

EXIT_MISSING = 3


@guarded
def doctor(
    out: OutOption = DEFAULT_OUT,
    fast: Annotated[
        bool, typer.Option("--fast", help="Believe the installed versions instead of importing them.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can and cannot do, and how to get what is missing.

    Exit code 3 when something required is missing.

    Example: nailtool doctor --fast
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.doctor import examine

    findings = examine(out, load_registry(), real_imports=not fast)
    terminal.table(
        "This machine",
        ("what", "state", "found", "needed for"),
        ((f.what, _show_state(f.state), f.found, f.needed_for) for f in findings),
    )
    for finding in findings:
        if finding.remedy:
            terminal.show(f"→ {finding.what}: {finding.remedy}")
    missing = [f.what for f in findings if f.state == "missing"]
    terminal.emit({"ok": not missing, "findings": [f.model_dump(mode="json") for f in findings]})
    if missing:
        terminal.complain("Missing:", f"{', '.join(missing)}.")
        raise typer.Exit(EXIT_MISSING)


def _show_state(state: str) -> str:
    return {"ok": "ok", "missing": "missing", "absent": "not here"}[state]


@guarded
def devices(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the devices that can be measured, what each runs, and whether it is usable here.

    Example: nailtool devices --json
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    import importlib

    rows: list[dict[str, Any]] = []
    for name, module in load_registry().devices.items():
        device = importlib.import_module(module)
        obstacle = device.find_obstacle()
        rows.append(
            {
                "device": name,
                "summary": str(device.__doc__ or "").strip().split("\n")[0],
                "runs": list(device.KINDS),
                "usable": obstacle is None,
                "reason": "" if obstacle is None else obstacle.reason,
                "remedy": "" if obstacle is None else obstacle.remedy,
            }
        )
    terminal.table(
        "Devices",
        ("device", "runs", "usable here", "about"),
        (
            (
                row["device"],
                ", ".join(row["runs"]),
                "yes" if row["usable"] else f"no: {row['reason']} {row['remedy']}",
                row["summary"],
            )
            for row in rows
        ),
    )
    terminal.emit({"devices": rows})
