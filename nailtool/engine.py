"""Stages on top of pytask: what is stale and why, and running exactly that."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytask
from pytask import Session, TaskWithoutPath

from nailcore.errors import NailtoolError
from nailtool.nodes import SOURCE_NODE, TOOLS_NODE, Node, forget_hashes
from nailtool.schedule import STATUS, Scheduler, Watcher
from nailtool.stage import Cost, Stage, StageResult
from nailtool.workers import StageCrashError

_LOCK_FILE = "pytask.lock"


def _never_called() -> None:
    """Stages run in worker processes; pytask only keeps their books."""


@dataclass(kw_only=True)
class _StageTask(TaskWithoutPath):
    """A stage as pytask sees it. Its sources are inputs of their own, so its own state is its job."""

    def state(self) -> str:
        stage: Stage = self.attributes["stage"]
        return stage.job


def _make_task(order: int, stage: Stage) -> _StageTask:
    names = [node.name for node in (*stage.inputs, *stage.products)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"stage {stage.name}: several inputs or products share a name: {sorted(twice)}")
    return _StageTask(
        name=stage.name,
        function=_never_called,
        depends_on=dict(enumerate_nodes("input", stage.inputs)),
        produces=dict(enumerate_nodes("product", stage.products)),
        attributes={"stage": stage, "order": order},
    )


def enumerate_nodes(prefix: str, nodes: Sequence[Node]) -> Iterator[tuple[str, Any]]:
    """Nodes under the keyword names pytask wants."""
    yield from ((f"{prefix}{index}", node) for index, node in enumerate(nodes))


@contextlib.contextmanager
def _registering(plugin: object | None) -> Iterator[None]:
    """Add a plugin to the manager that `pytask.build` makes for itself; it has no argument for one."""
    storage: Any = pytask.storage
    original = storage.store

    def store(manager: Any) -> None:
        if plugin is not None:
            manager.register(plugin)
        original(manager)

    storage.store = store
    try:
        yield
    finally:
        del storage.store


@contextlib.contextmanager
def _silenced() -> Iterator[io.StringIO]:
    """Keep pytask's own frame off the terminal; what it says is kept for a failure of its own."""
    said = io.StringIO()
    pytask.console.file = said
    try:
        yield said
    finally:
        pytask.console.file = cast(Any, None)  # None: standard output, whatever that is by then


def _call_pytask(stages: Sequence[Stage], folder: Path, plugin: object | None, **options: Any) -> Session:
    # A configuration file of our own pins pytask's root to this folder, whatever lies above it.
    config = folder / "pytask.toml"
    if not config.is_file():
        config.write_text("[tool.pytask.ini_options]\n", "utf-8")
    tasks = [_make_task(order, stage) for order, stage in enumerate(stages)]
    with _silenced() as said, _registering(plugin):
        session = pytask.build(
            tasks=tasks, paths=[folder], config=config, capture="no", show_traceback=False, **options
        )
    if session.should_stop:
        # pytask and our scheduler end their loops early and return what they have; never go on with that.
        raise KeyboardInterrupt
    if session.exit_code not in (pytask.ExitCode.OK, pytask.ExitCode.FAILED):
        raise _EngineError(said.getvalue().strip()[-4000:])
    if len(session.execution_reports) < len(stages):
        raise _EngineError(said.getvalue().strip()[-4000:])
    return session


class _EngineError(Exception):
    """pytask could not read its files or build its graph."""


