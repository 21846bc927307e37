"""`forecache up`: checks everything that can be checked, then hands over to the supervisor."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from app.local import embedded_redis
from app.local.files import only_one, private_folder
from app.local.output import Output, standard_output
from app.local.ports import require_free
from app.local.programs import Program, all_programs, visible_gpus
from app.local.supervisor import Supervisor
from inference.errors import SettingsError
from inference.settings import Settings
from inference.settings.model import NO_MODEL


def up(settings: Settings) -> None:
    """Run every process of the deployment on this machine until told to stop.

    Raises:
        SettingsError: no model is configured, or there is no Redis to be had.
        Conflict: another `up` runs in this folder, or a port is taken.
        Unavailable: the embedded Redis cannot start, for instance from damaged data.
    """
    if not settings.models:
        raise SettingsError(NO_MODEL, field="models")
    private_folder(settings.state_dir)
    with ExitStack() as on_exit:
        on_exit.enter_context(only_one(settings.state_dir / "up.lock"))
        require_free(settings.api.host, settings.api.port, "[api] port")
        require_free(settings.dashboard.host, settings.dashboard.port, "[dashboard] port")
        redis = embedded_redis.prepare(settings.state_dir) if embedded_redis.is_wanted(settings) else None
        if redis:
            on_exit.callback(redis.withdraw)
        run_programs(all_programs(settings, redis, visible_gpus(settings.workers)), _greeting(settings, redis))


def run_programs(programs: list[Program], greeting: list[str]) -> None:
    """Keep the programs running until a signal to stop, their output on standard output.

    Raises:
        Unavailable: one that others wait for ended before it was ready.
    """
    output = standard_output([program.name for program in programs])
    for line in greeting:
        output.line("up", line)
    asyncio.run(_supervise(programs, output))
    output.line("up", "all stopped")


async def _supervise(programs: list[Program], output: Output) -> None:
    await Supervisor(programs, output).run()


def _greeting(settings: Settings, redis: embedded_redis.EmbeddedRedis | None) -> list[str]:
    api, dashboard = settings.api, settings.dashboard
    return [
        f"API        http://{api.host}:{api.port} (/docs describes it)",
        f"dashboard  http://{dashboard.host}:{dashboard.port}",
        f"Redis      embedded, port {redis.port}, data in {redis.folder}" if redis else "Redis      as configured",
        "Ctrl-C stops everything",
    ]
