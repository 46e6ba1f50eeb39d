"""`backline jobs`: lists the jobs of a server, waits for them, fetches results, cancels and retries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from backline.cli.command import CommandGroup
from backline.cli.connection import connection_options
from backline.cli.options import json_option
from backline.cli.result_files import check_destination, present
from backline.cli.table import print_table
from backline_client.client.jobs import Job
from backline_client.client.options import ClientOptions
from backline_client.client.sync import Client
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

_EPILOG = """\b
Examples:
  backline jobs list --state failed
  backline jobs wait 1f-49d63dc3ff13fd2ad4407ea06a2b9560
  backline jobs result 1f-49d63dc3ff13fd2ad4407ea06a2b9560 -o notes.npz
  backline jobs list --state failed --json | jq -r .[].id | xargs backline jobs retry"""


@click.group("jobs", cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """List, wait for, fetch, cancel and retry the jobs of a server."""


@command.command("list")
@click.option("--state", default="", metavar="STATE,...", help="Only jobs in these states.")
@click.option("--model", default="", help="Only jobs of this model.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option()
@connection_options
def list_jobs(url: str, options: ClientOptions, state: str, model: str, limit: int, as_json: bool) -> None:
    """List your jobs, newest first."""
    with Client(url, options) as client:
        jobs = [job.document for job in client.jobs(state, model, limit)]
    if as_json:
        print(json.dumps(jobs))
    elif not jobs:
        print("no jobs")
    else:
        head = ("job", "model", "version", "state", "attempts", "accepted", "error")
        print_table(
            head,
            [
                (
                    job["id"],
                    printable(job["model"]),
                    printable(job["version"]),
                    job["state"],
                    f"{job['attempts']}/{job['max_attempts']}",
                    job["accepted"][:19],
                    printable(job.get("error", ""))[:60],
                )
                for job in jobs
            ],
        )


@command.command("show")
@click.argument("id")
@connection_options
def show(url: str, options: ClientOptions, id: str) -> None:
    """Show the state of a job, as JSON."""
    with Client(url, options) as client:
        job = client.job(id)
        job.refresh()
        print(json.dumps(job.document, indent=2))


@command.command("wait")
@click.argument("ids", nargs=-1, required=True)
@connection_options
def wait(url: str, options: ClientOptions, ids: tuple[str, ...]) -> None:
    """Wait until jobs have ended. The exit status is 0 if all are done, otherwise 1.

    There is no limit on the time; --timeout is the time to wait for a server that cannot be reached.
    """
    with Client(url, options) as client:
        states = [_told(client.job(id), "wait") for id in ids]
    sys.exit(any(state != "done" for state in states))


@command.command("result")
@click.argument("id")
@json_option("Print the outputs as JSON.")
@click.option(
    "--save",
    "-o",
    "destination",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the outputs as .npz or .json, or a single output as .npy.",
)
@connection_options
def result(url: str, options: ClientOptions, id: str, as_json: bool, destination: Path | None) -> None:
    """Wait until a job has ended, and show or save its outputs."""
    check_destination(destination)
    with Client(url, options) as client:
        present([client.job(id).result()], destination, as_json=as_json)


@command.command("cancel")
@click.argument("ids", nargs=-1, required=True)
@connection_options
def cancel(url: str, options: ClientOptions, ids: tuple[str, ...]) -> None:
    """Cancel jobs that have not ended."""
    with Client(url, options) as client:
        for id in ids:
            if _told(client.job(id), "cancel") not in ("cancelled", "queued", "running"):
                raise InvalidArgument(f"job {id} had ended already")


@command.command("retry")
@click.argument("ids", nargs=-1, required=True)
@connection_options
def retry(url: str, options: ClientOptions, ids: tuple[str, ...]) -> None:
    """Queue failed, cancelled or expired jobs again."""
    with Client(url, options) as client:
        for id in ids:
            _told(client.job(id), "retry")


def _told(job: Job, what: str) -> str:
    """Calls a method of a job, prints the state and the error, and returns the state."""
    state: str = getattr(job, what)()
    error = job.document.get("error")
    print(f"{job.id} {state}" + (f": {printable(error)}" if error else ""))
    return state