def explain_stages(stages: Sequence[Stage], folder: Path) -> list[StageResult]:
    """Which stages would run and why, without running or recording anything."""
    forget_hashes()
    session = _with_fresh_books(folder, lambda: _call_pytask(stages, folder, None, explain=True))
    results = {report.task.name: _explain(report) for report in session.execution_reports}
    return [results[stage.name] for stage in stages]


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    *,
    jobs: int,
    watcher: Watcher,
    force: bool = False,
    before_run: Callable[[Sequence[Stage]], None] | None = None,
) -> list[StageResult]:
    """Run what is stale; a failing stage stops only what depends on it.

    ``before_run`` sees the stages that may run, and may raise to stop the command before it starts.
    """
    explained = explain_stages(stages, folder)
    reasons = {result.stage.name: result.reasons for result in explained}
    if force:
        reasons = {stage.name: reasons[stage.name] or ("asked to run again",) for stage in stages}
    elif all(result.status == "cached" for result in explained):
        return explained
    if before_run is not None:
        before_run([stage for stage in stages if reasons[stage.name]])
    scheduler = Scheduler(jobs, folder / "logs", watcher)
    session = _call_pytask(stages, folder, scheduler, force=force)
    results = {}
    for report in session.execution_reports:
        name = report.task.name
        status = STATUS[report.outcome]
        error = report.exc_info[1] if status == "failed" and report.exc_info else None
        results[name] = StageResult(
            stage=report.task.attributes["stage"],
            status=status,
            reasons=() if status == "cached" else reasons[name],
            cost=scheduler.costs.get(name, Cost()),
            error=_as_error(error),
        )
    return [results[stage.name] for stage in stages]


def _as_error(error: BaseException | None) -> Exception | None:
    if error is None or isinstance(error, NailtoolError | StageCrashError):
        return error
    return StageCrashError(f"{type(error).__name__}: {error}", "the message itself")


def _with_fresh_books(folder: Path, call: Callable[[], Session]) -> Session:
    """Run; when pytask cannot read its own records, set them aside and see everything as new."""
    try:
        return call()
    except _EngineError:
        books = [folder / _LOCK_FILE, folder / f"{_LOCK_FILE}.journal"]
        present = [path for path in books if path.is_file()]
        if not present:
            raise
        for path in present:
            path.replace(path.with_name(path.name + ".damaged"))
        for path in (folder / ".pytask").glob("*.sqlite3"):
            path.unlink()
        return call()


def _explain(report: Any) -> StageResult:
    stage: Stage = report.task.attributes["stage"]
    status = STATUS[report.outcome]
    if status == "failed":
        error = report.exc_info[1] if report.exc_info else None
        return StageResult(stage, "would run", (f"cannot run yet: {error}",))
    explanation = report.task.attributes.get("explanation")
    changes = list(getattr(explanation, "reasons", []))
    return StageResult(stage, status, tuple(_phrase_all(stage, changes)))


def _phrase_all(stage: Stage, changes: Sequence[Any]) -> Iterator[str]:
    if any(change.node_type == "source" and change.reason == "not_in_db" for change in changes):
        missing = all(not product.location.exists() for product in stage.products)
        yield "never built in this folder" if missing else "no record of how it was built"
        return
    for change in changes:
        if change.node_name in (TOOLS_NODE, SOURCE_NODE) and change.reason == "changed":
            yield from _phrase_members(change)
        else:
            yield _phrase(change)


def _phrase_members(change: Any) -> Iterator[str]:
    """A changed table of tools or source files, entry by entry."""
    word = "tool" if change.node_name == TOOLS_NODE else "source"
    before, after = json.loads(change.details["old_hash"]), json.loads(change.details["new_hash"])
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{word} {name} is {'new' if old is None else 'no longer used'}"
        elif old != new:
            yield f"{word} {name} changed{_describe_change(old, new)}"


def _phrase(change: Any) -> str:
    name = change.node_name
    match (change.node_type, change.reason):
        case (_, "cascade"):
            return f"depends on {name}, which would run first"
        case ("product", "missing"):
            return f"{name} is missing"
        case ("product", _):
            return f"{name} was changed after it was built"
        case ("dependency", "not_in_db"):
            return f"new input: {name}"
        case ("dependency", _):
            old, new = change.details.get("old_hash", ""), change.details.get("new_hash", "")
            return f"{name} changed{_describe_change(old, new)}"
    return inspect.cleandoc(f"{name}: {change.reason}")


def _describe_change(old: str, new: str) -> str:
    """Short values are shown, JSON objects by their differing keys, hashes not at all."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        before, after = json.loads(old), json.loads(new)
        keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        return ": " + ", ".join(f"{key} {before.get(key)!r} → {after.get(key)!r}" for key in keys)
    if old and new and max(len(old), len(new)) <= 40:
        return f": {old} → {new}"
    return ""
