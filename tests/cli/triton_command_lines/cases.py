"""Command lines of tritonserver. `{good}`, `{bad}` and `{missing}` are repositories: of one model that loads,
with a second one that does not, and a folder that does not exist; `{unread}` has the model of `{good}` and
one whose configuration is wrong; `{taken}` is a port in use, `{log}` a file.
"""

from __future__ import annotations

GOOD = "--model-repository={good}"


def _with_good(**cases: str) -> dict[str, tuple[str, ...]]:
    return {name.replace("_", " "): (GOOD, *options.split()) for name, options in cases.items()}


#: Command lines that end before a model is loaded.
REFUSED: dict[str, tuple[str, ...]] = {
    "no repository": (),
    "an argument": (GOOD, "extra"),
    "a cache without a name": (GOOD, "--cache-config=local"),
    **_with_good(
        unknown_option="--bogus",
        ambiguous_option="--grpc-http2-m=1",
        one_dash="-log-verbose=1",
        flag_with_a_value="--disable-auto-complete-config=true",
        no_value="--log-verbose",
        wrong_integer="--http-thread-count=abc",
        wrong_boolean="--log-info=maybe",
        the_same_port_twice="--http-port=45671 --metrics-port=45671",
        wrong_mode="--model-control-mode=foo",
        wrong_log_format="--log-format=foo",
        load_model_without_explicit="--load-model=a",
        restricted_unknown="--http-restricted-api=foo:k=v",
        restricted_without_value="--http-restricted-api=health:k",
        restricted_twice="--http-restricted-api=health:k=v --http-restricted-api=health,metadata:j=v",
        restricted_protocol_without_key="--grpc-restricted-protocol=health",
        wrong_rate_limit="--rate-limit=foo",
        wrong_resource="--rate-limit=execution_count --rate-limit-resource=a",
        two_caches="--cache-config=local,size=1048576 --response-cache-byte-size=1048576",
        unknown_cache="--cache-config=foo,size=1",
        trace_without_equals="--trace-config=foo",
        wrong_compression="--grpc-infer-response-compression-level=best",
        wrong_capability="--min-supported-compute-capability=x",
        wrong_cuda_pool="--cuda-memory-pool-byte-size=0",
        wrong_host_policy="--host-policy=cpu_0,foo=1",
        wrong_metrics_config="--metrics-config=foo",
        metrics_config_without_value="--metrics-config=summary_quantiles=",
        metrics_config_of_a_group="--metrics-config=a,summary_latencies=true",
        wrong_backend_config="--backend-config=foo",
        wrong_gpu_limit="--model-load-gpu-limit=0",
        star_and_a_model="--model-control-mode=explicit --load-model=* --load-model=a",
        tls_without_certificate="--grpc-use-ssl=true",
    ),
}

#: Command lines that end once the server has tried to start.
ENDING: dict[str, tuple[str, ...]] = {
    "a model that fails": ("--model-repository={bad}",),
    "a repository that does not exist": ("--model-repository={missing}",),
    "a model that does not exist": (GOOD, "--model-control-mode=explicit", "--load-model=zz"),
    "a port in use": (GOOD, "--http-port={taken}"),
    "a gRPC port in use": (GOOD, "--grpc-port={taken}"),
    "a metrics port in use": (GOOD, "--metrics-port={taken}"),
    "a model that cannot be read": ("--model-repository={unread}",),
    "a model in two repositories": ("--model-repository={good}", "--model-repository={unread}"),
}

