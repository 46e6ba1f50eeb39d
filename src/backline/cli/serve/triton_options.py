"""Command lines that were written for tritonserver: switches with a value, and options that have another name here, or none."""

from __future__ import annotations

import click

#: Options of tritonserver that `backline serve` does not have, and what to do instead. The page of the configuration has the same table.
ELSEWHERE = {
    "--model-store": "`--model-repository`",
    "--allow-http": "leave it out: every port answers HTTP",
    "--allow-grpc": "`--no-grpc` for `false`; leave out `true`",
    "--allow-metrics": "`--no-metrics` for `false`; leave out `true`",
    "--allow-cpu-metrics": "leave it out: these metrics are always there",
    "--allow-gpu-metrics": "leave it out: GPUs are for NVIDIA's DCGM exporter to watch",
    "--metrics-config": "leave it out: latencies are always there, as histograms",
    "--metrics-interval-ms": "leave it out: metrics are read when they are asked for",
    "--grpc-address": "`--host`: all ports have one address",
    "--metrics-address": "`--host`: all ports have one address",
    "--reuse-http-port": "leave it out: a port belongs to one server",
    "--reuse-grpc-port": "leave it out: a port belongs to one server",
    "--reuse-metrics-port": "leave it out: a port belongs to one server",
    "--http-thread-count": "leave it out: one event loop has all connections",
    "--grpc-infer-thread-count": "leave it out: one event loop has all connections",
    "--grpc-infer-allocation-pool-size": "leave it out: there is no such pool",
    "--grpc-max-response-pool-size": "leave it out: a stream waits for its reader anyway",
    "--grpc-infer-response-compression-level": "leave it out: answers are compressed where a client asks for it",
    "--grpc-use-ssl": "`--ssl-certificate` and `--ssl-key`, for all ports",
    "--grpc-use-ssl-mutual": "`--ssl-client-ca`, for all ports",
    "--grpc-server-cert": "`--ssl-certificate`, for all ports",
    "--grpc-server-key": "`--ssl-key`, for all ports",
    "--grpc-root-cert": "`--ssl-client-ca`, for all ports",
    "--http-restricted-api": "a proxy before the server: it has no access control by header fields",
    "--grpc-restricted-protocol": "a proxy before the server: it has no access control by header fields",
    "--http-header-forward-pattern": "parameters of the request: models do not see header fields",
    "--grpc-header-forward-pattern": "parameters of the request: models do not see header fields",
    "--strict-model-config": "`--disable-auto-complete-config` for `true`; leave out `false`",
    "--response-cache-byte-size": "`--cache-config local,size=BYTES`",
    "--cache-directory": "leave it out: caches are part of Backline",
    "--backend-directory": "leave it out: backends are part of Backline, their runtimes are installed by pip",
    "--repoagent-directory": "leave it out: there are no repository agents",
    "--backend-config": "`parameters` in the configurations of the models",
    "--host-policy": "`cpus` in the configurations of the models",
    "--model-load-gpu-limit": "leave it out: GPU memory has no limit here",
    "--pinned-memory-pool-byte-size": "leave it out: there is no such pool",
    "--cuda-memory-pool-byte-size": "leave it out: there is no such pool",
    "--buffer-manager-thread-count": "leave it out: there are no such threads",
    "--min-supported-compute-capability": "leave it out: the runtimes decide which GPUs they can use",
    "--id": "leave it out: the server is called backline",
}


class ServeCommand(click.Command):
    """A command whose switches may have a value, as in tritonserver's `--exit-on-error=false`, and which tells where its options are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        foreign = [
            name for name in dict.fromkeys(arg.partition("=")[0] for arg in options) if name in ELSEWHERE
        ]
        if foreign:
            advice = "".join(f"\n  {name}: {ELSEWHERE[name].replace('`', '')}" for name in foreign)
            raise click.UsageError(
                f"Options of tritonserver that are not options here. Instead:{advice}", ctx
            )
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
        rest = super().parse_args(ctx, kept)
        ctx.params.update(switched)  # behind what stands in the environment
        return rest
