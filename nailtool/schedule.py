"""The execution loop: takes ready stages from pytask and keeps up to N worker processes busy."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, cast

from pytask import ExecutionReport, Session, TaskOutcome, hookimpl

from nailcore.errors import NailtoolError
from nailtool.stage import Cost, Stage, Status
from nailtool.workers import Reply, Request, Worker, WorkerDiedError

STATUS: dict[TaskOutcome, Status] = {
    TaskOutcome.SUCCESS: "built",
    TaskOutcome.SKIP_UNCHANGED: "cached",
    TaskOutcome.FAIL: "failed",
    TaskOutcome.SKIP_PREVIOUS_FAILED: "blocked",
    TaskOutcome.WOULD_BE_EXECUTED: "would run",
}


class Watcher(Protocol):
    """Is told what happens while it happens."""

    def started(self, stage: Stage) -> None:
        """A worker took the stage."""

    def advanced(self, stage: Stage, done: int, total: int) -> None:
        """The stage reported progress."""

    def finished(self, stage: Stage, status: Status, cost: Cost) -> None:
        """The stage ended, or needed no run."""


class Scheduler:
    """A pytask plugin that replaces its one-by-one loop.

    At most ``jobs`` worker processes live at once. A worker that waits and whose family is no longer
    wanted makes room for one of another family. An exclusive stage runs when nothing else does.
    """

    def __init__(self, jobs: int, log_dir: Path, watcher: Watcher) -> None:
        self.jobs = jobs
        self.log_dir = log_dir
        self.watcher = watcher
        self.costs: dict[str, Cost] = {}
        self._idle: list[Worker] = []
        self._busy: dict[Connection, tuple[Worker, Any]] = {}
        self._ready: list[Any] = []

    @hookimpl(tryfirst=True)
    def pytask_execute_build(self, session: Session) -> bool:
        """Run every stage of the session that is not up to date."""
        scheduler = cast(Any, session.scheduler)
        try:
            while scheduler.is_active():
                for name in scheduler.get_ready(10_000):
                    self._set_up(session, session.dag.nodes[name])
                self._dispatch(session)
                if self._busy:
                    self._collect(session)
        except KeyboardInterrupt:
            session.should_stop = True  # pytask records what is finished, the caller raises again
        finally:
            self.stop()
        return True

    def stop(self) -> None:
        """End all workers; an unfinished stage leaves only a scratch folder behind."""
        for worker, _ in self._busy.values():
            worker.kill()
        for worker in self._idle:
            worker.close()
        self._busy.clear()
        self._idle.clear()

    def _set_up(self, session: Session, task: Any) -> None:
        """Ask pytask whether the stage has to run; keep it if so, report it otherwise."""
        try:
            session.hook.pytask_execute_task_setup(session=session, task=task)
        except Exception:
            self._report(session, ExecutionReport.from_task_and_exception(task, cast(Any, sys.exc_info())))
        else:
            self._ready.append(task)

    def _dispatch(self, session: Session) -> None:
        while self._start_one(session):
            pass

    def _start_one(self, session: Session) -> bool:
        """Give one ready stage to a worker; False when none can start now."""
        running = [task.attributes["stage"] for _, task in self._busy.values()]
        if len(running) >= self.jobs or any(stage.exclusive for stage in running):
            return False
        taken = {(stage.family, stage.affinity) for stage in running if stage.affinity}

        def prefer(task: Any) -> tuple[bool, int]:
            stage: Stage = task.attributes["stage"]
            return (stage.family, stage.affinity) in taken, task.attributes["order"]

        for task in sorted(self._ready, key=prefer):
            stage: Stage = task.attributes["stage"]
            if stage.exclusive and running:
                continue
            worker = self._take_worker(stage)
            if worker is not None:
                self._ready.remove(task)
                self._start(session, worker, task)
                return True
        return False

    def _start(self, session: Session, worker: Worker, task: Any) -> None:
        stage: Stage = task.attributes["stage"]
        self._busy[worker.pipe] = (worker, task)
        worker.affinity = stage.affinity
        self.watcher.started(stage)
        log = self.log_dir / f"{stage.name.replace(' ', '.')}.log"
        try:
            worker.submit(Request(stage.job, stage.arguments, log))
        except OSError:
            self._fail(session, worker.pipe, WorkerDiedError("its worker process ended while it waited."))

    def _take_worker(self, stage: Stage) -> Worker | None:
        for worker in [idle for idle in self._idle if idle.worn_out]:
            self._idle.remove(worker)
            worker.close()
        fitting = [worker for worker in self._idle if worker.family == stage.family]
        if fitting:
            worker = max(fitting, key=lambda idle: idle.affinity == stage.affinity)
            self._idle.remove(worker)
            return worker
        wanted = {task.attributes["stage"].family for task in self._ready}
        # An idle worker that somebody ready can use is kept: importing anew costs seconds.
        spare = [worker for worker in self._idle if stage.exclusive or worker.family not in wanted]
        while spare and len(self._busy) + len(self._idle) >= self.jobs:
            worker = spare.pop()
            self._idle.remove(worker)
            worker.close()
        if len(self._busy) + len(self._idle) >= self.jobs:
            return None
        return Worker(stage.family, self.log_dir)

    def _collect(self, session: Session) -> None:
        """Wait for messages and settle the stages that ended."""
        for pipe in wait(list(self._busy)):
            worker, task = self._busy[cast(Connection, pipe)]
            try:
                message = worker.receive()
            except WorkerDiedError as error:
                self._fail(session, worker.pipe, error)
                continue
            if isinstance(message, Reply):
                del self._busy[worker.pipe]
                self._idle.append(worker)
                self._settle(session, task, message)
            else:
                self.watcher.advanced(task.attributes["stage"], *message)

    def _fail(self, session: Session, pipe: Connection, error: NailtoolError) -> None:
        worker, task = self._busy.pop(pipe)
        worker.kill()
        stage: Stage = task.attributes["stage"]
        died = WorkerDiedError(
            f"{stage.name}: {error.message}",
            hint="Run the same command again; with --jobs 1 it needs less memory.",
        )
        self._settle(session, task, Reply(died, Cost(), 0))

    def _settle(self, session: Session, task: Any, reply: Reply) -> None:
        self.costs[task.name] = reply.cost
        error = reply.error
        if error is None:
            try:
                session.hook.pytask_execute_task_teardown(session=session, task=task)
            except Exception as missing:  # a product was not made
                error = missing
        if error is None:
            report = ExecutionReport.from_task(task)
        else:
            report = ExecutionReport.from_task_and_exception(task, (type(error), error, error.__traceback__))
        self._report(session, report)

    def _report(self, session: Session, report: Any) -> None:
        session.hook.pytask_execute_task_process_report(session=session, report=report)
        session.execution_reports.append(report)
        cast(Any, session.scheduler).done(report.task.signature)
        stage = report.task.attributes["stage"]
        self.watcher.finished(stage, STATUS[report.outcome], self.costs.get(report.task.name, Cost()))