#: Command lines that serve until a signal ends them.
SERVING: dict[str, tuple[str, ...]] = {
    "only a repository": (GOOD,),
    "a value apart": ("--model-repository", "{good}", "--log-verbose", "0"),
    "a model that fails, without exit on error": ("--model-repository={bad}", "--exit-on-error=false"),
    "the same, with lax readiness": (
        "--model-repository={bad}",
        "--exit-on-error=false",
        "--strict-readiness=false",
    ),
    "a log file": (GOOD, "--log-file={log}"),
    "a log file that cannot be opened": (GOOD, "--log-file=/nonexistent/x/y"),
    "a model store": ("--model-store={good}",),
    "two repositories": (GOOD, "--model-repository={other}"),
    **_with_good(
        shortened_option="--log-verb=0",
        spellings_of_booleans="--log-info=True --log-warning=1 --log-error=on --strict-readiness=FALSE",
        capital_mode="--model-control-mode=EXPLICIT",
        explicit_with_a_model="--model-control-mode=explicit --load-model=a",
        explicit_with_all="--model-control-mode=explicit --load-model=*",
        poll="--model-control-mode=poll --repository-poll-secs=1",
        poll_never="--model-control-mode=poll --repository-poll-secs=0",
        poll_seconds_below_zero="--model-control-mode=poll --repository-poll-secs=-1",
        iso_times="--log-format=ISO8601",
        strict_model_config="--strict-model-config=true",
        no_completion="--disable-auto-complete-config",
        config_name="--model-config-name=h100",
        identifier="--id=mine",
        addresses="--metrics-address=127.0.0.2 --grpc-address=127.0.0.3",
        loopback="--http-address=127.0.0.1",
        reused_ports="--reuse-http-port=1 --reuse-grpc-port=1",
        no_grpc="--allow-grpc=false",
        no_metrics="--allow-metrics=false",
        restricted="--http-restricted-api=model-repository,logging:key=value",
        restricted_protocol="--grpc-restricted-protocol=model-repository:key=value",
        forwarded="--http-header-forward-pattern=x-.* --grpc-header-forward-pattern=(?-i)x-",
        local_cache="--cache-config=local,size=1048576",
        old_cache="--response-cache-byte-size=1048576",
        rate_limit="--rate-limit=execution_count --rate-limit-resource=a:2 --rate-limit-resource=b:1:0",
        resources_without_a_limit="--rate-limit-resource=a:1",
        traces="--trace-config=triton,file={trace} --trace-config=level=TIMESTAMPS --trace-config=rate=2",
        old_traces="--trace-file={trace} --trace-level=TIMESTAMPS --trace-rate=2 --trace-count=3",
        loads="--model-load-thread-count=2 --model-load-retry-count=1 --model-namespacing=true",
        threads="--http-thread-count=4 --grpc-infer-allocation-pool-size=16 --buffer-manager-thread-count=2",
        keepalive="--grpc-keepalive-time=1000 --grpc-keepalive-timeout=500"
        " --grpc-keepalive-permit-without-calls=1 --grpc-http2-max-pings-without-data=0"
        " --grpc-http2-min-recv-ping-interval-without-data=10 --grpc-http2-max-ping-strikes=0"
        " --grpc-max-connection-age=100000 --grpc-max-connection-age-grace=1000",
        compression="--grpc-infer-response-compression-level=high",
        memory="--pinned-memory-pool-byte-size=1048576 --cuda-memory-pool-byte-size=0:1048576"
        " --min-supported-compute-capability=7.5 --enable-peer-access=false",
        policies="--host-policy=cpu_0,cpu-cores=0-1 --model-load-gpu-limit=0:0.5",
        backends="--backend-config=python,shm-default-byte-size=1048576"
        " --backend-config=default-max-batch-size=8",
        metrics="--metrics-interval-ms=500 --metrics-config=summary_latencies=true"
        " --allow-gpu-metrics=false --allow-cpu-metrics=false",
        ignored_metrics="--metrics-config=foo=bar --metrics-config=summary_quantiles=0.5",
        rare="--trace-file={trace} --trace-log-frequency=2 --cuda-virtual-address-size=0:1048576"
        " --sagemaker-thread-count=2 --vertex-ai-default-model=a --exit-timeout-secs=20"
        " --repoagent-directory=/nonexistent",
        sagemaker="--allow-sagemaker=false --sagemaker-port=8080 --sagemaker-safe-port-range=9000-9010",
        vertex="--allow-vertex-ai=false --vertex-ai-port=8080 --vertex-ai-thread-count=2",
    ),
}
