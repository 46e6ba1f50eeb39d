"""Accepts flags with values, as tritonserver does, and suggests replacements for its options that `backline
serve` lacks.
"""

from __future__ import annotations

import click

#: A replacement for each option of tritonserver that `backline serve` lacks. docs/configuration.md has the
#: same table.
ELSEWHERE = {
    "--model-store": "`--model-repository`",
    "--allow-http": "`--no-http` for `false`; leave out `true`",
    "--allow-grpc": "`--no-grpc` for `false`; leave out `true`",
    "--allow-metrics": "`--no-metrics` for `false`; leave out `true`",
    "--allow-cpu-metrics": "leave it out: these metrics are always on",
    "--allow-gpu-metrics": "leave it out: NVIDIA's DCGM exporter has GPU metrics",
    "--metrics-interval-ms": "leave it out: metrics are read when scraped",
    "--http-thread-count": "leave it out: one event loop handles all connections",
    "--grpc-infer-thread-count": "leave it out: one event loop handles all connections",
    "--grpc-infer-allocation-pool-size": "leave it out: Backline has no such pool",
    "--grpc-max-response-pool-size": "leave it out: a stream waits for its client anyway",
    "--grpc-infer-response-compression-level": "leave it out: responses are compressed on request",
    "--grpc-use-ssl": "`--ssl-certificate`, `--ssl-key` and `--ssl-grpc-only`",
    "--grpc-use-ssl-mutual": "`--ssl-client-ca` and `--ssl-grpc-only`",
    "--grpc-server-cert": "`--ssl-certificate`",
    "--grpc-server-key": "`--ssl-key`",
    "--grpc-root-cert": "`--ssl-client-ca`",
    "--strict-model-config": "`--disable-auto-complete-config` for `true`; leave out `false`",
    "--response-cache-byte-size": "`--cache-config local,size=BYTES`",
    "--cache-directory": "leave it out: caches are part of Backline",
    "--backend-directory": "leave it out: backends are part of Backline; install their runtimes with pip",
    "--repoagent-directory": "leave it out: Backline has no repository agents",
    "--backend-config": "`parameters` in the models' configurations",
    "--host-policy": "`cpus` in the models' configurations",
    "--model-load-gpu-limit": "`--gpu-memory-budget GPU:SIZE`, a size instead of a fraction",
    "--pinned-memory-pool-byte-size": "leave it out: Backline has no such pool",
    "--cuda-memory-pool-byte-size": "leave it out: Backline has no such pool",
    "--buffer-manager-thread-count": "leave it out: Backline has no such threads",
    "--min-supported-compute-capability": "leave it out: the runtimes decide which GPUs they can use",
}


#: The titles of the sections in `backline serve --help`, by the first option in each section.
_SECTIONS = {
    "--model-repository": "Models",
    "--memory-budget": "Resources",
    "--labels": "Files",
    "--host": "Addresses and TLS",
    "--http-max-input-size": "Limits",
    "--auth": "What clients may do",
    "--trace-config": "Traces",
    "--engine": "Ray",
    "--debug": "Debugging and the log",
}


#: The options that `--help` lists; `--help-all` lists all.
_COMMON = frozenset(
    {
        "--model-repository",
        "--model-control-mode",
        "--load-model",
        "--model-name",
        "--trust-pickle-model",
        "--trust-remote-code",
        "--exit-on-error",
        "--memory-budget",
        "--gpu-memory-budget",
        "--cache-config",
        "--labels",
        "--state-dir",
        "--cache-dir",
        "--host",
        "--http-port",
        "--grpc-port",
        "--metrics-port",
        "--ssl-certificate",
        "--ssl-key",
        "--http-max-input-size",
        "--max-concurrent-requests",
        "--exit-timeout-secs",
        "--auth",
        "--insecure-open",
        "--cors-origin",
        "--allow-client-shm",
        "--trace-config",
        "--engine",
        "--debug",
        "--log-level",
        "--log-file",
        "--log-format",
        "--help",
        "--help-all",
    }
)


def _show_all(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


#: The key in a context's `meta` under which --help-all notes that it was given.
_ALL = "backline.help_all"
_HELP_ALL = click.Option(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="Show all options, and exit.",
)


class ServeCommand(click.Command):
    """A command that accepts flags with a value, such as `--exit-on-error=false`, and refuses the options in
    ELSEWHERE with advice. Its `--help` lists the common options, and its `--help-all` all options.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), _HELP_ALL]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        title = ""
        for param in self.get_params(ctx):
            title = _SECTIONS.get(param.opts[0], title)
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None and (_ALL in ctx.meta or _COMMON.intersection(param.opts)):
                sections.setdefault(title, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        foreign = [
            name for name in dict.fromkeys(arg.partition("=")[0] for arg in options) if name in ELSEWHERE
        ]
        if foreign:
            advice = "".join(f"\n  {name}: {ELSEWHERE[name].replace('`', '')}" for name in foreign)
            raise click.UsageError(f"These options of tritonserver do not exist here. Instead:{advice}", ctx)
        switches = {
            name: param
            for param in self.params
            if isinstance(param, click.Option) and param.is_flag
            for name in param.opts
        }
        kept: list[str] = []
        switched: dict[str, bool] = {}
        for index, arg in enumerate(args):
            name, equals, value = arg.partition("=")
            if equals and name in switches and index < len(options):
                switched[str(switches[name].name)] = click.BOOL.convert(value, switches[name], ctx)
            else:
                kept.append(arg)
        if (
            switched.get("exit_on_error") is False
        ):  # in Triton, an explicit `false` also allows missing repositories
            switched.setdefault("await_repositories", True)
        rest = super().parse_args(ctx, kept)
        ctx.params.update(switched)  # the command line takes precedence over the environment
        return rest
