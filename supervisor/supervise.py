"""supervisord with an exit code that tells Docker why it ended.

supervisord keeps running when a program could not be started, and exits 0 whatever happened. A container must do
neither: it would look alive without its scheduler, and `restart: on-failure` would not act.
"""

import logging
import os
import sys
from typing import Any

from supervisor.states import SupervisorStates

from supervisor import events, loggers, supervisord

sys.path.insert(0, "/app")
from app.log_lines import formatter_in

fatal_programs: list[str] = []


def end_on_fatal(server: Any, **_settings: str) -> object:
    """Plugin of supervisord: stops everything in order as soon as one program cannot be started.

    That is a program that is FATAL (it ended early, several times), or one that ends, however late, with one of its
    `exitcodes`: those by which Gunicorn says that it could not load the app.

    Registered as an RPC interface because that is the extension point that runs inside supervisord: an event
    listener would be one more Python process. It offers no methods.
    """

    def end(event: Any) -> None:
        if isinstance(event, events.ProcessStateExitedEvent) and not event.expected:
            return  # a crash: supervisord starts it again
        name = event.process.config.name
        fatal_programs.append(name)
        server.options.logger.critical(f"{name} cannot be started (its reason is above): ending the container")
        server.options.mood = SupervisorStates.SHUTDOWN

    events.subscribe(events.ProcessStateFatalEvent, end)
    events.subscribe(events.ProcessStateExitedEvent, end)
    return object()


class LogLines(loggers.StreamHandler):
    """supervisord's own lines in the form of the app's."""

    LEVELS = {  # noqa: RUF012 - of this module alone
        loggers.LevelsByName.CRIT: logging.CRITICAL,
        loggers.LevelsByName.ERRO: logging.ERROR,
        loggers.LevelsByName.WARN: logging.WARNING,
        loggers.LevelsByName.INFO: logging.INFO,
    }

    def emit(self, record: Any) -> None:
        if "running without any HTTP authentication" in str(record.msg):
            return  # it calls a socket critical that its file's mode guards
        level = self.LEVELS.get(record.level, logging.DEBUG)
        told = logging.LogRecord("supervisor", level, "", 0, "%s", (record.asdict()["message"],), None)
        self.stream.write(f"{self.form.format(told)}\n")
        self.flush()


def log_to_stdout(logger: Any, _format: str) -> None:
    """Stands in for supervisor.loggers.handle_stdout, whose format has no way to escape a value."""
    handler = LogLines(sys.stdout)
    handler.form = formatter_in(os.environ, "supervisor")
    handler.setLevel(logger.level)
    logger.addHandler(handler)


if __name__ == "__main__":
    loggers.handle_stdout = log_to_stdout
    supervisord.main()
    sys.exit(1 if fatal_programs else 0)
