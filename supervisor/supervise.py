"""supervisord with an exit code that tells Docker why it ended.

supervisord keeps running when a program could not be started, and exits 0 whatever happened. A container must do
neither: it would look alive without its scheduler, and `restart: on-failure` would not act.
"""

import sys
from typing import Any

from supervisor.states import SupervisorStates

from supervisor import events, supervisord

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


if __name__ == "__main__":
    supervisord.main()
    sys.exit(1 if fatal_programs else 0)
